"""What a model does in training is tried before a run writes anything."""

import contextlib
import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from harness.config.settings import Config
from harness.models.outputs import AUXILIARY_WEIGHT, return_logits_in_evaluation, split_logits
from harness.runs.model_check import check_model, smallest_part
from harness.training.distributed import SingleProcess
from harness.utils.errors import ResourceError, UsageError
from tests.support.commands import command
from tests.support.training import CPU, learner, net


class Sizes:
    """The batches of an epoch, as numbers of images."""

    def __init__(self, *sizes):
        self.sizes, self.steps, self.num_images = sizes, len(sizes), sum(sizes)

    def size(self, batch):
        return self.sizes[batch]


class TwoProcesses(SingleProcess):
    world_size = 2


class Heads(nn.Module):
    """A backbone with three logits; `outputs` makes what it returns in training of its logits and an auxiliary head's."""

    def __init__(self, outputs, evaluated=lambda main, auxiliary: main):
        super().__init__()
        self.backbone, self.auxiliary = net(dropout=0.5), nn.Linear(3 * 64, 3)
        self.outputs = outputs, evaluated

    def forward(self, images):
        return self.outputs[not self.training](self.backbone(images), self.auxiliary(images.flatten(1)))


def check(model, *sizes, classes=3, processes=None, side=8, channels=3, **settings):
    config = Config(model="custom_resnet", **settings)
    return_logits_in_evaluation(model)
    check_model(
        config, model, (channels, side, side), classes, CPU, None, Sizes(*(sizes or (8,))), processes or SingleProcess()
    )


def refusal(model, *sizes, **options):
    """Return the message, of one line, with which a model is refused."""
    with pytest.raises(UsageError) as caught:
        check(model, *sizes, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


USUAL = {
    "tuple": lambda main, auxiliary: (main, auxiliary),
    "list": lambda main, auxiliary: [main, auxiliary],
    "with none": lambda main, auxiliary: (main, None, auxiliary),
    "logits": lambda main, auxiliary: {"logits": main, "aux": auxiliary},
    "out": lambda main, auxiliary: {"aux": auxiliary, "out": main},
}


@pytest.mark.parametrize("kind", USUAL)
def test_auxiliary_heads_are_trained_with_a_weight_of_0_3(kind):
    torch.manual_seed(0)
    model = Heads(USUAL[kind])
    check(model)
    twin, images, labels = copy.deepcopy(model), torch.randn(6, 3, 8, 8), torch.arange(6) % 3
    torch.manual_seed(5)
    result = learner(model, momentum=0.0, nesterov=False, weight_decay=0.0).train_step(images, labels, 0, 0.1, 0.0)
    torch.manual_seed(5)
    main, auxiliary = twin.backbone(images), twin.auxiliary(images.flatten(1))
    loss = F.cross_entropy(main, labels) + 0.3 * F.cross_entropy(auxiliary, labels)
    loss.backward()
    torch.testing.assert_close(result.loss, loss.detach())
    assert int(result.correct) == int((main.argmax(1) == labels).sum())
    for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected - 0.1 * expected.grad)
    assert AUXILIARY_WEIGHT == 0.3


@pytest.mark.parametrize("kind", ["tuple", "logits"])
def test_auxiliary_logits_are_left_out_in_evaluation(kind):
    model = Heads(USUAL["tuple"], USUAL[kind])
    return_logits_in_evaluation(model)
    check(model)
    model.eval()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(images), model.backbone(images))
    assert torch.equal(copy.deepcopy(model)(images), model.backbone(images))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            lambda main, auxiliary: (main, auxiliary[:, :2]),
            r"in training: the model returns a tuple of (\[2, 3\], \[2, 2\])",
        ),
        (lambda main, auxiliary: {"a": main}, r"returns a dict of (a: \[2, 3\]) instead of logits"),
        (lambda main, auxiliary: None, "returns a NoneType instead of logits"),
        (lambda main, auxiliary: main[:, :2], "instead of logits for 3 classes"),
        (lambda main, auxiliary: main[..., None], "it is not an image classifier"),
        (lambda main, auxiliary: main.missing, "AttributeError"),
        (lambda main, auxiliary: main.detach(), "does not require grad"),
    ],
)
def test_other_outputs_in_training_are_refused_in_one_line(outputs, message):
    text = refusal(Heads(outputs))
    assert message.replace("\\", "") in text


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            lambda main, auxiliary: (main, auxiliary[:, 1:]),
            "in evaluation: the model returns a tuple of ([1, 3], [1, 2])",
        ),
        (lambda main, auxiliary: {"features": main}, "returns a dict of (features: [1, 3]) instead of logits"),
        (lambda main, auxiliary: torch.cat([main, main], 1), "num_classes=3"),
        (lambda main, auxiliary: auxiliary[0]["no"], "cannot take images of 8 x 8 pixels"),
    ],
)
def test_other_outputs_in_evaluation_are_refused_in_one_line(outputs, message):
    assert message in refusal(Heads(lambda main, auxiliary: main, outputs))


def test_a_head_of_another_width_is_refused():
    assert "instead of logits for 10 classes; its head must have num_classes=10" in refusal(net(), classes=10)


def test_a_model_without_a_trainable_parameter_is_refused():
    assert "no parameter to train" in refusal(net().requires_grad_(False))
    assert "no parameter to train" in refusal(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def test_parameters_without_a_gradient_are_refused_under_torchrun_alone():
    model = Heads(lambda main, auxiliary: main)
    check(model)
    assert "has 2 parameters without a gradient, the first is auxiliary.weight" in refusal(
        model, processes=TwoProcesses()
    )
    model.auxiliary.requires_grad_(False)
    check(model, processes=TwoProcesses())


def pooled():
    """Return a network whose batch normalisation sees one value of each channel per image."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((1, 1), {"batch_size": 1}),
        ((8, 3), {"grad_accumulation": 2}),
        ((8, 8), {"grad_accumulation": 8}),
        ((8, 3), {"processes": TwoProcesses()}),
    ],
)
def test_batch_normalisation_that_would_see_a_single_value_is_refused(sizes, options):
    assert "cannot use 1 image at a time; set a larger --batch-size" in refusal(pooled(), *sizes, **options)
    check(net(), *sizes, **options)  # its batch normalisation sees many pixels of the one image
    check(pooled(), 8, 4, **options | {"grad_accumulation": 2, "batch_size": 8, "processes": None})


def test_the_smallest_part_is_that_of_the_last_batch_divided_by_processes_and_micro_batches():
    for size in range(1, 40):
        for world in (1, 2, 3):
            for micro_batches in (1, 2, 5):
                parts = [
                    len(part)
                    for rank in range(world)
                    for part in torch.zeros(size)[rank * size // world : (rank + 1) * size // world].tensor_split(
                        micro_batches
                    )
                    if len(part)
                ]
                if size >= world:
                    assert smallest_part(Sizes(100, size), micro_batches, world) == min(parts)


@pytest.mark.parametrize("outputs", [lambda main, auxiliary: main, lambda main, auxiliary: None])
def test_the_trial_leaves_the_model_and_the_random_generators_as_they_were(outputs):
    model = Heads(outputs)
    model.backbone[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with contextlib.suppress(UsageError):
        check(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_that_runs_out_for_two_images_of_batch_normalisation_is_one_line():
    class Hungry(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = pooled()

        def forward(self, images):
            if len(images) > 1:
                raise MemoryError
            return self.net(images)

    one = learner(Hungry(), auto_batch=True)
    with pytest.raises(ResourceError, match="batch normalisation cannot use the images one at a time"):
        one.train_step(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64), 0, 0.1, 0.9)


@pytest.mark.slow
def test_an_inception_with_its_auxiliary_head_trains_two_heads():
    model = timm.create_model("inception_v3", num_classes=3, aux_logits=True)
    check(model, side=299)
    model.train()
    assert len(split_logits(model(torch.zeros(2, 3, 299, 299)))) == 2


def test_a_run_of_a_model_that_cannot_be_trained_writes_nothing(tmp_path):
    (tmp_path / "five_logits.py").write_text(
        "import torch\nfrom timm.models import register_model\n\n@register_model\ndef five_logits(pretrained=False, **kwargs):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(5))\n"
    )
    arguments = ["--recipe", "digits", "--plugin", "five_logits", "--model", "five_logits", "--model-args", "width=4"]
    done = command("run", *arguments, cwd=tmp_path)
    assert done.code == 2 and done.errors == [
        "error: five_logits returns [1, 5] instead of logits for 10 classes; its head must have num_classes=10 outputs"
    ]
    assert not list(tmp_path.glob("runs/*"))
    arguments = ["--recipe", "digits", "--model", "resnet10t", "--image-size", 32, "--batch-size", 1]
    done = command("run", *arguments, cwd=tmp_path)
    assert done.code == 2 and "cannot use 1 image at a time" in done.err and not list(tmp_path.glob("runs/*"))


def test_a_model_of_three_channels_is_refused_for_images_of_one():
    text = refusal(timm.create_model("custom_resnet", width=4, num_classes=3), channels=1)
    assert "cannot take images of 8 x 8 x 1 pixels" in text and "make it take in_chans=1" in text


@pytest.mark.parametrize("is_training", [False, True])
def test_memory_that_runs_out_in_the_trial_is_not_said_to_be_a_model_that_does_not_fit(is_training):
    class Hungry(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = pooled()

        def forward(self, images):
            if self.training == is_training:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.net(images)

    with pytest.raises(torch.OutOfMemoryError):
        check(Hungry())
