"""The forward pass in Triton kernels, interpreted on a CPU, against the module itself.

Triton reads TRITON_INTERPRET when it is imported, so the comparison runs in a process of its own. On a GPU
`benchmarks/gpu.py` compares the compiled kernels with float64.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from harness.config.settings import Config
from harness.models import factory
from harness.models.cifar_resnet import CustomResNet
from harness.utils.errors import UsageError

COMPARISON = """
import copy, sys
import torch
from torch.nn import functional as F
from harness.models.cifar_resnet import CustomResNet
from harness.models.fused import FusedForward, MaxPool, why_not_fused

torch.manual_seed(0)
arguments = eval(sys.argv[1])
model = CustomResNet(**arguments).to(memory_format=torch.channels_last).train()
twin = copy.deepcopy(model)
assert why_not_fused(model, True) is None
labels = torch.tensor([1, 2])
for _ in range(2):  # the second pass starts from running statistics that the first has changed
    images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    for forward, net in ((model, model), (FusedForward(twin), twin)):
        net.zero_grad()
        loss = F.cross_entropy(forward(images), labels)
        loss.backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert float((one.grad - other.grad).norm()) <= 1e-4 * float(one.grad.norm()), one.shape
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

# Of equal pixels the first gets the gradient, and NaN is the maximum, as in torch.
values = torch.randint(0, 3, (2, 64, 4, 4)).float().to(memory_format=torch.channels_last)
values[0, 0, 0, 1] = torch.nan
for side in (2, 4):
    results = []
    for pool in (lambda x: F.max_pool2d(x, side), lambda x: MaxPool.apply(x, side)):
        x = values.clone(memory_format=torch.channels_last).requires_grad_()
        y = pool(x)
        y.backward(torch.arange(y.numel()).view_as(y).float().contiguous(memory_format=torch.channels_last))
        results.append((y.detach(), x.grad))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    "arguments", [{"width": 64}, {"width": 64, "order": "conv-bn-relu-pool", "logit_scale": 0.125, "head_bias": False}]
)
def test_gradients_and_running_statistics_equal_those_of_the_module(arguments):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    arguments_of_process = [sys.executable, "-c", COMPARISON, repr(arguments)]
    done = subprocess.run(arguments_of_process, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("arguments", "channels_last", "reason"),
    [({"width": 16}, True, "multiples"), ({"global_pool": "avg"}, True, "max"), ({}, False, "channels_last")],
)
def test_the_reason_why_the_kernels_do_not_fit_is_named(arguments, channels_last, reason):
    from harness.models import fused
    from harness.models.cifar_resnet import CustomResNet

    assert reason in fused.why_not_fused(CustomResNet(**arguments), channels_last)
    assert fused.why_not_fused(nn.Linear(3, 3), True) is not None
    assert fused.why_not_fused(CustomResNet(), True) is None


def test_on_a_cpu_the_forward_pass_is_torchs_and_fused_true_is_refused():
    model, cpu = nn.Linear(3, 3), torch.device("cpu")
    assert factory.make_training_forward(Config(), model, cpu) is None
    with pytest.raises(UsageError, match=r"fused=True, but device=cpu .*; leave --fused out"):
        factory.make_training_forward(Config(fused=True), model, cpu)


def test_what_else_the_kernels_do_not_have_is_named_and_the_module_is_used_where_nobody_asked_for_them(monkeypatch):
    """The checks before a GPU is used at all."""
    model, gpu = CustomResNet(width=64), torch.device("cuda")
    bf16 = {"precision": "bf16"}
    for settings, reason in (({"precision": "fp32"}, "precision=fp32"), ({**bf16, "freeze": "prep"}, "frozen layers")):
        assert factory.make_training_forward(Config(**settings), model, gpu) is None
        with pytest.raises(UsageError, match=f"fused=True, but .*{reason}.*; leave --fused out"):
            factory.make_training_forward(Config(fused=True, **settings), model, gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"fused=True, but Triton is not installed"):
        factory.make_training_forward(Config(fused=True, **bf16), model, gpu)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_are_used_where_they_fit():
    config, gpu = Config(precision="bf16"), torch.device("cuda")
    assert type(factory.make_training_forward(config, CustomResNet(width=64), gpu)).__name__ == "FusedForward"
    assert factory.make_training_forward(config, CustomResNet(width=16), gpu) is None


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_on_a_gpu_the_kernels_are_used_where_they_fit_the_model_and_else_torchs():
    from harness.models import fused
    from harness.models.cifar_resnet import CustomResNet

    gpu, fits, other = torch.device("cuda"), CustomResNet(), CustomResNet(width=16)
    bf16 = Config(precision="bf16")
    assert isinstance(factory.make_training_forward(bf16, fits, gpu), fused.FusedForward)
    assert factory.make_training_forward(bf16, other, gpu) is None
    with pytest.raises(UsageError, match=r"fused=True, but .*multiples"):
        factory.make_training_forward(bf16.replace(fused=True), other, gpu)
    for change in ({"fused": False}, {"precision": "fp32"}, {"gradient_checkpointing": True}, {"freeze_epochs": 1}):
        assert factory.make_training_forward(bf16.replace(**change), fits, gpu) is None, change
