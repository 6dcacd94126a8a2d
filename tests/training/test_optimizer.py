"""Parameter groups and look-ahead averaging, each against a second way of computing it."""

import copy

import pytest
import timm
import torch
from torch import nn

import harness.models.cifar_resnet
from harness.config.settings import Config
from harness.training.learner import make_learner
from harness.training.lookahead import Lookahead
from harness.training.optimizer import current_lr, load_optimizer, make_optimizer, parameter_groups, set_lr_and_momentum
from harness.utils.errors import UsageError
from tests.support.training import CPU, Batches, assert_equal, learner, net, weights


def test_without_factors_there_is_one_group_of_all_trained_parameters():
    model = net()
    model[0].bias.requires_grad_(False)
    (group,) = parameter_groups(Config(), model)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters() if p.requires_grad}
    assert group["lr_scale"] == 1 and group["weight_decay"] == Config().weight_decay


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_the_groups_update_as_two_separate_optimizers_would(optimizer):
    settings = {"optimizer": optimizer, "bias_lr_scale": 8.0, "weight_decay": 0.02, "lr_max": 0.1}
    model, reference = net(dropout=0.0), net(dropout=0.0)
    one = learner(model, **settings)
    biases = [p for name, p in reference.named_parameters() if name.endswith("bias")]
    others = [p for name, p in reference.named_parameters() if not name.endswith("bias")]
    plain = Config(optimizer=optimizer, weight_decay=0.02)
    pair = [
        make_optimizer(plain, nn.ParameterList(others)),
        make_optimizer(plain.replace(weight_decay=0.0025), nn.ParameterList(biases)),
    ]
    for step, (images, labels) in enumerate(Batches().epoch(0)):
        one.train_step(images, labels, step, 0.01, 0.9)
        reference.zero_grad()
        nn.functional.cross_entropy(reference(images), labels).backward()
        for each, lr in zip(pair, (0.01, 0.08), strict=True):
            set_lr_and_momentum(each, lr, 0.9)
            each.step()
    torch.testing.assert_close(model.state_dict(), reference.state_dict())
    assert current_lr(one.optimizer) == 0.01


def test_the_rate_of_a_run_that_trains_its_head_alone_is_the_one_of_the_schedule_and_not_its_multiple():
    model = net()
    for parameter in model[:-1].parameters():
        parameter.requires_grad = False
    weight, bias = model[-1].parameters()
    bias.requires_grad = False
    optimizer = torch.optim.SGD([{"params": [weight], "lr_scale": 8.0}], 1.0)
    set_lr_and_momentum(optimizer, 0.01, 0.9)
    assert optimizer.param_groups[0]["lr"] == 0.08 and current_lr(optimizer) == 0.01


def test_a_lower_rate_for_the_head_equals_scaled_logits_bit_for_bit():
    """With W' = W/8, an LR of 1/64 and 64 times the decay, W'x follows (Wx)/8: powers of two are exact."""
    losses = []
    for settings in ({"logit_scale": 0.125}, {"head_init_scale": 0.125}):
        config = Config(
            model_args={"width": 2, **settings},
            head_lr_scale=1 / 64 if "head_init_scale" in settings else 1,
            precision="fp32",
        )
        torch.manual_seed(0)
        model = timm.create_model("custom_resnet", **config.model_args)
        one = make_learner(config, model.train(), CPU, None)
        generator = torch.Generator().manual_seed(1)
        for step in range(5):
            images = torch.randn(16, 3, 32, 32, generator=generator)
            labels = torch.randint(10, (16,), generator=generator)
            losses.append(one.train_step(images, labels, step, 0.1, 0.9).loss.item())
    assert losses[:5] == losses[5:]


def test_a_factor_for_the_head_needs_a_model_that_names_it():
    with pytest.raises(UsageError, match="get_classifier"):
        make_optimizer(Config(head_lr_scale=0.5), net())
    assert harness.models.cifar_resnet.custom_resnet().get_classifier() is not None


def test_look_ahead_is_the_recursion_over_the_weights():
    model, steps, every = net(), 6, 2
    average = {name: value.clone() for name, value in weights(model).items()}
    one = learner(model)
    one.lookahead = Lookahead(model, every, steps)
    batches = [batch for epoch in range(2) for batch in Batches().epoch(epoch)]
    for step, (images, labels) in enumerate(batches):
        twin = net()
        twin.load_state_dict(model.state_dict())
        other = learner(twin)
        other.optimizer.load_state_dict(copy.deepcopy(one.optimizer.state_dict()))
        torch.manual_seed(step)
        one.train_step(images, labels, step, 0.1, 0.9)
        torch.manual_seed(step)
        other.train_step(images, labels, step, 0.1, 0.9)
        expected = weights(twin)
        done = step + 1
        if done == steps:
            expected = average
        elif done % every == 0:
            decay = 0.95**every * (done / steps) ** 3
            average = {
                name: decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
                for name, value in expected.items()
            }
            expected = average
        moved = {name: value for name, value in weights(model).items() if value.is_floating_point()}
        torch.testing.assert_close(moved, {name: expected[name] for name in moved})


def test_look_ahead_is_resumed_bit_for_bit():
    def train(model, one, steps):
        for step in steps:
            torch.manual_seed(step)
            images, labels = next(Batches(seed=step).epoch(0))
            one.train_step(images, labels, step, 0.1, 0.9)
        return weights(model)

    def made():
        model = net()
        one = learner(model)
        one.lookahead = Lookahead(model, 2, 20)
        return model, one

    model, one = made()
    train(model, one, range(5))
    saved = copy.deepcopy(one.state_dict())
    other_model, other = made()
    other.load_state_dict(saved)
    assert_equal(train(model, one, range(5, 9)), train(other_model, other, range(5, 9)))


@pytest.mark.parametrize(
    ("optimizer", "change", "message"),
    [
        ("sgd", lambda state: state["param_groups"][0].update(lr="0.1"), "lr '0.1' is no number"),
        ("sgd", lambda state: state["param_groups"][0].update(momentum=None), "momentum None is no number"),
        ("sgd", lambda state: state["param_groups"][0].update(weight_decay=7), "weight_decay 7 instead of "),
        ("sgd", lambda state: state["state"][0].update(momentum_buffer=torch.zeros(3)), r"momentum_buffer .*\[3\]"),
        (
            "lion",
            lambda state: state["state"][0].update(exp_avg=torch.zeros(3, 2).to_sparse()),
            "exp_avg is no dense tensor",
        ),
    ],
)
def test_the_state_of_another_optimizer_is_refused_before_a_kernel_trusts_it(optimizer, change, message):
    model = net()
    one = make_optimizer(Config(optimizer=optimizer), model)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    one.step()
    state = copy.deepcopy(one.state_dict())
    load_optimizer(one, copy.deepcopy(state))
    change(state)
    with pytest.raises(ValueError, match=message):
        load_optimizer(one, state)
