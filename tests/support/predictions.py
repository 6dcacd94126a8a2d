"""Predictions drawn at random, for tests of metrics and of what is drawn of them."""

import numpy as np

from harness.evaluation.metrics import Predictions

# Names that a spreadsheet would evaluate, and one class that never occurs.
CLASSES = ("cat", "dog", "=ship()", "-3", "never")


def random_predictions(images=400, classes=5, seed=0):
    """Predictions that are mostly correct; no image is of the last class, and none is predicted as it."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes - 1, images)
    logits = draw.normal(size=(images, classes)) * 1.5
    logits[np.arange(images), labels] += 1.5
    logits[:, -1] = -9
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = -np.log(probabilities[np.arange(images), labels])
    return Predictions(labels, probabilities.astype(np.float32), losses.astype(np.float32))
