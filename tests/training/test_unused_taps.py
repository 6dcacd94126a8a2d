"""In bfloat16 on a CPU, no gradient is what the memory held before."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness.config.recipe import make_config
from harness.models.factory import create_model
from harness.runs.components import build_components
from harness.training.process_settings import keep_freed_memory, restore_process_settings
from harness.training.unused_taps import convolutions_with_unused_taps, train_unused_taps_in_float32

KERNELS = [
    dict(kernel_size=3, padding=1), dict(kernel_size=3, padding=1, stride=2), dict(kernel_size=3, padding=0),
    dict(kernel_size=5, padding=2), dict(kernel_size=5, padding=2, stride=2), dict(kernel_size=7, padding=3, stride=2),
    dict(kernel_size=3, padding=2, dilation=2), dict(kernel_size=5, padding="same"), dict(kernel_size=4, padding="same"),
    dict(kernel_size=(1, 5), padding=(0, 2)), dict(kernel_size=1, padding=0), dict(kernel_size=1, padding=0, stride=2), dict(kernel_size=3, padding="valid"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_taps_that_are_unused_are_those_without_a_gradient_in_float64(kernel):
    for size in (1, 2, 3, 4, 5, 6, 8):
        if kernel["padding"] not in (0, "valid") or size >= kernel["kernel_size"]:
            compare_with_gradients(nn.Conv2d(2, 3, **kernel), size)


def compare_with_gradients(conv, size):
    """Of random numbers, a sum of products with data is not 0."""
    torch.manual_seed(0)
    shape = (2, *[size] * len(conv.kernel_size))
    outputs = conv.double()(torch.randn(2, *shape, dtype=torch.float64))
    conv.zero_grad()
    (outputs * torch.randn_like(outputs)).sum().backward()
    is_unused = (conv.weight.grad == 0).all(0).all(0)
    assert convolutions_with_unused_taps(nn.Sequential(conv.float()), shape) == (["0"] if is_unused.any() else []), size


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(2, 3, 5, stride=2, padding=2), nn.Conv1d(2, 3, 3, padding=1), nn.Conv3d(2, 3, 3, stride=2, padding=1),
        nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1),
        nn.ConvTranspose1d(2, 3, 5, padding=2, output_padding=0), nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
    ],
    ids=str,
)  # fmt: skip
def test_so_are_those_of_other_kinds_of_convolutions(conv):
    for size in (1, 2, 3, 5):
        compare_with_gradients(copy.deepcopy(conv), size)


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised first, as in timm's StdConv2d."""

    def forward(self, images):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(images, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize("kind", [nn.Conv2d, Standardised])
def test_gradients_in_bfloat16_do_not_depend_on_what_the_memory_held(kind):
    """Memory that holds NaN is used again, as in a run, which keeps what it has freed."""
    torch.manual_seed(0)
    model = nn.Sequential(kind(64, 64, 3, stride=2, padding=1), nn.Flatten()).train()
    images, direction = torch.randn(8, 64, 1, 1), torch.randn(8, 64)

    def gradient(network, is_autocast):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            outputs = network(images)
        spoiled = [torch.full((count,), float("nan")) for count in (64 * 64 * 9, 64 * 64 * 9 // 2, 512, 1 << 14)]
        del spoiled
        (outputs.float() * direction).sum().backward()
        return network[0].weight.grad.clone()

    expected = gradient(copy.deepcopy(model), is_autocast=False)
    assert train_unused_taps_in_float32(model, (64, 1, 1)) == ["0"]
    copied = copy.deepcopy(model)  # as for a moving average of the weights
    with restore_process_settings():
        keep_freed_memory()
        for _ in range(20):
            assert torch.equal(gradient(model, is_autocast=True), expected)
    assert copied[0].forward.__self__ is copied[0]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():  # in evaluation as before
        assert model.eval()(images).dtype == torch.bfloat16


def test_a_run_in_bfloat16_on_a_cpu_trains_them_so():
    config = make_config(
        {
            "recipe": "digits", "model": "resnet10t", "model_args": {}, "image_size": 16, "precision": "bf16", "device": "cpu",
            "threads": 1, "wandb": "disabled",
        }
    )  # fmt: skip
    names = convolutions_with_unused_taps(create_model(config, 10), (3, 16, 16))
    assert "layer4.0.conv1" in names

    def replaced(config):
        modules = build_components(config).learner.model.named_modules()
        return [name for name, module in modules if isinstance(module, nn.Conv2d) and "forward" in vars(module)]

    assert replaced(config) == names
    assert replaced(config.replace(precision="fp32")) == []
