"""After memory ran out, convolutions are computed although oneDNN fails for ever in a thread where it has failed once."""

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, cross_entropy

from harness.training.device import evaluation_memory
from harness.training.learner import Learner
from harness.training.process_settings import restore_process_settings
from harness.utils.errors import ONEDNN_ERROR, ResourceError
from tests.support.forked import context, join_server

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN on this machine: nothing can fail so"
)


def convolve(size):
    """Check a convolution against NumPy; every new size needs a new kernel."""
    images, filters = torch.randn(3, 2, size, size), torch.randn(4, 2, 3, 3)
    windows = np.lib.stride_tricks.sliding_window_view(images.double().numpy(), (3, 3), (2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, filters.double().numpy())
    np.testing.assert_allclose(conv2d(images, filters), expected, rtol=1e-4, atol=1e-5)


def make_onednn_fail():
    """Raise oneDNN's error: this process may take no memory beyond what it has, and a kernel needs some."""
    convolve(4)
    small = [torch.empty(1000) for _ in range(4000)]
    del small[::2]  # so that there is room for small tensors
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), hard))
    try:
        for size in range(5, 40):
            convolve(size)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def a_run_that_fails():
    with pytest.raises(RuntimeError, match=ONEDNN_ERROR), restore_process_settings():
        make_onednn_fail()


def an_evaluation_that_fails():
    with pytest.raises(ResourceError, match="lower --eval-batch-size"), evaluation_memory(7):
        make_onednn_fail()


def a_batch_that_is_computed_in_parts():
    class Failing(nn.Module):
        """A convolution that fails at the first call."""

        def __init__(self):
            super().__init__()
            self.conv, self.has_failed = nn.Conv2d(2, 4, 6), False

        def forward(self, images):
            if not self.has_failed:
                self.has_failed = True
                make_onednn_fail()
            return self.conv(images).flatten(1)

    model = Failing()
    images, labels = torch.randn(8, 2, 6, 6), torch.arange(8) % 4
    before = [parameter.detach().double().requires_grad_() for parameter in model.parameters()]
    loss = cross_entropy(torch.einsum("nchw,ochw->no", images.double(), before[0]) + before[1], labels)
    loss.backward()
    learner = Learner(model, torch.optim.SGD(model.parameters(), lr=1.0), torch.device("cpu"), auto_batch=True)
    result = learner.train_step(images, labels, 0, 0.5, 0.0)
    assert (learner.grad_accumulation, learner.is_without_onednn) == (2, True)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.double(), old - 0.5 * old.grad, rtol=1e-4, atol=1e-6)


def work(function):
    """Call the function in a thread: its stack has all its memory from the start, whereas that of a process grows."""

    def call():
        torch.manual_seed(0)
        function()
        for size in range(40, 50):
            convolve(size)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


@pytest.mark.parametrize("function", [a_run_that_fails, an_evaluation_that_fails, a_batch_that_is_computed_in_parts])
def test_convolutions_are_right_after_onednn_has_failed_in(function):
    join_server()
    process = context.Process(target=work, args=(function,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
