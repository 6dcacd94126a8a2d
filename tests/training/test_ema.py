"""The moving average of the weights against torch's."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.support.training import Batches, assert_equal, learner, net


def test_the_moving_average_is_bit_identical_to_torchs_and_sends_nothing_to_the_device(monkeypatch):
    model = net()
    one = learner(model, ema=0.8)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    for step, (images, labels) in enumerate(Batches().epoch(0)):
        with monkeypatch.context() as patched:
            # torch's own implementation calls it, to have the number of updates on the device of the parameters.
            patched.setattr(torch.Tensor, "to", lambda *args, **more: pytest.fail("this waits for a GPU"))
            one.train_step(images, labels, step, 0.1, 0.9)
        reference.update_parameters(model)
        assert_equal(reference.state_dict(), one.ema.state_dict())
