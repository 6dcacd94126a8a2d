"""What the figures of a run are worth, and what to do: too few updates, an accuracy at chance, a small test split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from harness.config.automatic import FROM_SCRATCH, IMBALANCE, LEAST_BATCH, UPDATES_PER_EPOCH, Choice, power_of_two
from harness.config.names import SELECTION_TEXTS, main_metric
from harness.data.balance import MAKE_UP, most_frequent_share
from harness.data.listing import short_list
from harness.data.multilabel import class_counts
from harness.models.available_weights import has_weights
from harness.runs.components import Components
from harness.tracking.records import Scalar
from harness.training.loop import TrainerState
from harness.utils.multilabel import FIXED_THRESHOLD
from harness.utils.stats import CONFIDENCE, chance_probability, share_interval
from harness.utils.text import percent

LEAST_UPDATES, ENOUGH_UPDATES = 100, 500
WIDE = 0.05  # half the width of an interval of the accuracy, from which it is reported
FEW_IMAGES = 5  # of a class in the test split
LEAST_BEHIND = 0.01  # by which a moving average is below the weights that it is of, from which it is reported


SELECTED_ON_VALIDATION = "there are no test images: the validation accuracy has selected the epoch that it is reported for, so it is optimistic; add a test split"


CHOSEN_ON_VALIDATION = "there are no test images: the epoch and the thresholds of the classes were chosen on the validation images that they are reported for, so the figures are optimistic; add a test split"


def few_updates(
    steps: int, epochs: int, images: int, batch_size: int, *, has_learnt: bool = False, figure: str = "accuracy"
) -> str:
    """Return a line on a run that makes too few optimizer updates to learn much, or none; empty where there are enough.

    Args:
        has_learnt: whether its result is known to be above chance: more updates may still bring more.
        figure: by which the result is judged.
    """
    if steps == 0:
        return f"nothing is trained (epochs={epochs}): the result is that of the weights that the run starts with; set --epochs 1 or more to train"
    if steps >= LEAST_UPDATES:
        return ""
    remedy = f"set --epochs {math.ceil(ENOUGH_UPDATES * epochs / steps)} or more"
    fitting = power_of_two(max(images // UPDATES_PER_EPOCH, LEAST_BATCH))
    if fitting < batch_size:
        remedy = f"set a smaller --batch-size, for example {fitting}, or more --epochs"
    return (
        f"{steps} update{'s' * (steps > 1)} in all ({epochs} epoch{'s' * (epochs > 1)}, batches of {batch_size} from {images:,} images) "
        f"are {'few' if has_learnt else 'too few to learn much'}; {remedy}{f' if the {figure} is not enough' * has_learnt}"
    )


def missing_weights(model: str, choices: Mapping[str, Choice]) -> str:
    """Return a line on a model that was to start from its pretrained weights, which cannot be had; else empty.

    Args:
        choices: those that were made for the settings that are `auto`.
    """
    choice = choices.get("pretrained")
    if choice is None or choice.value or not choice.reason.startswith(FROM_SCRATCH) or not has_weights(model):
        return ""
    reason = choice.reason.removeprefix(FROM_SCRATCH)
    return f"{model} is trained from scratch, since {reason}; from pretrained weights few images give a better model in fewer epochs: download them where there is a network, or give weights with --init"


def at_chance(
    split: str, accuracy: float, labels: np.ndarray, train_accuracy: float, train_images: int, steps: int
) -> str:
    """Return a line on an accuracy that is not above that of always naming the most frequent class; else empty.

    It is above if so many correct predictions would have a probability of at most 5 % at chance (one-sided binomial test).

    Args:
        labels: of the split that the accuracy is of, int64 [N].
        train_accuracy: of the last epoch over `train_images`, which says whether anything was learnt.
        steps: updates of the run.
    """
    total = len(labels)
    chance = most_frequent_share(labels)
    correct = round(accuracy * total)
    if chance_probability(correct, total, chance) <= 1 - CONFIDENCE:
        return ""
    if chance < 1 and chance_probability(total, total, chance) > 1 - CONFIDENCE:
        return f"{total} {split} image{'s' * (total > 1)} are too few to tell any accuracy from chance; set a larger --test-fraction, or add images"
    start = f"the {split} accuracy of {percent(accuracy)} is at chance: always naming the most frequent class of these images gives {percent(chance)}"
    if chance == 1:
        return f"all {total} {split} images have one class, so their accuracy says nothing about the others; hold out other images"
    if steps < LEAST_UPDATES:
        return f"{start}, which so few updates explain"
    training = f"The training accuracy is {percent(train_accuracy)}"
    if train_accuracy > chance + (1 - chance) / 2:
        return f"{start}. {training}, so the {split} images differ from the training images, or too few of these are there; check the labels, or add images"
    if chance_probability(round(train_accuracy * train_images), train_images, chance) <= 1 - CONFIDENCE:
        return f"{start}. {training}: something is learnt, which more epochs may bring to the {split} images"
    return f"{start}. {training}, so nothing is learnt; check the labels, and the learning rate with harness lr-find"


def interval_line(split: str, accuracy: float, total: int) -> str:
    """Return a line on an accuracy of so few images that it is not known well; empty where it is."""
    low, high = share_interval(accuracy, total)
    if high - low < 2 * WIDE:
        return ""
    return f"{total} {split} images: the true accuracy lies between {percent(low)} and {percent(high)} ({CONFIDENCE:.0%} interval, Wilson); more {split} images narrow it (--seeds does not: all seeds are measured on the same images)"


def rare_classes(split: str, labels: np.ndarray, classes: Sequence[str]) -> str:
    """Return a line on classes with very few images in a split; empty where there are none."""
    counts = class_counts(labels, len(classes))
    rare = [f"{name} ({count})" for name, count in zip(classes, counts.tolist(), strict=False) if count < FEW_IMAGES]
    if not rare:
        return ""
    return f"fewer than {FEW_IMAGES} {split} images, so their figures in the per-class table mean little: {short_list(rare)}"


def unbalanced(labels: np.ndarray, classes: Sequence[str], is_made_up: bool = False) -> str:
    """Return a line on training images of which one class has many times as many as another; else empty.

    Args:
        is_made_up: whether the loss or the sampling makes up for it.
    """
    counts = np.bincount(labels, minlength=len(classes))
    most, least = int(counts.argmax()), int(counts[: len(classes)].argmin())
    if counts[most] < IMBALANCE * max(1, counts[least]):
        return ""
    remedy = "" if is_made_up else f"; {MAKE_UP}"
    return f"class {classes[most]!r} has {counts[most]:,} training images and {classes[least]!r} has {counts[least]:,}: read the balanced accuracy and the recall of each class (per_class.csv), since the accuracy says little about rare ones{remedy}"


def average_behind(components: Components, metrics: Mapping[str, Scalar]) -> str:
    """Return a line on a moving average of the weights that is worse than the weights without it; else empty.

    It is worse if it is more than a point below, and the figure of the weights is above the interval of the average's.

    Args:
        metrics: the result's, with the accuracy of both, or the mAP of both where images have several labels.
    """
    split, dataset = components.eval_split, components.dataset
    figure = main_metric(components.config.is_multilabel)
    images = dataset.test if split == "test" else dataset.val
    if images is None or not len(images) or f"{split}/{figure}_plain" not in metrics:
        return ""
    average, plain = float(metrics[f"{split}/{figure}"]), float(metrics[f"{split}/{figure}_plain"])
    if not plain - average > max(LEAST_BEHIND, share_interval(average, len(images))[1] - average):
        return ""
    return f"the moving average of the weights has a {split} {SELECTION_TEXTS[figure]} of {percent(average)}, and the weights themselves have {percent(plain)}: --ema {components.config.ema:g} is too long an average for so few updates; set a lower --ema (0: none), or more --epochs"


def _is_above_chance(balanced: float, labels: np.ndarray) -> bool:
    """Return whether a balanced accuracy is above that of random predictions, with the images of each class counted alike."""
    if not math.isfinite(balanced):
        return False
    total = len(labels)
    return chance_probability(round(balanced * total), total, 1 / len(np.unique(labels))) <= 1 - CONFIDENCE


def _multilabel_warnings(components: Components, state: TrainerState, metrics: Mapping[str, Scalar]) -> list[str]:
    """Return what limits the worth of a result on images with several labels, a line each."""
    dataset, config = components.dataset, components.config
    lines, has_learnt = [], False
    split = dataset.test or dataset.val
    if split is not None and len(split) and state.step:
        shares = split.labels.mean(0)
        chance = float(shares[shares > 0].mean())  # the mAP of scores at random
        has_learnt = float(metrics[f"{split.name}/map"]) > chance + (1 - chance) / 2
        lines.append(average_behind(components, metrics))
        lines.append(rare_classes(split.name, split.labels, dataset.classes))
    made = (state.step, len(state.history), len(dataset.train), config.batch_size)
    lines.insert(0, few_updates(*made, has_learnt=has_learnt, figure="mAP"))
    if dataset.val is None:
        lines.append(
            f"there is no validation split, so the threshold of every class is {FIXED_THRESHOLD:g}; set --val-fraction 0.1 to choose them"
        )
    elif dataset.test is None and config.test:
        lines.append(CHOSEN_ON_VALIDATION)
    return [line for line in lines if line]


def result_warnings(components: Components, state: TrainerState, metrics: Mapping[str, Scalar]) -> list[str]:
    """Return what limits the worth of a result, a line each.

    Args:
        metrics: the result's, `test/acc` and the like.
    """
    dataset = components.dataset
    if components.config.is_multilabel:
        return _multilabel_warnings(components, state, metrics)
    is_made_up = bool(components.config.class_weights) or components.config.sampling == "balanced"
    lines, has_learnt = [], False
    split = dataset.test or dataset.val
    if split is not None and len(split) and state.step:
        accuracy = float(metrics[f"{split.name}/acc"])
        train_accuracy = float(state.history[-1].get("train/acc", 0.0)) if state.history else 0.0
        chance = at_chance(split.name, accuracy, split.labels, train_accuracy, len(dataset.train), state.step)
        has_learnt = not chance
        balanced = float(metrics.get(f"{split.name}/balanced_acc", math.nan))
        lines += [
            "" if is_made_up and _is_above_chance(balanced, split.labels) else chance,
            average_behind(components, metrics),
            interval_line(split.name, accuracy, len(split)),
            rare_classes(split.name, split.labels, dataset.classes),
        ]
    if dataset.test is None and components.config.test and components.selection_split == "val":
        lines.append(SELECTED_ON_VALIDATION)
    made = (state.step, len(state.history), len(dataset.train), components.config.batch_size)
    lines.insert(0, few_updates(*made, has_learnt=has_learnt))
    lines.append(unbalanced(dataset.train.labels, dataset.classes, is_made_up))
    return [line for line in lines if line]
