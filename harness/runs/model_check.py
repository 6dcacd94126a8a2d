"""Try a model before a run writes anything: an evaluation, and an update's forward and backward pass in training mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from harness.config.settings import Config
from harness.data.image_io import RGB
from harness.data.loaders import TrainLoader
from harness.models.outputs import split_logits, weighted_loss
from harness.training.device import autocast, eval_mode, no_cudnn_benchmark
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
        shape: of an image, (channels, height, width).
        train: its batches tell the smallest part of a batch that the model meets.

    Raises:
        UsageError: in one line, what is wrong.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"{config.model} has no parameter to train: each has requires_grad=False")
    trial = _Trial(config.model, model, shape, classes, device, precision)
    images = min(2, smallest_part(train, config.grad_accumulation, processes.world_size))
    with no_cudnn_benchmark(), _unchanged(model):
        trial.evaluate()
        trial.train(images)
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


@dataclass(frozen=True)
class _Trial:
    """A model, and the images and precision that it is tried with."""

    name: str
    model: nn.Module
    shape: tuple[int, int, int]
    classes: int
    device: torch.device
    precision: torch.dtype | None

    def evaluate(self) -> None:
        """Pass one image through the model, so that an image size that does not fit is found before training."""
        try:
            with eval_mode(self.model), torch.no_grad(), autocast(self.device, self.precision):
                outputs = self.model(torch.zeros(1, *self.shape, device=self.device))
        except UsageError as error:
            raise UsageError(f"{self.name} in evaluation: {error}") from None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            channels = f"make it take in_chans={self.shape[0]}, or " if self.shape[0] != RGB else ""
            raise UsageError(
                f"{self.name} cannot take images of {self._size} pixels: {_reason(error)}; {channels}set --image-size or --model-args img_size={self.shape[1]}"
            ) from error
        self._check_width(outputs)

    def train(self, images: int) -> None:
        """Compute the gradients of the smallest part of a batch."""
        self.model.train()
        labels = torch.arange(images, device=self.device) % self.classes
        try:
            with autocast(self.device, self.precision):
                logits = split_logits(self.model(torch.randn(images, *self.shape, device=self.device)))
            for each in logits:
                self._check_width(each)
            weighted_loss([F.cross_entropy(each.float(), labels) for each in logits]).backward()
        except UsageError as error:
            raise UsageError(f"{self.name} in training: {error}") from None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if SINGLE_VALUE in str(error):
                raise UsageError(
                    f"batch normalisation in {self.name} cannot use {images} image at a time; set a larger --batch-size, a smaller --grad-accumulation, or --drop-last True"
                ) from error
            raise UsageError(
                f"{self.name} cannot be trained on images of {self._size} pixels: {_reason(error)}"
            ) from error

    @property
    def _size(self) -> str:
        return f"{self.shape[2]} x {self.shape[1]}" + (f" x {self.shape[0]}" if self.shape[0] != RGB else "")

    def _check_width(self, logits: torch.Tensor) -> None:
        if logits.ndim != 2:
            raise UsageError(
                f"{self.name} returns {list(logits.shape)} instead of logits [images, classes]; it is not an image classifier"
            )
        if logits.shape[1] != self.classes:
            raise UsageError(
                f"{self.name} returns {list(logits.shape)} instead of logits for {self.classes} classes; its head must have num_classes={self.classes} outputs"
            )


def _reason(error: Exception) -> str:
    text = first_line(error).rstrip(".;")
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
