"""Predictions, metrics, class-activation maps and trained models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from harness.evaluation.gradcam import compute_maps as compute_maps
    from harness.evaluation.metrics import Predictions as Predictions
    from harness.evaluation.metrics import accuracy as accuracy
    from harness.evaluation.metrics import confusion_matrix as confusion_matrix
    from harness.evaluation.metrics import per_class as per_class
    from harness.evaluation.metrics import read_predictions_csv as read_predictions_csv
    from harness.evaluation.metrics import reliability as reliability
    from harness.evaluation.metrics import write_predictions_csv as write_predictions_csv
    from harness.evaluation.multilabel import MultilabelPredictions as MultilabelPredictions
    from harness.evaluation.own_metrics import register_metric as register_metric
    from harness.evaluation.selection import choose_images as choose_images
    from harness.evaluation.trained_model import TrainedModel as TrainedModel
    from harness.evaluation.trained_model import load_trained_model as load_trained_model
    from harness.training.device import eval_mode as eval_mode

_MODULES = {
    "MultilabelPredictions": "harness.evaluation.multilabel",
    "Predictions": "harness.evaluation.metrics",
    "TrainedModel": "harness.evaluation.trained_model",
    "accuracy": "harness.evaluation.metrics",
    "choose_images": "harness.evaluation.selection",
    "compute_maps": "harness.evaluation.gradcam",
    "confusion_matrix": "harness.evaluation.metrics",
    "eval_mode": "harness.training.device",
    "load_trained_model": "harness.evaluation.trained_model",
    "per_class": "harness.evaluation.metrics",
    "read_predictions_csv": "harness.evaluation.metrics",
    "register_metric": "harness.evaluation.own_metrics",
    "reliability": "harness.evaluation.metrics",
    "write_predictions_csv": "harness.evaluation.metrics",
}
__all__ = [
    "MultilabelPredictions",
    "Predictions",
    "TrainedModel",
    "accuracy",
    "choose_images",
    "compute_maps",
    "confusion_matrix",
    "eval_mode",
    "load_trained_model",
    "per_class",
    "read_predictions_csv",
    "register_metric",
    "reliability",
    "write_predictions_csv",
]

__getattr__ = lazy_attributes(__name__, _MODULES)
