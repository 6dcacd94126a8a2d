"""The training loop against a reference PyTorch loop, and a stopped run against an uninterrupted one."""

import copy
import gc
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import nn
from torch.nn import functional as F

from harness.runs.progress import epoch_line
from harness.training import checkpoint
from harness.training.loop import TrainerState, evaluate_batches, fit
from harness.training.schedule import Schedule
from harness.utils.errors import DivergedError
from tests.support.training import (
    CPU,
    Batches,
    EvalBatches,
    assert_equal,
    eval_batches,
    learner,
    net,
    schedule,
    weights,
)


def test_training_equals_a_reference_pytorch_loop():
    model = net(dropout=0.0)
    twin = copy.deepcopy(model)
    records = list(fit(learner(model, weight_decay=5e-4), Batches(), schedule(2), epochs=2))

    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4)
    step, losses, lrs = 0, [], []
    for epoch in range(2):
        for images, labels in Batches().epoch(epoch):
            lrs.append(float(np.interp(step, [0, 3, 6], [0.01, 0.1, 0.01])))
            optimizer.param_groups[0]["lr"] = lrs[-1]
            optimizer.zero_grad()
            loss = F.cross_entropy(twin(images), labels)
            loss.backward()
            optimizer.step()
            losses.append((loss.item(), len(labels)))
            step += 1
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    for epoch, record in enumerate(records):
        expected = losses[3 * epoch : 3 * epoch + 3]
        assert record.values["train/loss"] == pytest.approx(
            np.average([loss for loss, _ in expected], weights=[size for _, size in expected]), rel=1e-5
        )
        assert list(record.steps.x) == [3 * epoch + 1, 3 * epoch + 2, 3 * epoch + 3]
        assert record.steps.lines["lr"] == pytest.approx(lrs[3 * epoch : 3 * epoch + 3])
        assert record.values["lr"] == pytest.approx(lrs[3 * epoch + 2])
        assert (record.step, record.epoch) == (3 * (epoch + 1), epoch + 1)


@pytest.mark.parametrize(
    "settings", [{}, {"label_smoothing": 0.1}, {"clip_grad": 0.01}, {"optimizer": "adamw"}, {"ema": 0.9}]
)
def test_a_batch_computed_in_micro_batches_gives_the_same_update(settings):
    models = []
    for micro_batches in (1, 3):
        model = net(dropout=0.0)
        model[1] = nn.Identity()  # BatchNorm normalises each micro-batch by itself
        list(fit(learner(model, grad_accumulation=micro_batches, **settings), Batches(), schedule(2), epochs=2))
        models.append(weights(model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_norm_of_the_step():
    model = net()
    before = weights(model)
    one = learner(model, clip_grad=1e-3, momentum=0.0, nesterov=False, weight_decay=0.0)
    images, labels = next(Batches().epoch(0))
    one.train_step(images, labels, 0, 1.0, 0.0)
    parameters = dict(model.named_parameters())
    moved = math.sqrt(sum(float((parameters[name].detach() - before[name]).square().sum()) for name in parameters))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_the_moving_average_is_the_recursion_over_the_weights():
    model = net()
    one = learner(model, ema=0.8, ema_warmup=False)
    expected = None
    for step, (images, labels) in enumerate(Batches().epoch(0)):
        one.train_step(images, labels, step, 0.1, 0.9)
        now = weights(model)["0.weight"]
        expected = now if expected is None else 0.8 * expected + 0.2 * now
    torch.testing.assert_close(one.eval_model.state_dict()["0.weight"], expected)
    assert one.eval_model is not model


def test_evaluation_is_exact_for_a_smaller_last_batch_and_does_not_change_the_model():
    model = net()
    model[1].eval()
    model.train(True)
    model[1].eval()
    batches = eval_batches()
    before = weights(model)
    metrics = evaluate_batches(model, batches, CPU)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = copy.deepcopy(model).eval()(images)
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert metrics["acc"] == (logits.argmax(1) == labels).double().mean().item()
    assert_equal(before, weights(model))
    assert model.training
    assert not model[1].training


def test_the_metrics_over_classes_are_those_of_scikit_learn():
    model, batches = net(), eval_batches((50, 31, 7))
    for _, labels in batches:  # no image of one class, few of another
        labels.copy_(torch.where(torch.rand(len(labels)) < 0.9, 2, 1))
    metrics = evaluate_batches(model, batches, CPU)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    predicted = model.eval()(images).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted and have no images
        assert metrics["balanced_acc"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert len({metrics["acc"], metrics["balanced_acc"], metrics["f1_macro"]}) == 3
    assert 0 in predicted and 0 not in labels


def test_evaluation_computes_no_gradients():
    """The logits would otherwise keep the activations of a whole batch."""

    class Recording(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.logits = nn.Linear(192, 3), []

        def forward(self, images):
            self.logits.append(self.linear(images.flatten(1)))
            return self.logits[-1]

    model = Recording()
    evaluate_batches(model, eval_batches(), CPU)
    assert [logits.requires_grad for logits in model.logits] == [False] * 3


def test_with_a_moving_average_it_is_the_average_that_is_evaluated():
    one, batches = learner(net(dropout=0.0), ema=0.9, ema_warmup=False), eval_batches()
    (record,) = fit(one, Batches(), schedule(1), epochs=1, evaluations={"val": batches})
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        average, weights_themselves = (
            F.cross_entropy(copy.deepcopy(module).eval()(images), labels).item()
            for module in (one.ema.module, one.model)
        )
        hits = (one.model.eval()(images).argmax(1) == labels).double().mean().item()
    assert record.values["val/loss"] == pytest.approx(average, rel=1e-5)
    assert abs(average - weights_themselves) > 0.01
    assert record.values["val/loss_plain"] == pytest.approx(weights_themselves, rel=1e-5)
    assert record.values["val/acc_plain"] == hits
    assert f"without EMA {100 * hits:6.2f} %" in epoch_line(record, 1)


def test_without_a_moving_average_nothing_is_evaluated_twice():
    (record,) = fit(learner(net()), Batches(), schedule(1), epochs=1, evaluations={"val": eval_batches()})
    assert not [name for name in record.values if name.endswith("_plain")]


def test_the_times_and_the_throughput_of_an_epoch_add_up():
    (record,) = fit(learner(net()), Batches(), schedule(1), epochs=1, evaluations={"val": eval_batches()})
    values = record.values
    assert values["time/epoch_s"] == pytest.approx(values["time/train_s"] + values["time/eval_s"])
    assert min(values["time/train_s"], values["time/eval_s"]) > 0
    assert values["throughput/images_per_s"] == pytest.approx(21 / values["time/train_s"])


def test_no_torch_mode_leaks_out_of_the_generator():
    for _ in fit(learner(net()), Batches(), schedule(2), epochs=2, evaluations={"val": eval_batches()}):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "settings",
    [{}, {"ema": 0.9}, {"optimizer": "adamw"}, {"clip_grad": 0.5, "grad_accumulation": 2}, {"bias_lr_scale": 8}],
)
@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_a_run_stopped_at_any_step_resumes_with_bit_identical_results(stop, settings, tmp_path):
    def train(model, state, on_step=None):
        one = learner(model, **settings)
        if state is None:
            state = TrainerState()
            stored = checkpoint.load_checkpoint(checkpoint.newest_checkpoint(tmp_path))
            one.load_state_dict(stored["learner"])
            state.load_state_dict(stored["progress"], CPU)
        records = []
        try:
            for record in fit(
                one, Batches(), schedule(3), epochs=3, evaluations={"val": eval_batches()}, state=state, on_step=on_step
            ):
                records.append(record)
        except Stop:
            checkpoint.save_checkpoint(
                tmp_path, {"learner": one.state_dict(), "progress": state.state_dict()}, {"step": state.step}
            )
        return weights(one.eval_model), records

    uninterrupted, expected = train(net(), TrainerState())

    def stop_at_step(info):
        if info.step == stop:
            raise Stop

    train(net(), TrainerState(), stop_at_step)
    torch.manual_seed(12345)  # another user of the global generator
    resumed, records = train(net(seed=7), None)
    assert_equal(uninterrupted, resumed)
    timings = {"time/epoch_s", "time/train_s", "time/eval_s", "throughput/images_per_s", "memory/peak_gib"}
    for record, other in zip(reversed(records), reversed(expected), strict=False):
        assert {key: value for key, value in record.values.items() if key not in timings} == {
            key: value for key, value in other.values.items() if key not in timings
        }
        assert record.steps == other.steps


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change():
    model = net()

    class BatchesWithNaN(Batches):
        def epoch(self, epoch, start=0):
            for index, (images, labels) in enumerate(super().epoch(epoch, start)):
                yield (images * math.nan if (epoch, index) == (1, 1) else images), labels

    state = TrainerState()
    with pytest.raises(DivergedError, match=r"step 5, learning rate 0\.0"):
        list(fit(learner(model), BatchesWithNaN(), schedule(3), epochs=3, state=state))
    assert state.step == 4
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_training_ends_when_the_consumer_of_the_records_stops():
    model, epochs = net(), []
    for record in fit(learner(model), Batches(), schedule(5), epochs=5):
        epochs.append(record.epoch)
        if record.epoch == 2:
            break
    assert epochs == [1, 2]


def test_the_plateau_schedule_follows_the_validation_loss_as_torchs_scheduler_does():
    plateau = Schedule("plateau", 100, 0.0, 1.0, patience=0, factor=0.5)
    records = list(fit(learner(net()), Batches(), plateau, epochs=6, evaluations={"val": eval_batches()}))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    lrs = []
    for record in records:
        lrs.append(optimizer.param_groups[0]["lr"])
        assert record.steps.lines["lr"] == pytest.approx([lrs[-1]] * 3)
        reference.step(record.values["val/loss"])
    assert len(set(lrs)) > 1  # it was lowered


def test_garbage_is_not_collected_within_an_epoch_and_the_collector_is_restored_afterwards():
    states, frozen = [], gc.get_freeze_count()

    def on_step(info):
        states.append((gc.isenabled(), gc.get_freeze_count() > 0))

    for _ in fit(learner(net()), Batches(), schedule(2), epochs=2, on_step=on_step):
        assert gc.isenabled() and gc.get_freeze_count() == frozen
    assert states == [(False, True)] * 6
    gc.disable()
    try:
        list(fit(learner(net()), Batches(), schedule(1), epochs=1))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_state_for_a_checkpoint_is_made_without_a_copy_to_the_cpu(monkeypatch):
    state = TrainerState()

    def stop_at_second_step(info):
        if info.step == 2:
            raise Stop

    with pytest.raises(Stop):
        list(fit(learner(net()), Batches(), schedule(1), epochs=1, state=state, on_step=stop_at_second_step))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: pytest.fail("this waits for a GPU"))
    assert state.state_dict()["losses"].tolist() == [float(loss) for loss in state.losses]


def test_of_no_images_every_metric_is_unknown():
    metrics = evaluate_batches(net(), EvalBatches(), CPU)
    assert metrics.keys() == evaluate_batches(net(), eval_batches(), CPU).keys()
    assert all(math.isnan(value) for value in metrics.values())
