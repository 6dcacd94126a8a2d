"""Make up for classes of unlike frequency: weights of the classes in the loss, and epochs in which each comes equally often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.config.conversion import BALANCED
from harness.config.settings import Config
from harness.utils.errors import UsageError, did_you_mean
from harness.utils.seeding import seed_for

MAKE_UP = "--class-weights balanced or --sampling balanced trains rare classes more"


def most_frequent_share(labels: np.ndarray) -> float:
    """Return the share of the most frequent class, 0..1: the accuracy of always naming it.

    Args:
        labels: int64 [N], N > 0.
    """
    return float(np.bincount(labels).max()) / len(labels)


def positive_factor(config: Config, weights: Tensor | None) -> np.ndarray | float:
    """Return the weight in the loss of the images that have a class, where they have several, float64 [C] or one for all.

    Args:
        weights: those of `class_weights`, which take the place of the `pos_weight` in `loss_args`.
    """
    return float(config.loss_args.get("pos_weight", 1.0)) if weights is None else weights.double().numpy()


def class_weights(config: Config, labels: np.ndarray, classes: Sequence[str], outputs: int) -> Tensor | None:
    """Return the weights of the setting `class_weights`, float32 [outputs] on the CPU; None where it is empty.

    They are scaled so that their mean over the training images, as `sampling` draws them, is 1: the loss keeps its size, and
    with it the learning rate its meaning. `balanced` gives a class of n of N images the weight N / (C n), as scikit-learn
    does; a class without training images gets 1.

    Where images have several labels, they are weights of the images that have a class against those that have it not, and
    are taken as they are given: `balanced` gives a class of n of N images (N - n) / n, so that both have the same in total.

    Args:
        labels: of the training split, int64 [N], or uint8 [N, C] where images have several.
        outputs: of the model, which may be more than there are classes.

    Raises:
        UsageError: the weights do not fit the classes, or all images would have a weight of 0.
    """
    given = config.class_weights
    if not given:
        return None
    if labels.ndim == 2:
        return _positive_weights(given, labels, classes, outputs)
    counts = np.bincount(labels, minlength=outputs).astype(float)
    if given == BALANCED:
        weights = np.ones(outputs)
        present = counts > 0
        weights[present] = 1 / counts[present]
        is_fixed = ~present
    else:
        assert not isinstance(given, str)
        weights = _given_weights(given, classes, outputs)
        is_fixed = np.zeros(outputs, bool)
    drawn = (counts > 0).astype(float) if config.sampling == "balanced" else counts
    if not (mean := float((drawn * weights).sum() / drawn.sum())):
        raise UsageError("class_weights gives all classes of the training images the weight 0; raise one of them")
    return torch.from_numpy(np.where(is_fixed, 1.0, weights / mean)).float()


def _positive_weights(
    given: str | tuple[float, ...] | dict[str, float], labels: np.ndarray, classes: Sequence[str], outputs: int
) -> Tensor:
    """Return the weight of the images that have a class, float32 [outputs]."""
    if isinstance(given, str):
        counts = labels.sum(0, dtype=np.int64)
        weights = np.where(counts > 0, (len(labels) - counts) / counts.clip(min=1), 1.0)
        # Of a class that all images have, a weight of 0 would forget it.
        weights = np.append(np.where(weights > 0, weights, 1.0), np.ones(outputs - len(counts)))
    else:
        weights = _given_weights(given, classes, outputs)
    return torch.from_numpy(weights).float()


def _given_weights(given: tuple[float, ...] | dict[str, float], classes: Sequence[str], outputs: int) -> np.ndarray:
    if isinstance(given, dict):
        if unknown := [name for name in given if name not in classes]:
            raise UsageError(
                f"class_weights: the data has no class {unknown[0]!r}{did_you_mean(unknown[0], classes)}; it has {', '.join(classes[:5])}{' ...' * (len(classes) > 5)}"
            )
        by_class = [given.get(name, 1.0) for name in classes]
    elif len(given) != len(classes):
        raise UsageError(
            f"class_weights has {len(given)} numbers, and the data {len(classes)} classes; give one for each, or some by name, such as {classes[0]}=2"
        )
    else:
        by_class = list(given)
    return np.array([*by_class, *[1.0] * (outputs - len(classes))])


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> Tensor:
    """Return the images of an epoch in which every class comes equally often, int64 [N] on the CPU, in random order.

    Of N images in C classes each class has N // C or one more. An image of a rare class comes several times, as often as
    every other one of its class or once more; of a frequent class a random part comes, another one in every epoch.

    Args:
        labels: int64 [N].
    """
    generator = torch.Generator().manual_seed(seed_for(seed, "balanced order", epoch))
    by_class = torch.from_numpy(np.argsort(labels, kind="stable")).split(
        np.unique(labels, return_counts=True)[1].tolist()
    )
    each, remainder = divmod(len(labels), len(by_class))
    gets_one_more = torch.randperm(len(by_class), generator=generator) < remainder
    drawn = []
    for members, one_more in zip(by_class, gets_one_more.tolist(), strict=True):
        wanted = each + one_more
        rounds = -(-wanted // len(members))
        shuffled = torch.rand(rounds, len(members), generator=generator).argsort(1)  # all of them in each round
        drawn.append(members[shuffled.flatten()[:wanted]])
    return torch.cat(drawn)[torch.randperm(len(labels), generator=generator)]


def occurrences(order: np.ndarray) -> np.ndarray:
    """Return how often each item of an order came before, int64 [N]: 0 where it comes for the first time."""
    by_item = np.argsort(order, kind="stable")
    positions = np.arange(len(order))
    is_first = np.diff(order[by_item], prepend=-1) != 0
    counts = np.empty(len(order), np.int64)
    counts[by_item] = positions - np.maximum.accumulate(np.where(is_first, positions, 0))
    return counts
