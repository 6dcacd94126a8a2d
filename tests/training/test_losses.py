"""The losses of training against timm's, torch's and torchvision's, and against their formulas in NumPy."""

import copy
import math

import numpy as np
import pytest
import torch
import torchvision
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.mixup import make_mixup, smooth_one_hot
from harness.training.cuda_graph import GraphedStep
from harness.training.learner import make_learner
from harness.training.loop import TrainerState, fit
from harness.training.losses import make_loss, uniform_loss
from harness.utils.errors import UsageError
from tests.support.training import CPU, Batches, assert_equal, net, schedule, weights

CLASSES, COUNT = 5, 40
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25, 4.0])


def logits_and_labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(COUNT, CLASSES, generator=generator)
    return logits, torch.randint(0, CLASSES, (COUNT,), generator=generator)


def loss_of(logits, targets, class_weights=None, is_smoothed=False, **settings):
    return make_loss(Config(**settings), CPU, class_weights, is_smoothed)(logits, targets)


def soft_targets(seed=1):
    return torch.rand(COUNT, CLASSES, generator=torch.Generator().manual_seed(seed)).softmax(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    "arguments", [{}, {"target_threshold": 0.15}, {"sum_classes": True}, {"pos_weight": 3}, {"pos_weight": 0.5}]
)
@pytest.mark.parametrize("is_soft", [False, True])
def test_bce_is_timms_binary_cross_entropy_with_its_options(arguments, smoothing, is_soft):
    logits, targets = logits_and_labels()
    targets = soft_targets() if is_soft else targets
    theirs = BinaryCrossEntropy(smoothing=smoothing, **arguments)(logits, targets)
    loss = loss_of(logits, targets, loss="bce", loss_args=arguments, label_smoothing=smoothing, is_smoothed=is_soft)
    torch.testing.assert_close(loss, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_bce_counts_each_image_by_its_class(smoothing):
    logits, labels = logits_and_labels()
    targets = np.full((COUNT, CLASSES), smoothing / CLASSES)
    targets[np.arange(COUNT), labels] += 1 - smoothing
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    by_image = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean(1)
    expected = (WEIGHTS.numpy()[labels] * by_image).mean()
    loss = loss_of(logits, labels, WEIGHTS, loss="bce", label_smoothing=smoothing)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_weighted_bce_of_mixed_images_counts_each_by_the_mean_weight_of_its_labels():
    logits, labels = logits_and_labels()
    shares = 0.3 * F.one_hot(labels, CLASSES) + 0.7 * F.one_hot(labels.flip(0), CLASSES)
    smoothed = 0.9 * shares + 0.1 / CLASSES
    expected = (
        (shares * WEIGHTS).sum(1) * F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none").mean(1)
    ).mean()
    loss = loss_of(logits, smoothed, WEIGHTS, is_smoothed=True, loss="bce", label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_the_focal_loss_is_that_of_its_formula(smoothing, gamma, class_weights):
    logits, labels = logits_and_labels()
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    total = 0.0
    for image, label in enumerate(labels.tolist()):
        for each in range(CLASSES):
            target = (1 - smoothing) * (each == label) + smoothing / CLASSES
            weight = 1.0 if class_weights is None else float(class_weights[each])
            total -= weight * target * (1 - p[image, each]) ** gamma * math.log(p[image, each])
    settings = {"loss": "focal", "loss_args": {"gamma": gamma}, "label_smoothing": smoothing}
    assert float(loss_of(logits, labels, class_weights, **settings)) == pytest.approx(total / COUNT, rel=1e-5)


def test_of_two_classes_the_focal_loss_is_torchvisions_sigmoid_focal_loss():
    generator = torch.Generator().manual_seed(2)
    difference, labels = 4 * torch.randn(30, generator=generator), torch.randint(0, 2, (30,), generator=generator)
    logits = torch.stack([torch.zeros(30), difference], 1)
    theirs = torchvision.ops.sigmoid_focal_loss(difference, labels.float(), alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(loss_of(logits, labels, loss="focal"), theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_the_gradient_of_the_focal_loss_is_finite_for_certain_predictions(gamma):
    logits = torch.tensor([[100.0, 0, 0], [0, 100, 0], [-100, 0, 0]], requires_grad=True)
    loss_of(logits, torch.tensor([0, 0, 0]), loss="focal", loss_args={"gamma": gamma}).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[1].abs().max() > 0.3


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_cross_entropy_is_torchs_on_a_batch_with_the_frequencies_of_the_training_images(smoothing):
    logits, labels = logits_and_labels()
    counts = torch.bincount(labels, minlength=CLASSES)
    balanced = COUNT / (CLASSES * counts)  # scikit-learn's formula
    torch.testing.assert_close(
        loss_of(logits, labels, balanced, label_smoothing=smoothing),
        F.cross_entropy(logits, labels, weight=balanced, label_smoothing=smoothing),
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_labels_and_soft_targets_that_say_the_same_have_the_same_weighted_loss(loss):
    logits, labels = logits_and_labels()
    soft = smooth_one_hot(labels, CLASSES, 0.2)
    hard_loss = loss_of(logits, labels, WEIGHTS, loss=loss, label_smoothing=0.2)
    torch.testing.assert_close(
        hard_loss, loss_of(logits, soft, WEIGHTS, is_smoothed=True, loss=loss, label_smoothing=0.2)
    )


def test_without_a_setting_the_loss_is_bit_identical_to_torchs_cross_entropy():
    logits, labels = logits_and_labels()
    assert torch.equal(loss_of(logits, labels), F.cross_entropy(logits, labels))
    assert torch.equal(
        loss_of(logits, labels, label_smoothing=0.1), F.cross_entropy(logits, labels, label_smoothing=0.1)
    )


SETTINGS = [
    {"loss": "bce"},
    {"loss": "bce", "loss_args": {"target_threshold": 0.2, "pos_weight": 2}, "label_smoothing": 0.1},
    {"loss": "focal", "label_smoothing": 0.1},
    {"class_weights": (1, 2, 4)},
    {"loss": "bce", "class_weights": (1, 2, 4), "mixup": 0.8, "label_smoothing": 0.1},
    {"loss": "focal", "class_weights": (1, 2, 4), "cutmix": 1.0},
]
THREE = torch.tensor([0.5, 1.0, 2.0])


def learner_of(model, settings, **more):
    config = Config(precision="fp32", channels_last=False, lr_min=0.01, lr_max=0.1, **settings, **more)
    class_weights = THREE if "class_weights" in settings else None
    return make_learner(config, model, CPU, None, make_mixup(config, 3), class_weights=class_weights)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_update_is_that_of_a_reference_loop_with_the_loss_on_its_own(settings):
    model = net(dropout=0.0)
    other = copy.deepcopy(model)
    one, config = learner_of(model, settings), Config(**settings)
    optimizer = torch.optim.SGD(other.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    mix = make_mixup(config, 3)
    for step, (images, labels) in enumerate(Batches((8, 8, 6)).epoch(0)):
        result = one.train_step(images, labels, step, 0.1, 0.9)
        targets = smooth_one_hot(labels, 3, config.label_smoothing)
        if mix is not None:
            images, targets = mix(images, labels, step)
        logits, w = other(images), THREE if "class_weights" in settings else torch.ones(3)
        if config.loss == "bce":
            by_image = BinaryCrossEntropy(0.0, reduction="none", **config.loss_args)(logits, targets).mean(1)
            shares = (targets - config.label_smoothing / 3) / (1 - config.label_smoothing)
            loss = (by_image * (shares * w).sum(1)).mean()
        else:
            p = logits.softmax(1)
            factor = (1 - p) ** 2 if config.loss == "focal" else 1.0
            loss = -(w * targets * factor * p.log()).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(result.loss, loss.detach())
    for name, value in weights(other).items():
        torch.testing.assert_close(weights(model)[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_micro_batches_have_the_gradients_of_the_whole_batch(settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))  # without batch normalisation
    other = copy.deepcopy(model)
    images, labels = next(Batches((7,)).epoch(0))
    whole = learner_of(model, settings).train_step(images, labels, 0, 0.1, 0.9)
    parts = learner_of(other, settings, grad_accumulation=3).train_step(images, labels, 0, 0.1, 0.9)
    torch.testing.assert_close(whole.loss, parts.loss)
    torch.testing.assert_close(model[1].weight, other[1].weight)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_captured_update_and_a_resumed_run_are_bit_identical_to_the_plain_one(settings):
    model = net()
    plain, captured, resumed = (learner_of(copy.deepcopy(model), settings) for _ in range(3))
    captured.graph = GraphedStep(captured.update, captured.optimizer, CPU)
    for one in (plain, captured):
        list(fit(one, Batches((8, 8, 8)), schedule(3), epochs=3))
    assert_equal(weights(plain.model), weights(captured.model))
    state = TrainerState()
    list(fit(resumed, Batches((8, 8, 8)), schedule(3), epochs=1, state=state))
    again, restored = learner_of(net(seed=5), settings), TrainerState()
    again.load_state_dict(copy.deepcopy(resumed.state_dict()))
    restored.load_state_dict(copy.deepcopy(state.state_dict()), CPU)
    list(fit(again, Batches((8, 8, 8)), schedule(3), epochs=3, state=restored))
    assert_equal(weights(plain.model), weights(again.model))


def test_the_uniform_loss_of_the_lr_finder_is_that_of_equal_probabilities():
    assert uniform_loss(Config(), 10) == math.log(10)
    assert uniform_loss(Config(loss="focal"), 10) == pytest.approx(0.9**2 * math.log(10), rel=1e-5)
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert uniform_loss(Config(loss="bce"), 10) == pytest.approx(entropy, rel=1e-5)
    assert uniform_loss(Config(loss="bce", loss_args={"sum_classes": True}), 10) == pytest.approx(
        10 * entropy, rel=1e-5
    )
    assert math.isfinite(uniform_loss(Config(loss="bce"), 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "b/e"}, "need one of cross_entropy, bce, focal, jsd, or one that a module of --plugin registers"),
        ({"loss": "focal", "loss_args": {"gama": 1}}, "did you mean 'gamma'"),
        ({"loss_args": {"gamma": 1}}, "set --loss focal"),
        ({"loss": "bce", "loss_args": {"gamma": 1}}, "set --loss focal"),
        ({"loss": "focal", "loss_args": {"gamma": -1}}, "from 0 to 100"),
        ({"loss": "focal", "loss_args": {"gamma": True}}, "need a number"),
        ({"loss": "bce", "loss_args": {"sum_classes": 2}}, "true or false"),
        ({"loss": "bce", "loss_args": {"target_threshold": 2}}, "from 0 to 1"),
    ],
)
def test_a_loss_or_an_argument_that_does_not_exist_is_refused_in_one_line(settings, message):
    with pytest.raises(UsageError, match=message):
        Config(**settings)


def test_the_nearest_name_is_suggested_for_a_loss_that_does_not_exist():
    with pytest.raises(UsageError, match=r"did you mean 'bce'"):
        make_loss(Config(loss="bse"), CPU)
    with pytest.raises(UsageError, match=r"did you mean 'bce'"):
        make_config({"loss": "bse"})
