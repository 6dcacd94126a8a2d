"""The moving average of the weights against torch's."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.support.training import Batches, assert_equal, learner, net, weights


def test_the_moving_average_is_bit_identical_to_torchs_and_sends_nothing_to_the_device(monkeypatch):
    model = net()
    one = learner(model, ema=0.8, ema_warmup=False)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    for step, (images, labels) in enumerate(Batches().epoch(0)):
        with monkeypatch.context() as patched:
            # torch's own implementation calls it, to have the number of updates on the device of the parameters.
            patched.setattr(torch.Tensor, "to", lambda *args, **more: pytest.fail("this waits for a GPU"))
            one.train_step(images, labels, step, 0.1, 0.9)
        reference.update_parameters(model)
        assert_equal(reference.state_dict(), one.ema.state_dict())


def test_the_warm_up_is_that_of_timms_moving_average():
    model = net()
    one = learner(model, ema=0.7)
    reference = ModelEmaV3(model, decay=0.7, use_warmup=True)
    decays = []
    for epoch in range(4):
        for images, labels in Batches().epoch(epoch):
            one.train_step(images, labels, len(decays), 0.1, 0.9)
            decays.append(one.ema.decay_after(len(decays)))
            reference.update(model, step=len(decays))
            torch.testing.assert_close(
                dict(reference.module.named_parameters()), dict(one.eval_model.named_parameters())
            )
    assert decays[0] == 0 and decays == sorted(decays) and decays[-1] == 0.7


def test_with_warm_up_the_initial_weights_do_not_stay_in_the_average_of_a_short_run():
    model = net()
    before = weights(model)["0.weight"]
    short, long = learner(model, ema=0.999), learner(model, ema=0.999, ema_warmup=False)
    for step in range(50):
        with torch.no_grad():
            model[0].weight.copy_(before + 1)  # as if the first update had done all of the training
        for one in (short, long):
            one.ema.update_parameters(model)
            if step == 0:
                one.ema.module[0].weight.data.copy_(before)
    assert (short.eval_model[0].weight - before).mean() > 0.99
    assert (long.eval_model[0].weight - before).mean() < 0.1
