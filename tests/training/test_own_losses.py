"""Losses that a plug-in registers, against torch's and timm's own, and what is refused before training."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossSingleLabel
from torch.nn import functional as F

from harness.config.settings import Config
from harness.data.mixup import make_mixup, smooth_one_hot
from harness.training import losses
from harness.training.cuda_graph import GraphedStep
from harness.training.learner import make_learner
from harness.training.loop import TrainerState, fit
from harness.training.own_losses import check_loss, register_loss, try_loss
from harness.utils import registry
from harness.utils.errors import UsageError
from tests.support.training import CPU, Batches, assert_equal, net, schedule, weights

WEIGHTS = torch.tensor([0.5, 1.0, 2.0])
LOGITS = 2 * torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2])


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def weighted(logits, targets, *, class_weights, power=1.0):
    """Cross-entropy whose images have the weight of their label, to a power."""
    soft = targets if targets.ndim == 2 else F.one_hot(targets, logits.shape[1]).float()
    by_image = F.cross_entropy(logits, targets, reduction="none") ** power
    return (by_image if class_weights is None else by_image * (soft @ class_weights)).mean()


def learner_of(model, of_classes=None, **settings):
    config = Config(precision="fp32", channels_last=False, lr_min=0.01, lr_max=0.1, **settings)
    return make_learner(config, model, CPU, None, make_mixup(config, 3), class_weights=of_classes)


def trained(model, **settings):
    one = learner_of(copy.deepcopy(model), **settings)
    records = list(fit(one, Batches((8, 8, 5)), schedule(2), epochs=2))
    return weights(one.model), [loss for record in records for loss in record.steps.lines["train/step_loss"]]


@pytest.mark.parametrize("settings", [{}, {"mixup": 0.8, "label_smoothing": 0.1}, {"grad_accumulation": 3}], ids=str)
def test_torchs_cross_entropy_as_a_plug_in_trains_bit_identically_to_the_default_loss(settings):
    register_loss(lambda logits, targets: F.cross_entropy(logits, targets), name="mine")
    model = net()
    (ours, our_losses), (theirs, their_losses) = (
        trained(model, loss=loss, **settings) for loss in ("cross_entropy", "mine")
    )
    assert_equal(ours, theirs)
    assert our_losses == their_losses


def test_label_smoothing_gives_a_loss_soft_targets_as_torch_smooths_them():
    register_loss(lambda logits, targets: F.cross_entropy(logits, targets), name="mine")
    loss = losses.make_loss(Config(loss="mine", label_smoothing=0.2), CPU)
    torch.testing.assert_close(loss(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2))


def test_a_loss_of_timm_gives_its_own_values_and_gradients_with_its_arguments():
    def asymmetric(logits, targets, gamma_neg=4):
        return AsymmetricLossSingleLabel(gamma_neg=gamma_neg)(logits, targets)

    register_loss(asymmetric)
    loss = losses.make_loss(Config(loss="asymmetric", loss_args={"gamma_neg": 2}), CPU)
    ours, theirs = (LOGITS.clone().requires_grad_() for _ in range(2))
    loss(ours, LABELS).backward()
    AsymmetricLossSingleLabel(gamma_neg=2)(theirs, LABELS).backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_loss_that_takes_class_weights_gets_those_of_the_setting(smoothing):
    register_loss(weighted)
    config = Config(loss="weighted", class_weights=(1, 2, 4), label_smoothing=smoothing)
    soft = smooth_one_hot(LABELS, 3, smoothing)
    expected = (F.cross_entropy(LOGITS, soft, reduction="none") * (soft @ WEIGHTS)).mean()
    torch.testing.assert_close(losses.make_loss(config, CPU, WEIGHTS)(LOGITS, LABELS), expected)
    without = losses.make_loss(Config(loss="weighted"), CPU)(LOGITS, LABELS)
    torch.testing.assert_close(without, F.cross_entropy(LOGITS, LABELS))


def test_a_captured_update_and_a_resumed_run_with_a_loss_of_ones_own_are_bit_identical_to_the_plain_one():
    def noisy(logits, targets, spread=0.1):  # it draws from torch's generator, as dropout does
        return F.cross_entropy(logits + spread * torch.randn_like(logits), targets)

    register_loss(noisy)
    settings = {"loss": "noisy", "loss_args": {"spread": 0.2}, "cutmix": 1.0}
    model = net()
    plain, captured, resumed = (learner_of(copy.deepcopy(model), **settings) for _ in range(3))
    captured.graph = GraphedStep(captured.update, captured.optimizer, CPU)
    for one in (plain, captured):
        list(fit(one, Batches((8, 8, 8)), schedule(3), epochs=3))
    assert_equal(weights(plain.model), weights(captured.model))
    state = TrainerState()
    list(fit(resumed, Batches((8, 8, 8)), schedule(3), epochs=1, state=state))
    again, restored = learner_of(net(seed=5), **settings), TrainerState()
    again.load_state_dict(copy.deepcopy(resumed.state_dict()))
    restored.load_state_dict(copy.deepcopy(state.state_dict()), CPU)
    list(fit(again, Batches((8, 8, 8)), schedule(3), epochs=3, state=restored))
    assert_equal(weights(plain.model), weights(again.model))


def test_micro_batches_with_a_loss_of_ones_own_have_the_gradients_of_the_whole_batch():
    register_loss(weighted)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))  # without batch normalisation
    other = copy.deepcopy(model)
    images, labels = next(Batches((7,)).epoch(0))
    settings = {"loss": "weighted", "class_weights": (1, 2, 4)}
    whole = learner_of(model, WEIGHTS, **settings).train_step(images, labels, 0, 0.1, 0.9)
    parts = learner_of(other, WEIGHTS, grad_accumulation=3, **settings).train_step(images, labels, 0, 0.1, 0.9)
    torch.testing.assert_close(whole.loss, parts.loss)
    torch.testing.assert_close(model[1].weight, other[1].weight)


def tried(loss, name="mine", **settings):
    register_loss(loss, name=name)
    config = Config(loss=name, **settings)
    made = losses.make_loss(config, CPU, is_smoothed=bool(config.mixup))
    with pytest.raises(UsageError) as caught:
        try_loss(config, made, 3, 4, CPU)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda logits, targets: logits[:, 5].mean(), "raised IndexError: index 5 is out of bounds"),
        (lambda logits, targets: F.cross_entropy(logits, targets, reduction="none"), r"returned float32 \[4\]; need a"),
        (lambda logits, targets: logits.mean(0, keepdim=True)[:, 0], r"returned float32 \[1\]; need a float32 scalar"),
        (lambda logits, targets: logits.double().mean(), r"returned float64 \[\]; need a float32 scalar"),
        (lambda logits, targets: float(logits.detach().mean()), "returned float; need a tensor"),
        (lambda logits, targets: logits.detach().mean(), "returned a number without a gradient"),
        (lambda logits, targets: torch.ones((), requires_grad=True) * 1, "has no gradient with respect to the logits"),
        (lambda logits, targets: logits.mean() * math.nan, "returned nan; need a finite number"),
        (lambda logits, targets: (logits - logits).abs().sum().sqrt(), "has a gradient that is not finite"),
    ],
)
def test_a_function_that_is_no_loss_is_refused_on_one_batch_before_training(loss, message):
    assert re.match(rf"loss=mine on logits float32 \[4, 3\] and labels int64 \[4\] {message}", tried(loss))


def test_a_loss_of_class_indices_alone_is_refused_with_soft_targets_and_says_what_to_set():
    line = tried(lambda logits, targets: AsymmetricLossSingleLabel()(logits, targets), mixup=0.2)
    assert line.startswith(r"loss=mine on logits float32 [4, 3] and soft targets float32 [4, 3] raised")
    assert line.endswith("mixup, cutmix and label_smoothing: set them to 0 if it takes class indices only")
    assert "soft targets" in tried(lambda x, y: F.multi_margin_loss(x, y), "margin", label_smoothing=0.1)
    assert "set them to 0" in tried(lambda x, y: x.gather(1, y[:, None]).mean(), "gathered", cutmix=1.0)


def test_trying_a_loss_draws_from_no_global_generator():
    register_loss(lambda logits, targets: (logits * torch.rand(3)).mean() + np.random.rand() * 0, name="mine")
    torch.manual_seed(3), np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    config = Config(loss="mine")
    try_loss(config, losses.make_loss(config, CPU), 3, 4, CPU)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "weightd"}, "need one of cross_entropy, bce, focal.*did you mean 'weighted'"),
        (
            {"loss": "weighted", "loss_args": {"powr": 2}},
            "loss_args=powr=2: loss=weighted has only power .did you mean",
        ),
        ({"loss": "weighted", "loss_args": {"class_weights": 2}}, "set --class-weights"),
        ({"loss": "plain", "loss_args": {"power": 2}}, "loss=plain has no arguments"),
        ({"loss": "plain", "class_weights": "balanced"}, "loss=plain takes no weights of the classes"),
        ({"loss": "needs"}, "loss=needs needs the argument margin; give it in loss_args: margin=VALUE"),
        ({"loss": "narrow"}, r"loss=narrow is a function of \(logits\); it must take 2 arguments"),
    ],
)
def test_a_loss_or_an_argument_that_does_not_exist_is_refused_before_anything_takes_time(settings, message):
    register_loss(weighted)
    register_loss(lambda logits, targets: logits.mean(), name="plain")
    register_loss(lambda logits, targets, margin: logits.mean(), name="needs")
    register_loss(lambda logits: logits.mean(), name="narrow")
    with pytest.raises(UsageError, match=message):
        check_loss(Config(**settings))


def test_the_name_of_a_loss_of_harness_cannot_be_registered():
    with pytest.raises(UsageError, match="loss 'bce' cannot be registered"):
        register_loss(print, name="bce")


def test_the_lr_finder_compares_with_the_loss_of_equal_probabilities_and_refuses_one_that_is_not_above_zero():
    register_loss(weighted)
    uniform = losses.uniform_loss(Config(loss="weighted", loss_args={"power": 2}), 10)
    assert uniform == pytest.approx(math.log(10) ** 2, rel=1e-6)
    register_loss(lambda logits, targets: logits.mean() - 1, name="negative")
    with pytest.raises(UsageError, match=r"loss=negative is -.* an LR range test needs a loss above 0"):
        losses.uniform_loss(Config(loss="negative"), 3)


def test_a_range_test_asks_a_loss_with_the_kind_of_targets_that_its_run_has():
    register_loss(lambda logits, targets: -(targets * logits.log_softmax(1)).sum(1).mean(), name="soft")
    for settings in ({"mixup": 0.2}, {"cutmix": 1.0, "label_smoothing": 0.1}, {"label_smoothing": 0.1}):
        assert losses.uniform_loss(Config(loss="soft", **settings), 3) == pytest.approx(math.log(3), rel=1e-5)


def test_a_loss_that_needs_more_memory_than_there_is_is_not_said_to_be_wrong():
    def loss(logits, targets):
        raise torch.OutOfMemoryError("CUDA out of memory")

    register_loss(loss, name="mine")
    config = Config(loss="mine")
    with pytest.raises(torch.OutOfMemoryError):
        try_loss(config, losses.make_loss(config, CPU), 3, 4, CPU)
