"""Which images of a split to show: the most confident errors, one of each class, and so on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from harness.evaluation.metrics import Predictions
from harness.utils.errors import UsageError, did_you_mean
from harness.utils.seeding import seed_for

WRONG_RULES = ("confident", "random", "per-class", "confusion")
RIGHT_RULES = ("mixed", "confident", "random", "per-class")


def choose_images(
    predictions: Predictions, *, wrong: bool, rule: str = "", count: int = 25, seed: int = 0
) -> np.ndarray:
    """Return the indices, int64 [<= count], of the images to show, in the order to show them.

    Args:
        wrong: choose among the misclassified images, or among the correctly classified ones.
        rule: the first of `WRONG_RULES` or `RIGHT_RULES` where it is empty.

            confident: greatest confidence first: errors that a threshold would not stop.
            random: any, the same for equal `seed`.
            per-class: the true classes in turn, each giving its most confident image.
            confusion: the pairs of (truth, prediction) in turn, most frequent first, each giving its most confident image.
            mixed: the true classes in turn, each giving its most confident image, then its least confident one, and so
                on: what is typical of a class beside what is barely recognised.

    Raises:
        UsageError: there is no such rule.
    """
    rules = WRONG_RULES if wrong else RIGHT_RULES
    rule = rule or rules[0]
    if rule not in rules:
        raise UsageError(f"there is no rule {rule!r}{did_you_mean(rule, rules)}; need one of {', '.join(rules)}")
    candidates = np.flatnonzero(predictions.correct != wrong)
    if rule == "random":
        return np.random.default_rng(seed_for(seed, "gallery", int(wrong))).permutation(candidates)[:count]
    order: Sequence[int]
    by_confidence = candidates[np.argsort(-predictions.confidence[candidates], kind="stable")]
    labels, predicted = predictions.labels, predictions.predicted
    if rule in ("per-class", "mixed"):
        groups = grouped(by_confidence, lambda index: int(labels[index]))
        queues = [groups[label] for label in sorted(groups)]
        order = in_turn([from_both_ends(queue) for queue in queues] if rule == "mixed" else queues)
    elif rule == "confusion":
        pairs = grouped(by_confidence, lambda index: (int(labels[index]), int(predicted[index])))
        order = in_turn([pairs[pair] for pair in sorted(pairs, key=lambda pair: (-len(pairs[pair]), pair))])
    else:
        order = by_confidence.tolist()
    return np.array(order[:count], dtype=np.int64)


def grouped(indices: np.ndarray, key: Callable[[int], Any]) -> dict[Any, list[int]]:
    """Return the indices by what `key` says of each, in their order."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for index in indices.tolist():
        groups[key(index)].append(index)
    return groups


def in_turn(queues: Sequence[Sequence[int]]) -> list[int]:
    """Return the first of each queue, then the second of each, until all are used up."""
    return [index for index in chain.from_iterable(zip_longest(*queues)) if index is not None]


def from_both_ends(queue: Sequence[int]) -> list[int]:
    """Return the first, the last, the second, the last but one, ..."""
    half = (len(queue) + 1) // 2
    return in_turn([queue[:half], queue[half:][::-1]])
