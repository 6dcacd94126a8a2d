"""The steps of an unfinished epoch are recorded while it is trained, and the training does not depend on it."""

import copy
import math
import time

import pytest
import torch

from harness.training.loop import TrainerState, fit
from harness.utils.errors import DivergedError
from harness.utils.signals import Interrupted
from tests.support.training import CPU, Batches, assert_equal, eval_batches, learner, net, schedule, weights

SIZES = (8, 8, 5, 8)


def train(live_seconds, state=None, model=None, on_step=None, epochs=2, **settings):
    """Train a small network; return its learner, state and records."""
    subject, state = learner(model or net(), **settings), state or TrainerState()
    kwargs = dict(epochs=epochs, evaluations={"test": eval_batches()}, state=state, on_step=on_step)
    records = fit(subject, Batches(SIZES), schedule(epochs, len(SIZES)), live_seconds=live_seconds, **kwargs)
    return subject, state, records


def collect(iterator, records):
    """Add the records to a list as they come."""
    for record in iterator:
        records.append(record)  # `extend` would lose those before an error


@pytest.mark.parametrize("settings", [{}, {"clip_grad": 0.5}], ids=["plain", "clipped"])
def test_live_records_hold_every_step_once_and_training_is_bit_identical_without_them(settings):
    began = time.time()
    live, _, records = train(0.0, **settings)
    records = list(records)
    plain, _, expected = train(None, **settings)
    expected = list(expected)
    assert_equal(weights(live.model), weights(plain.model))
    epochs = [record for record in records if record.kind == "epoch"]
    assert [record.steps for record in epochs] == [record.steps for record in expected]
    assert [record.values["train/loss"] for record in epochs] == [record.values["train/loss"] for record in expected]
    for number, whole in enumerate(expected):
        parts = [record for record in records if record.kind == "steps" and record.epoch == number]
        # All but the last step, whose row is that of the epoch.
        assert [step for part in parts for step in part.steps.x] == list(whole.steps.x)[:-1]
        for name, line in whole.steps.lines.items():
            assert [value for part in parts for value in part.steps.lines[name]] == list(line)[:-1], name
        assert [moment for part in parts for moment in part.step_times] == epochs[number].step_times[:-1]
    times = [moment for record in epochs for moment in (*record.step_times, record.time)]
    assert times == sorted(times) and began - 0.001 <= times[0] and times[-1] <= time.time() + 0.001


def test_every_step_has_its_fraction_of_the_epochs_and_the_images_seen():
    lines = [record.steps.lines for record in train(None)[2]]
    assert [value for line in lines for value in line["epoch"]] == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert [value for line in lines for value in line["images_seen"]] == [8, 16, 21, 29, 37, 45, 50, 58]


def test_a_run_that_is_stopped_within_an_epoch_has_recorded_its_steps_before():
    def stop(info):
        if info.step == 6:
            raise Interrupted("stopped", 143)

    records = []
    with pytest.raises(Interrupted):
        collect(train(1000.0, on_step=stop)[2], records)
    assert [(record.kind, list(record.steps.x)) for record in records] == [("epoch", [1, 2, 3, 4]), ("steps", [5, 6])]


def test_a_run_that_diverges_has_recorded_the_steps_before_it():
    model = net()
    records = []

    def spoil(info):
        if info.step == 3:
            with torch.no_grad():
                model[0].weight.fill_(math.nan)

    with pytest.raises(DivergedError, match="at step 4"):
        collect(train(1000.0, model=model, on_step=spoil)[2], records)
    assert [(record.kind, list(record.steps.x)) for record in records] == [("steps", [1, 2, 3])]


def test_a_resumed_epoch_returns_its_earlier_steps_with_their_former_times():
    state = TrainerState()
    subject, _, _ = train(None)
    saved = {}

    def save(info):
        if info.step == 2:
            saved.update(copy.deepcopy(state.state_dict()))

    kwargs = dict(epochs=1, evaluations={"test": eval_batches()})
    (whole,) = fit(subject, Batches(SIZES), schedule(1, len(SIZES)), state=state, on_step=save, **kwargs)
    saved["times"] = [1e9, 2e9]
    resumed = TrainerState()
    resumed.load_state_dict(saved, CPU)
    records = list(
        fit(learner(net()), Batches(SIZES), schedule(1, len(SIZES)), state=resumed, live_seconds=0.0, **kwargs)
    )
    assert [step for record in records[:-1] for step in record.steps.x] == [1, 2, 3]
    assert records[0].steps.lines["train/step_loss"][:2] == whole.steps.lines["train/step_loss"][:2]
    assert records[0].step_times[:2] == records[-1].step_times[:2] == [1e9, 2e9]


def test_a_checkpoint_without_the_times_of_steps_is_loaded():
    state = TrainerState(
        step=2, losses=[torch.ones(())] * 2, corrects=[torch.ones(())] * 2, lrs=[0.1] * 2, sizes=[8] * 2
    )
    former = {name: value for name, value in state.state_dict().items() if name != "times"}
    state.load_state_dict(former, CPU)
    assert len(state.times) == 2 and abs(state.times[0] - time.time()) < 60
