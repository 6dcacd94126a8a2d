"""The bias of the classifier where images have several labels: at first each class is as probable as it is frequent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.config.settings import Config
from harness.data.balance import class_weights, positive_factor
from harness.data.dataset import Dataset
from harness.data.multilabel import prior_logits
from harness.models.pretrained import classifier_names


def set_prior_bias(model: nn.Module, config: Config, data: Dataset) -> None:
    """Set the biases of a new classifier to the logits of the frequencies of the classes among the training images.

    Otherwise every class begins at a probability of one half, and the first updates, which are large where classes are many and rare,
    teach the features of all images that nothing is there. Source: Lin et al., "Focal Loss for Dense Object Detection",
    https://arxiv.org/abs/1708.02002, section 4.1. A classifier without a bias stays as it is.
    """
    labels, classes = data.train.labels, len(data.classes)
    weights = class_weights(config, labels, data.classes, classes)
    bias = torch.from_numpy(prior_logits(labels, positive_factor(config, weights))) / float(
        getattr(model, "logit_scale", 1.0)
    )
    for name in classifier_names(model):
        own = getattr(model.get_submodule(name), "bias", None)
        if isinstance(own, Tensor) and own.shape == bias.shape:
            with torch.no_grad():
                own.copy_(bias)
