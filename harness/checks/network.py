"""Is it the network of the assignment? Built, run once and counted; nothing is taken from names."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from harness.checks.op_trace import Step, describe, trace
from harness.checks.table import CheckRow, row
from harness.config.settings import Config
from harness.models.factory import count_parameters
from harness.training.learner import make_learner

CUSTOM, RESNET18 = 6_573_130, 11_173_962
IMAGES = 16
HOW = "operations of one forward pass"


def _down(low: int, high: int) -> str:
    return f"conv3x3 {low}>{high}, MaxPool 2, BN, ReLU"


def _residual(width: int) -> str:
    one = f"conv3x3 {width}>{width}, BN, ReLU"
    return f"{one}, {one}, X + R(X)"


# Section -> (what it is to compute, its number of convolutions).
SECTIONS = {
    "prep": ("conv3x3 3>64, BN, ReLU", 1),
    "layer1": (f"{_down(64, 128)}; R: {_residual(128)}", 3),
    "layer2": (_down(128, 256), 1),
    "layer3": (f"{_down(256, 512)}; R: {_residual(512)}", 3),
}


def network_rows(model: nn.Module, config: Config, size: int, resnet18: bool) -> list[CheckRow]:
    """The rows about the network: its parts, its parameters, and where the softmax is.

    Args:
        model: as a run makes it, on the CPU; its running statistics and weights are changed.
        size: side of the images that it sees, pixels.
    """
    # Normalised images have mean 0 and deviation 1 by channel.
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    steps, logits = trace(model, images)
    parts = _resnet18_rows(steps) if resnet18 else _custom_rows(steps)
    return [
        *parts,
        parameters_row(count_parameters(model), resnet18),
        softmax_row(model, config, images, steps, logits),
    ]


def parameters_row(count: int, resnet18: bool, how: str = "built and counted", name: str = "parameters") -> CheckRow:
    """The number of parameters, held against the assignment's."""
    wanted = RESNET18 if resnet18 else CUSTOM
    return row(name, f"{wanted:,}", f"{count:,}", how, count == wanted)


def _custom_rows(steps: list[Step]) -> list[CheckRow]:
    rows, body, head = [], *_split(steps)
    starts = [place for place, step in enumerate(body) if step.kind == "conv"]
    done = 0
    for name, (wanted, convs) in SECTIONS.items():
        last = name == "layer3"
        begin = starts[done] if done < len(starts) else len(body)
        end = starts[done + convs] if not last and done + convs < len(starts) else len(body)
        found = _section(body[begin:end], begin)
        rows.append(row(name, wanted, found or "nothing", HOW, found == wanted))
        done += convs
    pools = [step for step in head if step.kind == "pool"]
    rest = [step for step in head if step.kind not in ("pool", "softmax")]
    rows.append(row("pooling", "MaxPool 4", describe(pools) or "none", HOW, describe(pools) == "MaxPool 4"))
    rows.append(row("classifier", "FC 512>10", describe(rest) or "none", HOW, describe(rest) == "FC 512>10"))
    return rows


def _split(steps: list[Step]) -> tuple[list[Step], list[Step]]:
    """The convolutional part, and what comes after it: from the first step that leaves no picture."""
    last = max((place for place, step in enumerate(steps) if step.kind == "conv"), default=-1)
    for place, step in enumerate(steps):
        if place > last and (step.kind == "linear" or len(step.shape) != 4 or step.shape[-1] == 1):
            return steps[:place], steps[place:]
    return steps, []


def _section(steps: list[Step], begin: int) -> str:
    """Steps in words. A sum of what two convolution blocks came from and came to is `R: ..., X + R(X)`."""
    words, separate = [step.text for step in steps], -1
    for place, step in enumerate(steps):
        if step.kind != "add":
            continue
        newer, older = step.source, step.other
        first = older + 1 - begin  # the step after X
        takes_x = 0 <= first < place and steps[first].kind == "conv" and steps[first].source == older
        if newer == begin + place - 1 and takes_x:
            words[place], separate = "X + R(X)", first
    if separate > 0:
        return f"{', '.join(words[:separate])}; R: {', '.join(words[separate:])}"
    return ", ".join(words) if len(words) <= 20 else f"{', '.join(words[:8])}, ... {len(words)} operations"


def _resnet18_rows(steps: list[Step]) -> list[CheckRow]:
    body, head = _split(steps)
    blocks = [place for place, step in enumerate(body) if step.kind == "add"]
    convs = [place for place, step in enumerate(body) if step.kind == "conv"]
    stem = describe(body[: convs[1]]) if len(convs) > 1 else describe(body)
    wide = [step for step in body if step.text.startswith("conv3x3")]
    channels = sorted({body[place].shape[1] for place in blocks})
    sides = sorted({body[place].shape[-1] for place in blocks}, reverse=True)
    told = f"{len(blocks)} blocks, {len(wide) - 1} conv3x3 in them, channels {channels}, sides {sides}"
    wanted = "8 blocks, 16 conv3x3 in them, channels [64, 128, 256, 512], sides [32, 16, 8, 4]"
    ends = describe([step for step in head if step.kind != "softmax"])
    return [
        row("stem", "conv3x3 3>64, BN, ReLU", stem, HOW, stem == "conv3x3 3>64, BN, ReLU"),
        row("blocks", wanted, told, HOW, told == wanted),
        row("classifier", "AvgPool 4, FC 512>10", ends or "none", HOW, ends == "AvgPool 4, FC 512>10"),
    ]


def softmax_row(model: nn.Module, config: Config, images: Tensor, steps: list[Step], logits: Tensor) -> CheckRow:
    """Whether the softmax is taken exactly once: not by the network, and by the loss."""
    wanted, how = "once: in the loss, not in the network", "row sums of the output; the loss by hand"
    sums, of_exp = logits.double().sum(1), logits.double().exp().sum(1)
    if _ones(sums) or _ones(of_exp) or any(step.kind == "softmax" for step in steps):
        kind = "log-softmax" if _ones(of_exp) else "softmax"
        return row(
            "softmax", wanted, f"the network's output is a {kind} already, and the loss takes another", how, False
        )
    loss, by_hand = _losses(model, config, images)
    agrees = bool(abs(loss - by_hand) <= 1e-4 * max(1.0, abs(by_hand)))
    far = float((of_exp - 1).abs().min())
    found = f"output not normalised (sums of exp differ from 1 by {far:.2g} at least); the loss is -log softmax"
    if not agrees:
        found = f"the loss is {loss:.5g}, -log softmax of the output by hand {by_hand:.5g}"
    return row("softmax", wanted, found, how, agrees)


def _ones(sums: Tensor) -> bool:
    # Rows of 10 logits of a fresh network sum to 1 by chance in no 16 images at once.
    return bool(((sums - 1).abs() < 1e-3).all())


def _losses(model: nn.Module, config: Config, images: Tensor) -> tuple[float, float]:
    """The loss of one update of the very learner that trains, and the same by NumPy from the network's output."""
    plain = config.replace(
        grad_accumulation=1, ema=0, compile=False, label_smoothing=0, clip_grad=0, channels_last=False, auto_batch=False
    )
    labels = torch.arange(len(images)) % 10
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        logits = model(images).double().numpy()  # [B, classes], of the batch's own statistics, as in training
    torch.manual_seed(0)
    learner = make_learner(plain, model, torch.device("cpu"), None)
    loss = float(learner.train_step(images, labels, 0, 1e-6, plain.momentum).loss)
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return loss, float((log_sum - logits[np.arange(len(labels)), labels.numpy()]).mean())
