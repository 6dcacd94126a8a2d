"""Try a model before a run writes anything: an evaluation, and an update's forward and backward pass in training mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from harness.config.settings import Config
from harness.data.loaders import TrainLoader
from harness.models.outputs import split_logits, weighted_loss
from harness.training.device import autocast, eval_mode
from harness.training.distributed import SingleProcess
from harness.training.rng import preserve_rng_state
from harness.utils.errors import UsageError, first_line, is_out_of_memory

SINGLE_VALUE = "more than 1 value per channel"  # torch's text for a batch that batch normalisation cannot use


def check_model(
    config: Config,
    model: nn.Module,
    shape: tuple[int, int, int],
    classes: int,
    device: torch.device,
    precision: torch.dtype | None,
    train: TrainLoader,
    processes: SingleProcess,
) -> None:
    """Refuse a model that cannot be evaluated or trained as the settings demand; it is not changed.

    Args:
        model: on its device.
        shape: of an image, (3, height, width).
        train: its batches tell the smallest part of a batch that the model meets.

    Raises:
        UsageError: in one line, what is wrong.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"{config.model} has no parameter to train: each has requires_grad=False")
    _try_evaluation(config, model, shape, classes, device, precision)
    images = min(2, smallest_part(train, config.grad_accumulation, processes.world_size))
    with _unchanged(model):
        _try_training(config, model, shape, classes, device, precision, images)
        without_gradient = [
            name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
        ]
    if processes.world_size > 1 and without_gradient:
        raise UsageError(
            f"{config.model} has {len(without_gradient)} parameters without a gradient, the first is {without_gradient[0]}; under torchrun each must have one, so set requires_grad=False on them in the model"
        )


def smallest_part(train: TrainLoader, grad_accumulation: int, world_size: int) -> int:
    """Return the number of images in the smallest part of a batch that goes through the model at once."""
    smallest = min(train.size(0), train.size(train.steps - 1)) // world_size
    return max(1, smallest // grad_accumulation)


def _try_evaluation(
    config: Config,
    model: nn.Module,
    shape: tuple[int, int, int],
    classes: int,
    device: torch.device,
    precision: torch.dtype | None,
) -> None:
    """Pass one image through the model, so that an image size that does not fit is found before training."""
    size = f"{shape[2]} x {shape[1]}"
    try:
        with eval_mode(model), torch.no_grad(), autocast(device, precision):
            outputs = model(torch.zeros(1, *shape, device=device))
    except UsageError as error:
        raise UsageError(f"{config.model} in evaluation: {error}") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(
            f"{config.model} cannot take images of {size} pixels: {_reason(error)}; set --image-size or --model-args img_size={shape[1]}"
        ) from error
    _check_width(config, outputs, classes)


def _try_training(
    config: Config,
    model: nn.Module,
    shape: tuple[int, int, int],
    classes: int,
    device: torch.device,
    precision: torch.dtype | None,
    images: int,
) -> None:
    """Compute the gradients of the smallest part of a batch."""
    model.train()
    labels = torch.arange(images, device=device) % classes
    try:
        with autocast(device, precision):
            logits = split_logits(model(torch.randn(images, *shape, device=device)))
        for each in logits:
            _check_width(config, each, classes)
        weighted_loss([F.cross_entropy(each.float(), labels) for each in logits]).backward()
    except UsageError as error:
        raise UsageError(f"{config.model} in training: {error}") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if SINGLE_VALUE in str(error):
            raise UsageError(
                f"batch normalisation in {config.model} cannot use {images} image at a time; set a larger --batch-size, a smaller --grad-accumulation, or --drop-last True"
            ) from error
        raise UsageError(
            f"{config.model} cannot be trained on images of {shape[2]} x {shape[1]} pixels: {_reason(error)}"
        ) from error


def _check_width(config: Config, logits: torch.Tensor, classes: int) -> None:
    if logits.ndim != 2:
        raise UsageError(
            f"{config.model} returns {list(logits.shape)} instead of logits [images, classes]; it is not an image classifier"
        )
    if logits.shape[1] != classes:
        raise UsageError(
            f"{config.model} returns {list(logits.shape)} instead of logits for {classes} classes; its head must have num_classes={classes} outputs"
        )


def _reason(error: Exception) -> str:
    text = first_line(error)
    return text if isinstance(error, RuntimeError | ValueError | AssertionError) else f"{type(error).__name__}: {text}"


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restore the buffers, the modes of the modules and the random generators; leave no gradients behind."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with eval_mode(model), preserve_rng_state():
            yield
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for module, name, buffer, former in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, former):
                    buffer.copy_(former)
