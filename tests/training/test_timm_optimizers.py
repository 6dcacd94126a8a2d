"""Every optimizer of timm, and its groups of parameters, against timm's own."""

import io

import pytest
import timm
import torch
from timm import optim as timm_optim
from torch import nn

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.training.learner import make_learner
from harness.training.optimizer import NATIVE, check_optimizer, group_lr_scales, make_optimizer, parameter_groups
from harness.utils.errors import UsageError
from tests.support.training import CPU, Batches, assert_equal, learner, net, weights

NAMES = timm_optim.list_optimizers()
GPU_ONLY = [name for name in NAMES if name.startswith(("bnb", "fused"))]
COMPILED = ("kron", "kronw", "kronc")  # torch.compile takes ten seconds
ON_CPU = [
    pytest.param(name, marks=pytest.mark.slow) if name in COMPILED else name for name in NAMES if name not in GPU_ONLY
]
# torch computes these in fused kernels here; rmsprop has torch's alpha, and not timm's.
ARGUMENTS = {"rmsprop": {"alpha": 0.9}}
SETTINGS = {"weight_decay": 0.02, "lr_max": 0.02, "lr_min": 0.001}


def small(seed=0):
    """A network without weights whose gradient is zero up to rounding, which Adam would turn into steps of full size."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))


def step_of(reference, model, images, labels, lr):
    for group in reference.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    reference.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward(create_graph=getattr(reference, "is_second_order", False))
    reference.step()


@pytest.mark.filterwarnings("ignore")  # of timm's and torch's own
@pytest.mark.parametrize("name", ON_CPU)
def test_an_update_is_that_of_timms_own_optimizer(name):
    model, other = small(), small()
    one = learner(model, optimizer=name, optimizer_args=ARGUMENTS.get(name, {}), bias_decay=True, **SETTINGS)
    reference = timm_optim.create_optimizer_v2(
        other, name, lr=0.02, weight_decay=0.02, momentum=0.9, filter_bias_and_bn=False
    )
    images, labels = next(Batches().epoch(0))
    before = weights(model)
    for step, lr in enumerate([0.01, 0.005][: 1 if name == "adahessian" else 2]):
        torch.manual_seed(step)  # Kron draws from the global generator
        one.train_step(images, labels, step, lr, 0.9)
        torch.manual_seed(step)
        step_of(reference, other, images, labels, lr)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-6, atol=1e-6)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ON_CPU)
def test_the_state_of_every_optimizer_is_saved_without_code_and_resumed_bit_identically(name):
    def train(one, steps):
        for step in steps:
            torch.manual_seed(step)
            one.train_step(*next(Batches(seed=step).epoch(0)), step, 0.01, 0.9)

    model, other = net(), net()
    one = learner(model, optimizer=name, bias_decay=False, **SETTINGS)
    train(one, range(3))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    resumed = learner(other, optimizer=name, bias_decay=False, **SETTINGS)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(one, range(3, 5))
    train(resumed, range(3, 5))
    assert_equal(weights(model), weights(other))


@pytest.mark.parametrize("name", GPU_ONLY)
def test_an_optimizer_whose_package_is_missing_is_refused_in_one_line(name):
    if torch.cuda.is_available():
        pytest.skip("there may be one for the GPU")
    with pytest.raises(UsageError, match=f"optimizer={name} cannot be made") as caught:
        learner(net(), optimizer=name)
    assert "\n" not in str(caught.value)


GROUPED = ["adamw", "nadamw", "lion", "sgdw", "muon"]


def vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, num_classes=3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("bias_decay", [False, True])
@pytest.mark.parametrize("name", GROUPED)
def test_layer_decay_and_weight_decay_by_kind_are_those_of_timm(name, bias_decay, layer_decay):
    model, other = vit(), vit()
    # The gradient of the bias of the keys is zero up to rounding, and torch's fused kernel rounds in another way.
    arguments = {"eps": 1e-3} if name == "adamw" else {}
    config = Config(
        optimizer_args=arguments,
        optimizer=name,
        bias_decay=bias_decay,
        layer_decay=layer_decay,
        precision="fp32",
        channels_last=False,
        **SETTINGS,
    )
    one = make_learner(config, model, CPU, None)
    reference = timm_optim.create_optimizer_v2(
        _without_exclusions(other) if bias_decay else other, name, lr=0.02, weight_decay=0.02, momentum=0.9,
        filter_bias_and_bn=not bias_decay, layer_decay=None if layer_decay == 1 else layer_decay, **arguments,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0])
    for step, lr in enumerate([0.01, 0.005]):
        one.train_step(images, labels, step, lr, 0.9)
        step_of(reference, other, images, labels, lr)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-6, atol=2e-6)


def _without_exclusions(model):
    model.no_weight_decay = set
    return model


def test_biases_and_norms_have_no_weight_decay_in_a_model_that_starts_from_weights():
    for settings, is_decayed in (({}, True), ({"pretrained": True}, False), ({"init": "x"}, False)):
        config = Config(**settings)
        assert config.decays_biases == is_decayed
        decays = {group["weight_decay"] for group in parameter_groups(config, net())}
        assert decays == ({5e-4} if is_decayed else {5e-4, 0.0})
    assert Config(init="x", bias_decay=True).decays_biases


def test_groups_with_factors_of_their_own_have_names():
    config = Config(layer_decay=0.5, head_lr_scale=4.0, bias_lr_scale=2.0)
    model = vit()
    scales = group_lr_scales(config, model)
    layers = 1 + max(int(name.split("_")[1]) for name in scales)
    assert scales[f"layer_{layers - 1:02}_head"] == 4 and scales[f"layer_{layers - 1:02}_head_bias"] == 8
    assert scales["layer_00"] == pytest.approx(0.5 ** (layers - 1))
    assert group_lr_scales(Config(bias_decay=False), model) == {}
    assert group_lr_scales(Config(head_lr_scale=2.0), model) == {"body": 1.0, "head": 2.0}


def test_a_hybrid_optimizer_takes_patterns_for_its_other_part():
    groups = parameter_groups(Config(optimizer="muon", optimizer_args={"fallback_list": ["*head*"]}), vit())
    assert [bool(group.get("use_fallback")) for group in groups] == [False, True]
    assert sum(parameter.numel() for parameter in groups[1]["params"]) == 3 * 64 + 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"optimizer": "admw"}, "did you mean 'adamw'"),
        ({"optimizer": "lionn"}, "did you mean 'lion"),
        ({"optimizer_args": {"lr": 1}}, "set --lr-max"),
        ({"optimizer": "lamb", "optimizer_args": {"weight_decay": 1}}, "set --weight-decay"),
        ({"optimizer_args": {"epss": 1}}, "has no argument 'epss'"),
        ({"optimizer": "sgd", "optimizer_args": {"nesterov": False}}, "has no argument 'nesterov'"),
        ({"optimizer": "adamw", "optimizer_args": {"betas": [0.8, 0.9]}}, "set --momentum 0.8"),
        ({"optimizer": "lion", "optimizer_args": {"no_such": 1}}, "no_such"),
        ({"optimizer": "lion", "optimizer_args": {"betas": [2.0, 0.9]}}, "cannot be made with betas"),
        ({"optimizer": "muon", "optimizer_args": {"ns_steps": "x"}}, "cannot do a step with ns_steps='x'"),
        ({"optimizer": "adamw", "optimizer_args": {"betas": 0.9}}, r"betas=0.9: betas are two numbers or more"),
        ({"optimizer": "lion", "optimizer_args": {"betas": 0.9}}, r"betas=0.9: betas are two numbers or more"),
        ({"optimizer": "adahessian", "optimizer_args": {"eps": "x"}}, "with eps='x'"),
        ({"optimizer": "adadelta", "momentum_min": 0.5}, "momentum_min cycles"),
    ],
)
def test_a_wrong_optimizer_or_argument_is_refused_in_one_line(settings, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        make_optimizer(Config(**settings), net())
    assert "\n" not in str(caught.value)


def test_further_arguments_reach_the_optimizer():
    adamw = make_optimizer(Config(optimizer="adamw", optimizer_args={"eps": 1e-6, "betas": [0.9, 0.98]}), net())
    assert (adamw.defaults["eps"], adamw.defaults["betas"]) == (1e-6, (0.9, 0.98))
    lion = make_optimizer(Config(optimizer="lion", optimizer_args={"betas": [0.8, 0.9]}), net())
    assert lion.param_groups[0]["betas"] == (0.8, 0.9)


def test_the_arguments_of_a_recipe_are_for_its_own_optimizer(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optimizer: lion\noptimizer_args: {betas: [0.8, 0.9]}\n")
    assert make_config({"recipe": str(recipe), "optimizer_args": "caution=true"}).optimizer_args == {
        "betas": [0.8, 0.9],
        "caution": True,
    }
    assert make_config({"recipe": str(recipe), "optimizer": "adamw"}).optimizer_args == {}


def test_a_momentum_that_is_cycled_reaches_timms_optimizers():
    for name, key in (("nadamw", "betas"), ("sgdp", "momentum")):
        one = learner(net(), optimizer=name, momentum_min=0.5, **SETTINGS)
        one.train_step(*next(Batches().epoch(0)), 0, 0.01, 0.7)
        value = one.optimizer.param_groups[0][key]
        assert (value[0] if key == "betas" else value) == 0.7


def test_the_optimizers_of_torch_keep_their_fused_form():
    for name, kind in NATIVE.items():
        made = make_optimizer(Config(optimizer=name), net())
        assert type(made) is kind and made.defaults.get("fused", name == "rmsprop")
    for name in NAMES:
        check_optimizer(Config(optimizer=name))
