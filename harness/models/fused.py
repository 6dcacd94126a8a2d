# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="no-any-return"
"""Train the custom ResNet on a CUDA GPU with Triton kernels for pooling, batch normalisation and ReLU.

On an H100 torch's kernels for these take as long as the convolutions: `max_pool2d` keeps 64-bit indices and first fills
its gradient with zeros, normalisation and ReLU each read and write the activations once more than necessary. Here
pooling keeps one byte for each window, and ReLU is computed together with the normalisation. Convolutions, classifier,
parameters, running statistics and autograd remain torch's: `FusedForward(model)` is another way to call the same module,
for training only.

Sums are float32, as in torch; activations have the dtype of autocast and NHWC memory order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.cifar_resnet import CustomResNet, Residual

CHANNELS = 64  # channels of a tile; the channels of every layer are a multiple of it
ROWS = 32  # pixels of a tile; the fastest of 32, 64, 128 and 256 on an H100
MAX_SIZE = 64  # largest side of an image: the kernel of the last pooling has an unrolled loop over all its pixels
MAX_PARTS = 256  # a sum over all pixels is computed in at most this many parts, one for each program


@triton.jit
def _sum_kernel(x, shift, out, rows, channels, per_part, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Write the sum and sum of squares of x - shift over the rows of a part to out [2, parts, channels]."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    base = tl.load(shift + c).to(tl.float32)
    first = tl.zeros([ROWS, CHANNELS], tl.float32)
    second = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(part * per_part, tl.minimum((part + 1) * per_part, rows), ROWS):
        r = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (r < rows)[:, None]
        values = tl.load(x + r[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values - base[None, :], 0.0)
        first += values
        second += values * values
    tl.store(out + part * channels + c, tl.sum(first, 0))
    tl.store(out + (parts + part) * channels + c, tl.sum(second, 0))


@triton.jit
def _statistics_kernel(
    sums, shift, stats, running_mean, running_var, parts, rows, channels, momentum, eps,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write each channel's mean and 1 / standard deviation to stats [2, channels]; update the running statistics."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.arange(0, PARTS)
    inside = (p < parts)[:, None]
    pointers = sums + p[:, None] * channels + c[None, :]
    first = tl.sum(tl.load(pointers, mask=inside, other=0.0), 0) / rows
    second = tl.sum(tl.load(pointers + parts * channels, mask=inside, other=0.0), 0) / rows
    var = tl.maximum(second - first * first, 0.0)
    mean = first + tl.load(shift + c).to(tl.float32)
    tl.store(stats + c, mean)
    tl.store(stats + channels + c, 1.0 / tl.sqrt(var + eps))
    old = tl.load(running_mean + c)
    tl.store(running_mean + c, old + momentum * (mean - old))
    old = tl.load(running_var + c)
    tl.store(running_var + c, old + momentum * (var * (rows / (rows - 1.0)) - old))


@triton.jit
def _normalise_kernel(x, y, stats, weight, bias, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Write relu(weight * (x - mean) / deviation + bias) to y."""
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    scale = tl.load(weight + c) * tl.load(stats + channels + c)
    offset = tl.load(bias + c) - tl.load(stats + c) * scale
    inside = (r < rows)[:, None]
    offsets = r[:, None] * channels + c[None, :]
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
    tl.store(y + offsets, tl.maximum(values, 0.0).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sum_kernel(
    x, grad, stats, weight, bias, out, rows, channels, per_part, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Write sums over a part to out [2, parts, channels]: of the gradient before the ReLU, and of it times normalised x."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mean, inverse = tl.load(stats + c), tl.load(stats + channels + c)
    scale = tl.load(weight + c) * inverse
    offset = tl.load(bias + c) - mean * scale
    first = tl.zeros([ROWS, CHANNELS], tl.float32)
    second = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(part * per_part, tl.minimum((part + 1) * per_part, rows), ROWS):
        r = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = (r < rows)[:, None]
        offsets = r[:, None] * channels + c[None, :]
        values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        passed = (
            values * scale[None, :] + offset[None, :] > 0
        )  # recomputed as in `_normalise_kernel`, so that y need not be read
        g = tl.where(passed, tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32), 0.0)
        first += g
        second += g * (values - mean[None, :]) * inverse[None, :]
    tl.store(out + part * channels + c, tl.sum(first, 0))
    tl.store(out + (parts + part) * channels + c, tl.sum(second, 0))


@triton.jit
def _total_kernel(sums, totals, parts, channels, PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    """Write the sums over all parts to totals [2, channels]."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.arange(0, PARTS)
    inside = (p < parts)[:, None]
    pointers = sums + p[:, None] * channels + c[None, :]
    tl.store(totals + c, tl.sum(tl.load(pointers, mask=inside, other=0.0), 0))
    tl.store(totals + channels + c, tl.sum(tl.load(pointers + parts * channels, mask=inside, other=0.0), 0))


@triton.jit
def _gradient_kernel(
    x, grad, out, stats, weight, bias, totals, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Write the gradient of x through ReLU and normalisation to out."""
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mean, inverse = tl.load(stats + c), tl.load(stats + channels + c)
    scale = tl.load(weight + c) * inverse
    offset = tl.load(bias + c) - mean * scale
    first, second = tl.load(totals + c) / rows, tl.load(totals + channels + c) / rows
    inside = (r < rows)[:, None]
    offsets = r[:, None] * channels + c[None, :]
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    passed = values * scale[None, :] + offset[None, :] > 0
    values = (values - mean[None, :]) * inverse[None, :]
    g = tl.where(passed, tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32), 0.0)
    g = scale[None, :] * (g - first[None, :] - values * second[None, :])
    tl.store(out + offsets, g.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _pool_kernel(
    x, y, winners, windows, width, channels, SIDE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Write the maximum of each window of SIDE x SIDE pixels to y, and the index of the first pixel that has it to winners."""
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (r < windows)[:, None]
    # Window r is in row r // width of the windows; each such row covers SIDE rows of SIDE * width pixels.
    corner = (r // width) * (SIDE * SIDE * width) + (r % width) * SIDE
    best = tl.load(x + corner[:, None] * channels + c[None, :], mask=inside, other=0.0)
    index = tl.zeros([ROWS, CHANNELS], tl.int32)
    for step in tl.static_range(1, SIDE * SIDE):
        pixel = corner + (step // SIDE) * (SIDE * width) + step % SIDE
        value = tl.load(x + pixel[:, None] * channels + c[None, :], mask=inside, other=0.0)
        better = (value > best) | (value != value)
        best = tl.where(better, value, best)
        index = tl.where(better, step, index)
    offsets = r[:, None] * channels + c[None, :]
    tl.store(y + offsets, best, mask=inside)
    tl.store(winners + offsets, index.to(tl.uint8), mask=inside)


@triton.jit
def _unpool_kernel(
    grad, winners, out, windows, width, channels, SIDE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Write the gradient of `_pool_kernel` to out: a window's gradient at the pixel of its maximum, zero elsewhere."""
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (r < windows)[:, None]
    offsets = r[:, None] * channels + c[None, :]
    value = tl.load(grad + offsets, mask=inside, other=0.0)
    index = tl.load(winners + offsets, mask=inside, other=0).to(tl.int32)
    corner = (r // width) * (SIDE * SIDE * width) + (r % width) * SIDE
    for step in tl.static_range(0, SIDE * SIDE):
        pixel = corner + (step // SIDE) * (SIDE * width) + step % SIDE
        mine = tl.where(index == step, value, 0.0).to(out.dtype.element_ty)
        tl.store(out + pixel[:, None] * channels + c[None, :], mine, mask=inside)


class NormaliseRelu(torch.autograd.Function):
    """Batch normalisation with the statistics of the batch, then ReLU, of [B, C, H, W] in NHWC memory order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
    ) -> Tensor:
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        parts, per_part = _parts(rows)
        columns = channels // CHANNELS
        sums = x.new_empty(2, parts, channels, dtype=torch.float32)
        stats, y = x.new_empty(2, channels, dtype=torch.float32), torch.empty_like(x)
        shift = x.permute(0, 2, 3, 1)[0, 0, 0]  # the first pixel; near the mean, so that the squares lose no digits
        _sum_kernel[parts, columns](x, shift, sums, rows, channels, per_part, ROWS, CHANNELS)
        _statistics_kernel[columns,](
            sums, shift, stats, mean, var, parts, rows, channels, momentum, eps, MAX_PARTS, CHANNELS
        )
        _normalise_kernel[triton.cdiv(rows, ROWS), columns](x, y, stats, weight, bias, rows, channels, ROWS, CHANNELS)
        ctx.save_for_backward(x, stats, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, stats, weight, bias = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        parts, per_part = _parts(rows)
        columns = channels // CHANNELS
        sums = x.new_empty(2, parts, channels, dtype=torch.float32)
        totals, out = torch.empty_like(stats), torch.empty_like(x)
        _gradient_sum_kernel[parts, columns](
            x, grad, stats, weight, bias, sums, rows, channels, per_part, ROWS, CHANNELS
        )
        _total_kernel[columns,](sums, totals, parts, channels, MAX_PARTS, CHANNELS)
        _gradient_kernel[triton.cdiv(rows, ROWS), columns](
            x, grad, out, stats, weight, bias, totals, rows, channels, ROWS, CHANNELS
        )
        return out, totals[1], totals[0], None, None, None, None


class MaxPool(torch.autograd.Function):
    """Max pooling over non-overlapping windows of `side` x `side` pixels, of [B, C, H, W] in NHWC memory order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, side: int) -> Tensor:
        count, channels, height, width = x.shape
        y = _empty((count, channels, height // side, width // side), x)
        winners = torch.empty_like(y, dtype=torch.uint8)
        windows = y.numel() // channels
        grid = (triton.cdiv(windows, ROWS), channels // CHANNELS)
        _pool_kernel[grid](x, y, winners, windows, width // side, channels, side, ROWS, CHANNELS)
        ctx.save_for_backward(winners)
        ctx.side, ctx.shape = side, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (winners,) = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        channels = ctx.shape[1]
        out = _empty(ctx.shape, grad)
        windows = grad.numel() // channels
        grid = (triton.cdiv(windows, ROWS), channels // CHANNELS)
        _unpool_kernel[grid](grad, winners, out, windows, ctx.shape[3] // ctx.side, channels, ctx.side, ROWS, CHANNELS)
        return out, None


class FusedForward:
    """The forward pass of a `CustomResNet` in training, called instead of the module."""

    def __init__(self, model: CustomResNet) -> None:
        self.model = model

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W]; with torch's kernels where the image size does not fit."""
        model, (height, width) = self.model, images.shape[2:]
        if height != width or width % 8 or width > MAX_SIZE:
            logits: Tensor = model(images)
            return logits
        x = _stage(model.prep, images)
        for stage in (model.layer1, model.layer2, model.layer3):
            for part in stage:
                x = x + _stage(part.block2, _stage(part.block1, x)) if isinstance(part, Residual) else _stage(part, x)
        pooled = MaxPool.apply(x, x.shape[-1]).flatten(1)
        if model.drop_rate > 0:
            pooled = F.dropout(pooled, p=model.drop_rate, training=model.training)
        logits = model.fc(pooled)
        return logits if model.logit_scale == 1 else logits * model.logit_scale


def _stage(block: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a convolution block, whose modules are called in their order."""
    for name, part in block.named_children():
        if name == "conv":
            # The kernels take NHWC alone. This copies nothing, unless the strides of images of one channel, which are
            # those of both memory orders, made the first convolution choose the other.
            x = part(x).contiguous(memory_format=torch.channels_last)
        elif name == "bn":
            x = _normalise_relu(part, x)
        elif name == "pool":
            x = MaxPool.apply(x, 2)
    return x


def _normalise_relu(norm: Any, x: Tensor) -> Tensor:
    if not norm.training:  # frozen
        return F.relu(norm(x))
    norm.num_batches_tracked.add_(1)
    return NormaliseRelu.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps)


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _parts(rows: int) -> tuple[int, int]:
    """Return the number of parts that a sum over the rows is divided into, and the number of rows in each."""
    per_part = triton.cdiv(triton.cdiv(rows, MAX_PARTS), ROWS) * ROWS
    return triton.cdiv(rows, per_part), per_part


def why_not_fused(model: nn.Module, channels_last: bool) -> str | None:
    """Return the reason why these kernels cannot train a model, or None where they can."""
    reasons = {
        "the kernels are made for custom_resnet": not isinstance(model, CustomResNet),
        "channels_last=False": not channels_last,
    }
    if isinstance(model, CustomResNet):
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        reasons |= {
            f"the numbers of channels must be multiples of {CHANNELS}": any(
                norm.num_features % CHANNELS for norm in norms
            ),
            "every normalisation must be an affine BatchNorm2d with running statistics": any(
                type(norm) is not nn.BatchNorm2d
                or norm.momentum is None
                or not norm.affine
                or not norm.track_running_stats
                for norm in norms
            ),
            "the global pooling must be max pooling, followed by a classifier": model.global_pool.pool_type != "max"
            or model.num_classes == 0,
            "gradient checkpointing computes the stages twice": model.grad_checkpointing,
        }
    return next((reason for reason, applies in reasons.items() if applies), None)
