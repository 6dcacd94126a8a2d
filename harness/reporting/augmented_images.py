"""The first training images as the network sees them: cropped, augmented, erased and mixed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from harness.config.settings import Config
from harness.data.augment import make_augment
from harness.data.loaders import TrainLoader
from harness.data.preprocess import Preprocess
from harness.evaluation.multilabel import NO_LABEL
from harness.reporting.evaluation_report import to_uint8
from harness.reporting.figures.augmented import augmented_grid
from harness.reporting.figures.training_curves import as_image
from harness.tracking.records import Image
from harness.training.learner import Mix
from harness.utils.text import counted, percent

NAME = "augmented.png"


def draw_augmented(
    train: TrainLoader, mix: Mix | None, config: Config, preprocess: Preprocess, classes: Sequence[str], path: Path
) -> Image:
    """Draw the first `gallery` images of the first batch of the first epoch, as the first update trains on them.

    They are a function of the settings and the data: the loader makes these images alone, and training makes them again.

    Args:
        mix: what mixes a batch before the update, see `make_mixup`.
    """
    images, targets = train.preview(config.gallery, with_partners=mix is not None)
    if mix is not None:
        images, targets = mix(images, targets, 0)
    views = images.shape[1] if images.ndim == 5 else 1
    images, targets = images.flatten(0, -4), targets.repeat_interleave(views, 0)  # those of an image beside each other
    images, targets = images[: config.gallery].float().cpu(), targets[: config.gallery].cpu()
    pictures = [to_uint8(image) for image in preprocess.denormalise(images)]
    steps = make_augment(config, preprocess).describe()
    steps += [f"{name} {value:g}" for name, value in (("mixup", config.mixup), ("cutmix", config.cutmix)) if value]
    subtitle = f"First batch of the first epoch. Augmentation: {', '.join(steps) or 'none'}."
    title = f"{counted(len(pictures), 'training image', 'training images')} as the network sees them"
    text_of = multilabel_text if config.is_multilabel else target_text
    smoothing = config.label_smoothing if mix is not None or not config.is_multilabel else 0.0
    labels = [text_of(target, classes, smoothing) for target in targets]
    if views > 1:
        labels = [f"{label}\nview {number % views + 1}" for number, label in enumerate(labels)]
    return as_image(augmented_grid(pictures, labels, path, title=title, subtitle=subtitle), subtitle)


def target_text(target: Tensor, classes: Sequence[str], smoothing: float = 0.0) -> str:
    """Return the class of an image; of one that is mixed of two classes, both with their shares in two lines.

    Args:
        target: int64 [], a label, or float [classes], what the loss is computed with.
        smoothing: the label smoothing that is in it.
    """
    if target.ndim == 0:
        return classes[int(target)]
    shares = (target - smoothing / len(target)).clamp(min=0)
    values, indices = (shares / shares.sum()).sort(descending=True, stable=True)
    if len(values) == 1 or values[0] > 0.995:
        return classes[int(indices[0])]
    pairs = zip(values[:2].tolist(), indices[:2].tolist(), strict=True)
    return "\n".join(f"{classes[index]} {percent(value, 0)}" for value, index in pairs)


def multilabel_text(target: Tensor, classes: Sequence[str], smoothing: float = 0.0) -> str:
    """Return the classes of an image that may have several, in at most three lines; of mixed images with their shares.

    Args:
        target: [classes], of 0 and 1, or what the loss is computed with.
        smoothing: the label smoothing that is in it, by which timm moves each label towards 0.5.
    """
    shares = ((target.float() - smoothing / 2) / (1 - smoothing)).tolist()
    lines = [
        name if share > 0.995 else f"{name} {percent(share, 0)}"
        for name, share in zip(classes, shares, strict=True)
        if share > 0.005
    ]
    return "\n".join([*lines[:2], f"and {len(lines) - 2} more"] if len(lines) > 3 else lines) or NO_LABEL
