"""The precision of a training step and how it is chosen."""

import pytest
import torch
from torch import nn

from harness.config.settings import Config
from harness.training.device import autocast_dtype, evaluation_memory, no_cudnn_benchmark, pick_device, pick_precision
from harness.training.learner import make_learner
from harness.utils.errors import ResourceError, UsageError


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_in_any_precision_equals_the_float32_step_within_its_accuracy(precision):
    def step(precision):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        learner = make_learner(Config(precision=precision), model, torch.device("cpu"), autocast_dtype(precision))
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(32, 3, 8, 8, generator=generator)
        labels = torch.randint(0, 4, (32,), generator=generator)
        result = learner.train_step(images, labels, 0, 0.1, 0.9)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        return result, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    (expected, weights), (result, updated) = step("fp32"), step(precision)
    tolerance = {"fp32": 0.0, "bf16": 3e-2, "fp16": 5e-3}[precision]
    assert float(result.loss) == pytest.approx(float(expected.loss), abs=tolerance + 1e-9)
    torch.testing.assert_close(updated, weights, rtol=0, atol=tolerance)


def test_the_speed_of_bfloat16_is_measured_once_per_machine_and_stored(home):
    for file in home.rglob("bf16_gain.json"):  # that of this session
        file.unlink()
    first = pick_precision("auto", torch.device("cpu"))
    files = list(home.rglob("bf16_gain.json"))
    assert first in ("fp32", "bf16")
    assert len(files) <= 1  # none where the processor has no bfloat16
    if files:
        content = files[0].read_bytes()
        assert pick_precision("auto", torch.device("cpu")) == first
        assert files[0].read_bytes() == content


def test_cudnn_measures_no_algorithms_in_the_context_and_does_again_after_an_error():
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with pytest.raises(ValueError, match="inside"), no_cudnn_benchmark():
            assert not torch.backends.cudnn.benchmark
            raise ValueError("inside")
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("name", ["graphics", "meta", "cpu:x"])
def test_a_device_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(UsageError, match=f"device={name!r}: need auto, cpu, cuda, cuda:N or mps"):
        pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has a Metal device")
def test_a_metal_device_that_this_machine_does_not_have_is_refused():
    with pytest.raises(UsageError, match="device='mps': this machine has no Metal device; use --device cpu or auto"):
        pick_device("mps")


def test_an_evaluation_without_memory_names_the_setting_and_another_error_stays_as_it_is():
    with (
        pytest.raises(ResourceError, match="while evaluating 1,234 images; lower --eval-batch-size"),
        evaluation_memory(1234),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes differ"), evaluation_memory(1234):
        raise RuntimeError("shapes differ")
