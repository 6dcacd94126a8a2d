"""Histograms of the parameters of a model and of the gradients of its last update."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from harness.tracking.records import Histogram

BINS = 64


def model_histograms(model: nn.Module, *, gradients: bool, parameters: bool) -> dict[str, Histogram]:
    """Return a histogram for each parameter that is trained, and one for its gradient; waits for the device.

    Nothing is hooked into the model, so that training with it is bit-identical, captured or compiled as without.

    Returns:
        `parameters/NAME` and `gradients/NAME` (as the optimizer saw it, after clipping), with `/` for the dots of NAME.
    """
    result: dict[str, Histogram] = {}
    for name, parameter in model.named_parameters():
        key = re.sub(r"[^A-Za-z0-9_]", "/", name)
        for prefix, tensor, is_requested in (
            ("gradients", parameter.grad, gradients),
            ("parameters", parameter.detach(), parameters),
        ):
            if is_requested and parameter.requires_grad and tensor is not None:
                histogram = tensor_histogram(tensor)
                result |= {} if histogram is None else {f"{prefix}/{key}": histogram}
    return result


def tensor_histogram(tensor: Tensor) -> Histogram | None:
    """Return the histogram of the finite values of a tensor, over their range; None where there is none."""
    values = tensor.detach().flatten().float()
    values = values[torch.isfinite(values)]
    if not len(values):
        return None
    low, high = torch.stack(torch.aminmax(values)).double().tolist()
    if low == high:
        low, high = low - 0.5, high + 0.5
    # Not torch.histc, which is not deterministic on a GPU and refused there by torch's deterministic mode.
    index = ((values.double() - low) * (BINS / (high - low))).long().clamp_(0, BINS - 1)
    counts = torch.bincount(index, minlength=BINS).tolist()
    return Histogram(counts, [low + (high - low) * number / BINS for number in range(BINS + 1)])
