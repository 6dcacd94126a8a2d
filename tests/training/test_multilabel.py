"""Training on several labels per image: loss, weights and mixing against torch and NumPy, and evaluation of all processes."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from harness.config.settings import Config
from harness.data.balance import class_weights
from harness.data.mixup import make_mixup
from harness.training.losses import make_loss
from harness.training.multilabel import evaluate_multilabel
from harness.utils.errors import UsageError
from tests.support.training import CPU, EvalBatches, learner, net, weights

CLASSES = ("a", "b", "c")
SETTINGS = {"data": "table", "label_separator": "|", "loss": "bce", "select_by": "map"}


def sample(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, 3, generator=generator) < torch.tensor([0.5, 0.3, 0.1])).to(torch.uint8)
    labels[0] = torch.tensor([0, 1, 1])
    return 2 * torch.randn(count, 3, generator=generator), labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("arguments", [{}, {"pos_weight": 3}, {"sum_classes": False}])
def test_the_loss_is_torchs_for_several_labels(arguments, smoothing):
    logits, labels = sample()
    pos_weight = torch.tensor(float(arguments["pos_weight"])) if "pos_weight" in arguments else None
    targets = labels * (1 - smoothing) + smoothing / 2
    mean = nn.BCEWithLogitsLoss(pos_weight=pos_weight)(logits, targets)
    expected = mean if arguments.get("sum_classes", True) is False else 3 * mean
    config = Config(**SETTINGS, loss_args=arguments, label_smoothing=smoothing)
    torch.testing.assert_close(make_loss(config, CPU)(logits, labels.float()), expected)


def test_the_gradient_of_a_logit_is_its_probability_less_its_label():
    logits, labels = sample()
    logits.requires_grad_()
    make_loss(Config(**SETTINGS), CPU)(logits, labels.float()).backward()
    torch.testing.assert_close(logits.grad * len(logits), logits.detach().sigmoid() - labels.float())


def test_balanced_weights_give_those_that_have_a_class_as_much_weight_as_the_others():
    logits, labels = sample()
    config = Config(**SETTINGS, class_weights="balanced")
    given = class_weights(config, labels.numpy(), CLASSES, 3)
    counts = labels.double().sum(0)
    torch.testing.assert_close(given.double() * counts, 40 - counts)
    expected = 3 * nn.BCEWithLogitsLoss(pos_weight=given)(logits, labels.float())
    torch.testing.assert_close(make_loss(config, CPU, given)(logits, labels.float()), expected)


def test_given_weights_are_taken_as_they_are_and_unknown_classes_are_refused():
    labels = sample()[1].numpy()
    by_name = class_weights(Config(**SETTINGS, class_weights="b=5"), labels, CLASSES, 3)
    assert by_name.tolist() == [1, 5, 1]
    assert class_weights(Config(**SETTINGS, class_weights="1,2,4"), labels, CLASSES, 3).tolist() == [1, 2, 4]
    with pytest.raises(UsageError, match="no class 'd'"):
        class_weights(Config(**SETTINGS, class_weights="d=5"), labels, CLASSES, 3)


@pytest.mark.parametrize("count", [6, 7])
def test_mixup_mixes_the_labels_as_it_mixes_the_images(count):
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = sample(count)[1]
    config = Config(**SETTINGS, mixup=0.4, label_smoothing=0.1)
    mixed, targets = make_mixup(config, 3)(images, labels, 3)
    even = count // 2 * 2
    smooth = labels * 0.9 + 0.05
    partner = images[:even].flip(0)
    lam = float(((mixed[:even] - partner) / (images[:even] - partner)).median())
    torch.testing.assert_close(targets[:even], lam * smooth[:even] + (1 - lam) * smooth[:even].flip(0))
    torch.testing.assert_close(targets[even:], smooth[even:])


def test_an_update_is_that_of_torch_and_counts_the_images_of_which_every_class_is_right():
    images, labels = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2)), sample(8)[1]
    ours = learner(net(dropout=0), **SETTINGS, nesterov=False, weight_decay=0)
    theirs = net(dropout=0)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    theirs.train()
    logits = theirs(images)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / 8
    loss.backward()
    optimizer.step()
    result = ours.train_step(images, labels, 0, 0.1, 0.9)
    torch.testing.assert_close(result.loss, loss.detach())
    assert int(result.correct) == sum(
        [bool(logit > 0) for logit in row] == [bool(label) for label in truth]
        for row, truth in zip(logits, labels, strict=True)
    )
    for name, value in weights(ours.model).items():
        torch.testing.assert_close(value, theirs.state_dict()[name], msg=name)


class Identity(nn.Module):
    """A model whose images are its logits."""

    def forward(self, images):
        return images


def test_the_metrics_are_those_of_scikit_learn_for_any_batches():
    logits, labels = sample()
    whole, thresholds = evaluate_multilabel(Identity(), [(logits, labels)], CPU, chooses_thresholds=True)
    parts = EvalBatches(zip(logits.split(7), labels.split(7), strict=True))
    assert evaluate_multilabel(Identity(), parts, CPU, chooses_thresholds=True)[0] == whole
    assert whole["map"] == pytest.approx(average_precision_score(labels.numpy(), logits.numpy(), average="macro"))
    p = torch.sigmoid(logits.double()).numpy()
    truth = labels.numpy()
    assert whole["loss"] == pytest.approx(-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).sum(1).mean())
    fixed, used = evaluate_multilabel(Identity(), parts, CPU)
    assert used.tolist() == [0.5] * 3 and whole["f1_macro"] >= fixed["f1_macro"]
    assert fixed["exact_match"] == ((logits > 0) == (labels > 0)).all(1).double().mean().item()
    given, used = evaluate_multilabel(Identity(), parts, CPU, thresholds=thresholds)
    assert given == whole and used is thresholds


@pytest.mark.parametrize("shares", [(40, 0), (0, 40), (13, 27)])
def test_each_of_two_processes_receives_the_metrics_of_all_images(shares):
    """The reductions are computed by a thread for each process, as torch.distributed would compute them."""
    import threading

    logits, labels = sample()
    expected = evaluate_multilabel(Identity(), [(logits, labels)], CPU, chooses_thresholds=True)[0]
    barrier, sent = threading.Barrier(2), {}

    class Process:
        world_size = 2

        def __init__(self, rank):
            self.rank = rank

        def all_reduce_sum(self, *values):
            sent[self.rank] = values
            barrier.wait(10)
            sums = tuple(mine + theirs for mine, theirs in zip(sent[0], sent[1], strict=True))
            barrier.wait(10)
            return sums

    results = {}

    def evaluate(rank):
        start = sum(shares[:rank])
        part = slice(start, start + shares[rank])
        batches = EvalBatches([(logits[part], labels[part])] if shares[rank] else [])
        results[rank] = evaluate_multilabel(Identity(), batches, CPU, processes=Process(rank), chooses_thresholds=True)[
            0
        ]

    threads = [threading.Thread(target=evaluate, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {0: expected, 1: expected}


def test_of_no_images_every_metric_is_unknown():
    logits, labels = sample()
    metrics, thresholds = evaluate_multilabel(Identity(), [(logits[:0], labels[:0])], CPU, chooses_thresholds=True)
    assert all(math.isnan(value) for value in metrics.values()) and thresholds.tolist() == [0.5] * 3
    assert metrics.keys() == evaluate_multilabel(Identity(), [(logits, labels)], CPU)[0].keys()
