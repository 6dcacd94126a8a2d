"""Check the network against the specification: it is built, run once and counted; no name is trusted."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from harness.checks.op_trace import Step, describe_steps, trace
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


# Section -> (specified operations, number of convolutions).
SECTIONS = {
    "prep": ("conv3x3 3>64, BN, ReLU", 1),
    "layer1": (f"{_down(64, 128)}; R: {_residual(128)}", 3),
    "layer2": (_down(128, 256), 1),
    "layer3": (f"{_down(256, 512)}; R: {_residual(512)}", 3),
}


def network_rows(model: nn.Module, config: Config, size: int, resnet18: bool) -> list[CheckRow]:
    """Return the rows about the network: its sections, its parameters, and where the softmax is.

    Args:
        model: as a run makes it, on the CPU; its running statistics and weights are changed.
        size: side of its input images, pixels.
    """
    # Normalised images have mean 0 and standard deviation 1 in each channel.
    images = torch.randn(IMAGES, config.in_chans, size, size, generator=torch.Generator().manual_seed(0))
    steps, logits = trace(model, images)
    sections = _resnet18_rows(steps) if resnet18 else _custom_rows(steps)
    return [
        *sections,
        parameters_row(count_parameters(model), resnet18),
        softmax_row(model, config, images, steps, logits),
    ]


def parameters_row(count: int, resnet18: bool, how: str = "built and counted", name: str = "parameters") -> CheckRow:
    """Return the row about the number of parameters."""
    wanted = RESNET18 if resnet18 else CUSTOM
    return row(name, f"{wanted:,}", f"{count:,}", how, count == wanted)


def _custom_rows(steps: list[Step]) -> list[CheckRow]:
    rows, body, head = [], *_split(steps)
    starts = [index for index, step in enumerate(body) if step.kind == "conv"]
    done = 0
    for name, (wanted, convs) in SECTIONS.items():
        is_last = name == "layer3"
        begin = starts[done] if done < len(starts) else len(body)
        end = starts[done + convs] if not is_last and done + convs < len(starts) else len(body)
        description = describe_section(body[begin:end], begin)
        rows.append(row(name, wanted, description or "nothing", HOW, description == wanted))
        done += convs
    pools = [step for step in head if step.kind == "pool"]
    rest = [step for step in head if step.kind not in ("pool", "softmax")]
    rows.append(row("pooling", "MaxPool 4", describe_steps(pools) or "none", HOW, describe_steps(pools) == "MaxPool 4"))
    rows.append(
        row("classifier", "FC 512>10", describe_steps(rest) or "none", HOW, describe_steps(rest) == "FC 512>10")
    )
    return rows


def _split(steps: list[Step]) -> tuple[list[Step], list[Step]]:
    """Return the convolutional steps and the head: all from the first step whose output is no feature map."""
    last = max((index for index, step in enumerate(steps) if step.kind == "conv"), default=-1)
    for index, step in enumerate(steps):
        if index > last and (step.kind == "linear" or len(step.shape) != 4 or step.shape[-1] == 1):
            return steps[:index], steps[index:]
    return steps, []


def describe_section(steps: list[Step], begin: int) -> str:
    """Return steps as text; a sum of the input X and the output of convolution blocks R is `R: ..., X + R(X)`.

    Args:
        begin: index of the first of the steps in the whole trace.
    """
    texts, separate = [step.text for step in steps], -1
    for index, step in enumerate(steps):
        if step.kind != "add":
            continue
        newer, older = step.source, step.other
        first = older + 1 - begin  # the step after X
        takes_x = 0 <= first < index and steps[first].kind == "conv" and steps[first].source == older
        if newer == begin + index - 1 and takes_x:
            texts[index], separate = "X + R(X)", first
    if separate > 0:
        return f"{', '.join(texts[:separate])}; R: {', '.join(texts[separate:])}"
    return ", ".join(texts) if len(texts) <= 20 else f"{', '.join(texts[:8])}, ... {len(texts)} operations"


def _resnet18_rows(steps: list[Step]) -> list[CheckRow]:
    body, head = _split(steps)
    blocks = [step for step in body if step.kind == "add"]
    convs = [index for index, step in enumerate(body) if step.kind == "conv"]
    stem = describe_steps(body[: convs[1]]) if len(convs) > 1 else describe_steps(body)
    convs3x3 = sum(step.text.startswith("conv3x3") for step in body)
    channels = sorted({step.shape[1] for step in blocks})
    sizes = sorted({step.shape[-1] for step in blocks}, reverse=True)
    description = f"{len(blocks)} blocks with {convs3x3 - 1} conv3x3, channels {channels}, sizes {sizes}"
    wanted = "8 blocks with 16 conv3x3, channels [64, 128, 256, 512], sizes [32, 16, 8, 4]"
    classifier = describe_steps([step for step in head if step.kind != "softmax"])
    return [
        row("stem", "conv3x3 3>64, BN, ReLU", stem, HOW, stem == "conv3x3 3>64, BN, ReLU"),
        row("blocks", wanted, description, HOW, description == wanted),
        row("classifier", "AvgPool 4, FC 512>10", classifier or "none", HOW, classifier == "AvgPool 4, FC 512>10"),
    ]


def softmax_row(model: nn.Module, config: Config, images: Tensor, steps: list[Step], logits: Tensor) -> CheckRow:
    """Return the row about the softmax, which is to be taken exactly once: by the loss, not by the network."""
    wanted = "once: in the loss, not in the network"
    how = "row sums of the output; the loss computed with NumPy"
    sums, sums_of_exp = logits.double().sum(1), logits.double().exp().sum(1)
    if _all_ones(sums) or _all_ones(sums_of_exp) or any(step.kind == "softmax" for step in steps):
        kind = "log-softmax" if _all_ones(sums_of_exp) else "softmax"
        description = f"the network's output is a {kind} already, and the loss takes a second one"
        return row("softmax", wanted, description, how, False)
    loss, reference = _losses(model, config, images)
    agrees = bool(abs(loss - reference) <= 1e-4 * max(1.0, abs(reference)))
    distance = float((sums_of_exp - 1).abs().min())
    description = (
        f"the output is not normalised (sums of exp differ from 1 by at least {distance:.2g}); the loss is -log softmax"
    )
    if not agrees:
        description = f"the loss is {loss:.5g}, but -log softmax of the output is {reference:.5g}"
    elif config.class_weights:
        description += ", with a weight for each class (class_weights)"
    return row("softmax", wanted, description, how, agrees and not config.class_weights)


def _all_ones(sums: Tensor) -> bool:
    # The logits of a new network do not sum to 1 by chance for 16 images at once.
    return bool(((sums - 1).abs() < 1e-3).all())


def _losses(model: nn.Module, config: Config, images: Tensor) -> tuple[float, float]:
    """Return the loss of one update of the learner that trains, and the same computed with NumPy from the logits."""
    config = config.replace(
        grad_accumulation=1, ema=0, compile=False, label_smoothing=0, clip_grad=0, channels_last=False, auto_batch=False
    )
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        logits = model(images).double().numpy()  # [B, classes], with the batch's own statistics, as in training
    labels = torch.arange(len(images)) % logits.shape[1]
    torch.manual_seed(0)
    learner = make_learner(config, model, torch.device("cpu"), None)
    if config.aug_splits:
        images = images[:, None].expand(-1, config.aug_splits, -1, -1, -1)
    loss = float(learner.train_step(images, labels, 0, 1e-6, config.momentum).loss)
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return loss, float((log_sum - logits[np.arange(len(labels)), labels.numpy()]).mean())
