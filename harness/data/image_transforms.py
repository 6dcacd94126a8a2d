"""Random transforms of single images, each a function of a seed: timm's with torchvision's, and albumentations'."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.config.augmentation import NO_POLICY
from harness.data.augment import Augment
from harness.data.image_io import GREY, Picture, as_pixels, to_channels
from harness.data.own_transforms import OwnTransform
from harness.data.preprocess import Preprocess
from harness.utils.errors import DataError, UsageError, first_line

CV2_BORDER_TYPES = {"constant": 0, "edge": 1, "reflect": 4}


@contextmanager
def seeded_rng(seed: int, *, numpy: bool = False) -> Iterator[None]:
    """Seed the global generators of Python and of torch on the CPU inside the context, and restore them afterwards.

    Args:
        numpy: those of NumPy too.
    """
    python, torch_cpu = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state() if numpy else None
    try:
        _seed(seed, numpy)
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(torch_cpu)
        if numpy_state is not None:
            np.random.set_state(numpy_state)


def _seed(seed: int, numpy: bool = False) -> None:
    random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also query the GPUs
    if numpy:
        np.random.seed(seed % 2**32)


class TimmTransform:
    """torchvision's and timm's random transforms of one image, as a function of a seed.

    Normalisation, Cutout and random erasing (`erasing`) follow on the device, for whole batches.

    Attributes:
        own: transforms of plug-ins, applied last.
        draws_numpy: whether the transforms draw from NumPy's global generator, as timm's policies do, and those of
            plug-ins may.
    """

    normalised = False

    def __init__(self, augment: Augment, preprocess: Preprocess, own: Sequence[OwnTransform] = ()) -> None:
        self.augment, self.preprocess, self.own = augment, preprocess, tuple(own)
        self.draws_numpy = augment.policy != NO_POLICY or bool(own)
        self.base, self.rest = timm_compose(augment, preprocess)

    def __call__(self, image: Picture, seed: int) -> np.ndarray:
        """Return uint8 [C, size, size], or [views, C, size, size]. Call it inside `seeded_rng`, since it seeds the global generators.

        Raises:
            DataError: a transform of a plug-in fails, or returns no image of its size.
        """
        if self.augment.crop != "resized":
            image = self.preprocess.square(image)
        generator = np.random.default_rng(seed) if self.own else None
        if isinstance(image, np.ndarray):  # of other channels than Pillow has: each with the same random numbers
            bands = [self._band(Image.fromarray(band), seed) for band in np.moveaxis(image, 2, 0)]
            return self._with_own(np.stack(bands, 2), generator)
        _seed(seed, self.draws_numpy)
        cropped = self.base(image)
        if self.augment.views == 1:
            return self._augmented(cropped, generator)
        # The order in which timm's AugMixDataset makes and draws them.
        others = [self._augmented(cropped, generator) for _ in range(self.augment.views - 1)]
        return np.stack([_channels_first(as_pixels(cropped)), *others])

    def _band(self, band: Image.Image, seed: int) -> np.ndarray:
        """Return one channel of an image, cropped, flipped and transformed, uint8 [size, size]."""
        _seed(seed, self.draws_numpy)
        return np.asarray(self.rest(self.base(band)))

    def _augmented(self, image: Image.Image, generator: np.random.Generator | None) -> np.ndarray:
        """Return a cropped and flipped image with all other transforms, uint8 [C, size, size]."""
        return self._with_own(as_pixels(self.rest(image)), generator)

    def _with_own(self, pixels: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
        """Return an image, uint8 [size, size, C], with the transforms of plug-ins, uint8 [C, size, size]."""
        if generator is not None:
            pixels = pixels.copy()
            for transform in self.own:
                pixels = transform(pixels, generator)
        return _channels_first(pixels)


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def timm_compose(augment: Augment, preprocess: Preprocess) -> tuple[Any, Any]:
    """Return timm's training transform up to the image that is then normalised: crop and flips, and what follows them.

    The padded crop is in place of timm's where that is set.
    """
    from timm.data.transforms_factory import transforms_imagenet_train
    from torchvision import transforms

    jitter = augment.color_jitter
    first, second, _ = transforms_imagenet_train(
        preprocess.size,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=0.5 if augment.random_flip else 0.0,
        vflip=augment.vflip,
        color_jitter=None if not jitter else jitter[0] if len(jitter) == 1 else jitter,
        color_jitter_prob=None if augment.color_jitter_prob == 1 else augment.color_jitter_prob,
        force_color_jitter=True,  # it is off unless it is set, so that it has been asked for
        grayscale_prob=augment.grayscale,
        gaussian_blur_prob=augment.blur,
        auto_augment=None if augment.policy == NO_POLICY else augment.policy,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        normalize=False,
        separate=True,
    )
    if augment.policy != NO_POLICY:
        allow_black_posterize(second.transforms[0])
    crop, *flips = first.transforms
    if augment.crop == "pad":
        crop = transforms.RandomCrop(preprocess.size, augment.padding, padding_mode=augment.padding_mode)
    crops = [] if augment.crop == "none" else [crop]
    return transforms.Compose([*crops, *flips]), transforms.Compose(second.transforms)


def allow_black_posterize(policy: Any) -> None:
    """Let the operations of a policy of timm posterize to 0 bits, which is a black image; Pillow 13 refuses that.

    timm's own policies ask for it: `v0` always, `rand` with `inc1` at the greatest magnitude.
    """
    layers = policy.policy if hasattr(policy, "policy") else [policy.ops]
    for operation in (operation for layer in layers for operation in layer):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    from timm.data.auto_augment import posterize

    return posterize(image, bits, **options) if bits >= 1 else Image.new(image.mode, image.size)


class AlbumentationsTransform:
    """albumentations' random transforms of one image, as a function of a seed.

    albumentations' own seeding repeats the same stream in every worker process and epoch, and `set_random_seed` gives
    all transforms of a pipeline the same seed, which correlates them (a crop at the top is then never mirrored).
    Therefore each image gets one generator, which the transforms draw from in turn.
    """

    normalised, draws_numpy = True, False

    def __init__(self, augment: Augment, preprocess: Preprocess) -> None:
        self.augment, self.preprocess = augment, preprocess
        self._compose: Any = None

    def __call__(self, image: Picture, seed: int) -> np.ndarray:
        """Return float32 [C, size, size], normalised and with its cutout.

        Raises:
            DataError: a pipeline of the user's gives no such image.
        """
        if self._compose is None:
            self._compose = albumentations_compose(self.augment, self.preprocess)
        if self.augment.pipeline:
            image = to_channels(image, self.preprocess.channels)
        elif self.augment.crop != "resized":
            image = self.preprocess.square(image)
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311 - not for secrets
        pixels = as_pixels(image)
        try:
            augmented = self._compose(image=pixels)["image"]
        except Exception as error:
            if not self.augment.pipeline:
                raise
            raise DataError(
                f"augment_pipeline fails on an image of {pixels.shape[1]} x {pixels.shape[0]}: {first_line(error)[:200]}"
            ) from None
        if self.augment.pipeline:
            return self._network_input(augmented)
        return np.ascontiguousarray(augmented.transpose(2, 0, 1), dtype=np.float32)

    def _network_input(self, result: Any) -> np.ndarray:
        """Return what a pipeline of the user's gives as float32 [C, size, size].

        Bytes are resized and cropped as in evaluation where they have another size, and normalised; other numbers are
        taken as normalised by the pipeline itself.
        """
        if isinstance(result, torch.Tensor):  # of ToTensorV2
            result = result.permute(1, 2, 0).numpy()
        size, channels = self.preprocess.size, self.preprocess.channels
        result = as_pixels(result) if channels == GREY else result
        if result.ndim == 3 and result.shape[2] == channels:
            if result.dtype == np.uint8 and result.shape[:2] == (size, size):
                pixels = torch.from_numpy(np.ascontiguousarray(result.transpose(2, 0, 1)))
                return self.preprocess.normalise(pixels[None])[0].numpy()
            if result.dtype == np.uint8:
                return self.preprocess.image(np.ascontiguousarray(result)).numpy()
            if result.shape[:2] == (size, size):
                return np.ascontiguousarray(result.transpose(2, 0, 1), dtype=np.float32)
        shape = " x ".join(map(str, result.shape))
        raise DataError(
            f"augment_pipeline gives {shape} {result.dtype}; need {size} x {size} x {channels}, or uint8 of any size: end it with Resize, or leave Normalize and ToFloat out"
        )


def albumentations_compose(augment: Augment, preprocess: Preprocess) -> Any:
    """Return the albumentations pipeline: crop, flips, normalisation and Cutout, or the one that the user gives.

    Raises:
        UsageError: the package is not installed, or it does not know a transform or an argument of the user's pipeline.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would look for a newer version on the network
    try:
        import albumentations
        import cv2
    except ImportError:
        raise UsageError(
            "augment=albumentations needs the package albumentations; run pip install albumentations, or set --augment timm"
        ) from None
    cv2.setNumThreads(0)  # the loader runs several processes already
    if augment.pipeline:
        return _read_pipeline(augment.pipeline)
    size, steps = preprocess.size, []
    if augment.crop == "pad":
        if augment.padding:
            steps.append(
                albumentations.Pad(augment.padding, fill=0, border_mode=CV2_BORDER_TYPES[augment.padding_mode], p=1)
            )
        steps.append(albumentations.RandomCrop(size, size, p=1))
    elif augment.crop == "resized":
        codes = {"nearest": cv2.INTER_NEAREST, "bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}
        interpolation = codes.get(preprocess.interpolation, cv2.INTER_LINEAR)
        steps.append(
            albumentations.RandomResizedCrop(
                (size, size), augment.scale, augment.ratio, interpolation=interpolation, p=1
            )
        )
    if augment.random_flip:
        steps.append(albumentations.HorizontalFlip(p=0.5))
    if augment.vflip:
        steps.append(albumentations.VerticalFlip(p=augment.vflip))
    steps.append(albumentations.Normalize(preprocess.mean, preprocess.std, max_pixel_value=255, p=1))
    if augment.cutout:
        side = (augment.cutout, augment.cutout)
        steps.append(albumentations.CoarseDropout((1, 1), side, side, fill=0, p=1))
    return albumentations.Compose(steps)


def _read_pipeline(serialised: Mapping[str, Any]) -> Any:
    """Return the pipeline of `albumentations.to_dict`, which names transforms of albumentations and their arguments.

    Raises:
        UsageError: a transform or an argument is unknown, or has a value that is not allowed.
    """
    import albumentations

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipeline = albumentations.from_dict(serialised)
    except KeyError as error:
        raise UsageError(
            f"augment_pipeline: albumentations has no transform {error.args[0]!r}, or its key is missing"
        ) from None
    except Exception as error:  # noqa: BLE001 - its constructors raise anything
        raise UsageError(f"augment_pipeline: {' '.join(str(error).split())[:200] or first_line(error)}") from None
    for warning in caught:  # albumentations only warns of an argument that it does not know, and leaves it out
        if isinstance(warning.message, Warning) and "not valid for transform" in str(warning.message):
            raise UsageError(f"augment_pipeline: {first_line(warning.message)}")
    if not isinstance(pipeline, albumentations.Compose):
        pipeline = albumentations.Compose([pipeline])
    return pipeline
