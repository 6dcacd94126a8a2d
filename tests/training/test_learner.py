"""One update of a learner, against torch's reference optimizers and losses."""

import copy

import pytest
import torch
from torch import nn

from harness.config.settings import Config
from harness.data.mixup import make_mixup
from harness.training.learner import Learner, make_learner
from harness.training.optimizer import make_optimizer, set_lr_and_momentum
from harness.utils.errors import UsageError
from tests.support.training import CPU, Batches, learner, net

INF = float("inf")


def scaled_updates(optimizer, parameter, gradients):
    """Apply gradients through a GradScaler; return the parameter after each."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    values = []
    for gradient in gradients:
        optimizer.zero_grad()
        scaler.scale(torch.zeros(()))  # creates the scale
        parameter.grad = torch.full_like(parameter, gradient) * scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        values.append(float(parameter.detach().flatten()[0]))
    return values


def dirty_memory():
    """Leave freed memory of the sizes below that is not zero."""
    blocks = [torch.full((size,), 1e17) for size in (1, 16, 216, 1000) for _ in range(200)]
    del blocks


def test_the_first_step_after_skipped_ones_starts_from_zero_momentum():
    dirty_memory()
    parameter = nn.Parameter(torch.ones(1000))
    config = Config(lr_min=0.1, lr_max=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)
    optimizer = make_optimizer(config, nn.ParameterList([parameter]))
    assert optimizer.param_groups[0]["fused"]
    assert scaled_updates(optimizer, parameter, [INF, 1, 1]) == pytest.approx([1, 0.81, 0.539])


REFERENCES = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, 0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.1, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.1, weight_decay=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, 0.1, momentum=0.9, weight_decay=0.01),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("gradients", [[INF, 1, 1], [INF, INF, 1, -2, 1], [1, INF, 3, INF, 1], [1, 2, 3]])
def test_an_optimizer_with_skipped_steps_equals_torchs_unfused_one(name, gradients):
    config = Config(optimizer=name, lr_min=0.1, lr_max=0.1, momentum=0.9, weight_decay=0.01)
    parameters = [nn.Parameter(torch.ones(1000)) for _ in range(2)]
    dirty_memory()
    values = scaled_updates(make_optimizer(config, nn.ParameterList([parameters[0]])), parameters[0], gradients)
    expected = scaled_updates(REFERENCES[name]([parameters[1]]), parameters[1], gradients)
    assert values == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_rates_and_the_momentum_of_each_update_are_those_that_torchs_optimizer_is_given(name):
    config = Config(optimizer=name, lr_min=0.1, lr_max=0.1, momentum=0.9, weight_decay=0.01)
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    optimizer, reference = make_optimizer(config, nn.ParameterList([ours])), REFERENCES[name]([theirs])
    for lr, momentum, gradient in ((0.1, 0.9, 1.0), (0.2, 0.7, -2.0), (0.05, 0.5, 0.5), (0.1, 0.95, 1.5)):
        ours.grad, theirs.grad = torch.full((5,), gradient), torch.full((5,), gradient)
        set_lr_and_momentum(optimizer, lr, momentum)
        group = reference.param_groups[0]
        group["lr"] = lr
        group |= {"betas": (momentum, 0.999)} if "betas" in group else {"momentum": momentum}
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_learner_in_float16_whose_first_updates_overflow_is_unharmed_by_them():
    dirty_memory()
    images, labels = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    model = net(dropout=0.0)
    fp16 = make_learner(Config(precision="fp16", channels_last=False, weight_decay=0.0), model, CPU, torch.float16)
    fp16.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # overflows until it has come down
    before = copy.deepcopy(model.state_dict())
    for step in range(60):
        fp16.train_step(images, labels, step, 0.01, 0.9)
    changes = [
        float((value - before[name]).abs().max())
        for name, value in model.state_dict().items()
        if "num_batches" not in name
    ]
    assert fp16.scaler.get_scale() < 2.0**40 and 0 < max(changes) < 1


def test_in_float16_the_gradients_are_clipped_as_they_are_and_not_as_they_are_scaled():
    images, labels = next(Batches().epoch(0))
    moved, norms = [], []
    for precision in (None, torch.float16):
        model = net(dropout=0.0)
        model[1] = nn.Identity()
        before = copy.deepcopy(model.state_dict())
        settings = dict(clip_grad=0.5, momentum=0.0, nesterov=False, weight_decay=0.0, channels_last=False)
        one = make_learner(Config(**settings), model, CPU, precision)
        if one.scaler is not None:
            one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        norms.append(float(one.train_step(images, labels, 0, 1.0, 0.0).grad_norm))
        moved.append(torch.cat([(value - before[name]).flatten() for name, value in model.state_dict().items()]))
    assert norms[1] == pytest.approx(norms[0], rel=0.02) and norms[0] > 0.5
    assert float(moved[0].norm()) == pytest.approx(0.5, rel=1e-3)
    assert float(moved[1].norm()) == pytest.approx(0.5, rel=1e-3)
    torch.testing.assert_close(moved[1], moved[0], rtol=0.05, atol=2e-3)


def test_a_parameter_may_get_its_first_gradient_later_than_others():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = make_optimizer(Config(lr_min=0.1, lr_max=0.1, weight_decay=0.0), nn.ParameterList([first, second]))
    first.grad = torch.ones(1)
    optimizer.step()
    second.grad = torch.ones(1)
    optimizer.step()
    assert first.item() == pytest.approx(0.539) and second.item() == pytest.approx(0.81)


def test_a_checkpoint_without_momentum_is_resumed_from_zero_momentum():
    one = learner(net(), momentum=0.9)
    state = one.state_dict()
    state["optimizer"] = {**state["optimizer"], "state": {}}
    one.load_state_dict(state)
    buffers = [one.optimizer.state[parameter]["momentum_buffer"] for parameter in one.model.parameters()]
    assert isinstance(one, Learner) and not any(buffer.any() for buffer in buffers)


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
@pytest.mark.parametrize("size", [64, 63])
def test_a_model_that_sees_the_heavier_label_of_mixed_images_has_a_training_accuracy_of_1(settings, size):
    config = Config(precision="fp32", channels_last=False, label_smoothing=0.1, **settings)
    one = make_learner(config, BrightestChannel(), CPU, None, make_mixup(config, 3))
    labels = torch.arange(size) * 7 % 11 % 3
    # An image of one colour; of 31 x 31 pixels no two shares are equal.
    images = nn.functional.one_hot(labels, 3).float()[:, :, None, None].expand(-1, -1, 31, 31)
    correct = [int(one.train_step(images, labels, step, 0.0, 0.9).correct) for step in range(20)]
    assert correct == [size] * 20


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_the_loss_of_mixed_images_is_the_mean_over_both_labels_smoothed_once(settings):
    config = Config(precision="fp32", channels_last=False, label_smoothing=0.1, **settings)
    one = make_learner(config, BrightestChannel(), CPU, None, make_mixup(config, 3))
    images, labels = torch.randn(6, 3, 31, 31, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    plain = make_mixup(config.replace(label_smoothing=0.0), 3)
    mixed, shares = plain(images, labels, 4)  # of both labels, by the same draw
    log_softmax = mixed.mean((2, 3)).log_softmax(1)
    by_label = -(shares * log_softmax).sum(1)
    uniform = -log_softmax.mean(1)
    expected = (0.9 * by_label + 0.1 * uniform).mean()
    torch.testing.assert_close(one.train_step(images, labels, 4, 0.0, 0.9).loss, expected)


class BrightestChannel(nn.Module):
    """Logits: the mean of each of the three channels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images.mean((2, 3))


def test_a_resumed_learner_in_float16_has_the_scale_of_the_stopped_one_and_its_next_update():
    images, labels = next(Batches().epoch(0))

    def made(seed):
        one = make_learner(Config(precision="fp16", channels_last=False), net(seed, dropout=0.0), CPU, torch.float16)
        one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
        return one

    one, other = made(0), made(1)
    for step in range(4):
        one.train_step(images, labels, step, 0.01, 0.9)
    saved = copy.deepcopy(one.state_dict())
    assert one.scaler.get_scale() != other.scaler.get_scale()
    other.load_state_dict(saved)
    assert other.scaler.get_scale() == one.scaler.get_scale()
    for each in (one, other):
        for step in range(4, 8):
            each.train_step(images, labels, step, 0.01, 0.9)
    assert one.scaler.state_dict() == other.scaler.state_dict()
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_an_optimizer_of_second_derivatives_is_refused_in_float16():
    with pytest.raises(
        UsageError, match="optimizer=adahessian needs second derivatives, which fp16 does not have; choose another"
    ):
        make_learner(Config(optimizer="adahessian"), net(), CPU, torch.float16)
    assert make_learner(Config(optimizer="adahessian"), net(), CPU, None).scaler is None
