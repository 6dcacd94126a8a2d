"""Rectangles that are erased of whole batches of training images, by timm's RandomErasing: Cutout and random erasing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.data.augment import Augment, Erasing
from harness.data.image_transforms import seeded_rng
from harness.utils.seeding import seed_for

if TYPE_CHECKING:
    from timm.data.random_erasing import RandomErasing

Shard = Callable[[int], slice]  # the index of a batch in its epoch -> the images of it that this process trains on


def whole(batch: int) -> slice:
    """Return all images of a batch."""
    return slice(0, None)


class SeededErasing:
    """timm's RandomErasing of normalised batches, as a function of (seed, epoch, batch) and of an image's place in it."""

    def __init__(self, erase: RandomErasing, seed: int, shard: Shard = whole) -> None:
        """Create it; `shard` maps a batch's index in the epoch to the images in it that this process trains on."""
        self.erase, self.seed, self.epoch, self.batch = erase, seed, 0, 0
        self.shard = shard

    def start(self, epoch: int, batch: int) -> None:
        """Set the batch that the next call is for."""
        self.epoch, self.batch = epoch, batch

    def __call__(self, images: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """Erase rectangles of each of the images [B, channels, H, W], in place; of views [B, V, channels, H, W] not in the first.

        Args:
            positions: the images' places in the shard of this process, increasing; None: they are all of it.
        """
        first = self.shard(self.batch).start or 0
        positions = range(len(images)) if positions is None else positions
        with self._seeded():
            place, unseen = 0, torch.empty_like(images[:1])[0] if len(images) else images
            for image, position in zip(images, positions, strict=True):
                while place < first + position:  # draw what is drawn for the images before it
                    self.erase(unseen)
                    place += 1
                self.erase(image)
                place += 1
        self.batch += 1
        return images

    def _batch_seed(self) -> int:
        raise NotImplementedError

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed the generators that are drawn from for this batch, and restore them afterwards."""
        state = random.getstate()
        random.seed(self._batch_seed())
        try:
            yield
        finally:
            random.setstate(state)


class TimmCutout(SeededErasing):
    """timm's RandomErasing, set to one square of zeros in every image."""

    def __init__(
        self, side: int, size: int, seed: int, device: torch.device, shard: Shard = whole, views: int = 1
    ) -> None:
        from timm.data.random_erasing import RandomErasing

        area = side**2 / size**2
        erase = RandomErasing(
            1.0, area, area, min_aspect=1.0, max_aspect=1.0, mode="const", num_splits=_splits(views), device=device
        )
        super().__init__(erase, seed, shard)

    def _batch_seed(self) -> int:
        return seed_for(self.seed, "cutout", self.epoch, self.batch)


class TimmErasing(SeededErasing):
    """timm's RandomErasing as the settings describe it."""

    def __init__(self, erasing: Erasing, seed: int, device: torch.device, shard: Shard = whole, views: int = 1) -> None:
        from timm.data.random_erasing import RandomErasing

        # Colours are drawn where the images are; the generator of any other device could not be restored.
        drawn_on = device if device.type == "cuda" else torch.device("cpu")
        low, high = erasing.area
        erase = RandomErasing(
            erasing.probability,
            low,
            high,
            mode=erasing.mode,
            max_count=erasing.count,
            num_splits=_splits(views),
            device=drawn_on,
        )
        super().__init__(erase, seed, shard)
        self._device = drawn_on

    def _batch_seed(self) -> int:
        return seed_for(self.seed, "erase", self.epoch, self.batch)

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        seed = self._batch_seed()
        with seeded_rng(seed):
            if self._device.type != "cuda" or self.erase.mode == "const":
                yield
                return
            state = torch.cuda.get_rng_state(self._device)
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
            try:
                torch.cuda.default_generators[index].manual_seed(seed)
                yield
            finally:
                torch.cuda.set_rng_state(state, self._device)


def _splits(views: int) -> int:
    """Return timm's `num_splits`, with which RandomErasing leaves out the first of the views that it gets at once."""
    return views if views > 1 else 0


def make_erasing(
    augment: Augment, size: int, seed: int, device: torch.device, shard: Shard, *, with_cutout: bool
) -> list[SeededErasing]:
    """Return what is to be erased of each normalised batch, in this order.

    Args:
        with_cutout: Cutout too, where it has not been done before.
    """
    steps: list[SeededErasing] = []
    if with_cutout and augment.cutout:
        steps.append(TimmCutout(augment.cutout, size, seed, device, shard, augment.views))
    if augment.erasing is not None:
        steps.append(TimmErasing(augment.erasing, seed, device, shard, augment.views))
    return steps
