"""Warm-up, steps and polynomials against the schedulers of torch and timm, update for update."""

import json
import math
import signal
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm import scheduler as timm_scheduler
from torch.optim import lr_scheduler as torch_scheduler

from harness.config.recipe import first_comparison, make_config
from harness.config.settings import Config
from harness.config.stored import read_stored_config
from harness.reporting.figures.schedule import curve
from harness.tracking.journal import read_journal
from harness.training.schedule import LEVELS, Schedule, make_schedule
from harness.utils.errors import UsageError
from tests.support.forked import TINY
from tests.support.forked import harness as command
from tests.support.resume import TIMED, flatten

EPOCHS, PER_EPOCH, LOW, HIGH = 9, 7, 0.01, 0.8
STEPS = EPOCHS * PER_EPOCH
KINDS = ("one_cycle", "cyclic", "cosine", "polynomial", "step", "multi_step", "plateau", "constant")


def make(kind, **given):
    chosen = {"epochs": EPOCHS, "lr_min": LOW, "lr_max": HIGH, "peak_epoch": 3, "cycles": 2, "val_fraction": 0.1}
    return make_schedule(Config(schedule=kind, **{**chosen, **given}), PER_EPOCH)


def rates(schedule):
    return [schedule.lr(step) for step in range(STEPS)]


def sgd(lr):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)


def rates_of_torch(scheduler, steps=STEPS):
    """Return the LR of each update of a scheduler of torch."""
    lrs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR's own
        for _ in range(steps):
            lrs.append(scheduler.optimizer.param_groups[0]["lr"])
            scheduler.optimizer.step()
            scheduler.step()
    return lrs


def rates_of_timm(scheduler, steps=STEPS):
    """Return the LR of each update of a scheduler of timm that counts updates."""
    lrs = []
    for step in range(steps):
        scheduler.step_update(step)
        lrs.append(scheduler.optimizer.param_groups[0]["lr"])
    return lrs


def after_warmup(make_main, warmup, factor, lr=HIGH):
    """Return torch's sequence of a linear warm-up and another scheduler, which begins after it."""
    optimizer = sgd(lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = torch_scheduler.LinearLR(optimizer, start_factor=factor, total_iters=warmup)
        return torch_scheduler.SequentialLR(optimizer, [first, make_main(optimizer)], milestones=[warmup])


WARMUP, FACTOR = 10, 0.05
REST = STEPS - WARMUP
TORCH = {
    "cosine": lambda optimizer: torch_scheduler.CosineAnnealingLR(optimizer, T_max=REST, eta_min=0),
    "polynomial": lambda optimizer: torch_scheduler.PolynomialLR(optimizer, total_iters=REST, power=1.7),
    "step": lambda optimizer: torch_scheduler.MultiStepLR(optimizer, [4, 18, 32, 46], gamma=0.3),
    "multi_step": lambda optimizer: torch_scheduler.MultiStepLR(optimizer, [18, 39], gamma=0.3),
    "constant": lambda optimizer: torch_scheduler.ConstantLR(optimizer, factor=1.0),
}


@pytest.mark.parametrize("kind", TORCH)
def test_a_schedule_after_a_warm_up_equals_torchs_sequence_of_both(kind):
    schedule = make(
        kind, lr_min=0, warmup_steps=WARMUP, warmup_factor=FACTOR, poly_power=1.7, step_factor=0.3, step_epochs=2, milestones="4,7"
    )  # fmt: skip
    expected = rates_of_torch(after_warmup(TORCH[kind], WARMUP, FACTOR))
    np.testing.assert_allclose(rates(schedule), expected, rtol=1e-12, atol=1e-12)


TIMM = {
    "cosine": lambda optimizer, **given: timm_scheduler.CosineLRScheduler(
        optimizer, t_initial=REST, lr_min=LOW, warmup_prefix=True, **given
    ),
    "polynomial": lambda optimizer, **given: timm_scheduler.PolyLRScheduler(
        optimizer, t_initial=REST, power=1.7, lr_min=LOW, warmup_prefix=True, **given
    ),
    "step": lambda optimizer, **given: timm_scheduler.StepLRScheduler(
        optimizer, decay_t=2 * PER_EPOCH, decay_rate=0.6, warmup_prefix=False, **given
    ),
    # A milestone of timm acts one update before that of torch.
    "multi_step": lambda optimizer, **given: timm_scheduler.MultiStepLRScheduler(
        optimizer, decay_t=[4 * PER_EPOCH + 1, 7 * PER_EPOCH + 1], decay_rate=0.6, warmup_prefix=False, **given
    ),
}


@pytest.mark.parametrize("kind", TIMM)
def test_a_schedule_with_a_warm_up_equals_timms(kind):
    schedule = make(
        kind, warmup_steps=WARMUP, warmup_factor=FACTOR, poly_power=1.7, step_factor=0.6, step_epochs=2, milestones=["4", "7"]
    )  # fmt: skip
    reference = TIMM[kind](sgd(HIGH), warmup_t=WARMUP, warmup_lr_init=FACTOR * HIGH, t_in_epochs=False)
    np.testing.assert_allclose(rates(schedule), rates_of_timm(reference), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(2, 90), power=st.floats(0.2, 4), low=st.floats(0, 0.5), step_size=st.integers(1, 40))
def test_steps_and_polynomials_of_any_length_equal_torchs_and_timms(steps, power, low, step_size):
    polynomial = Schedule("polynomial", steps, low, 1.0, power=power)
    reference = timm_scheduler.PolyLRScheduler(sgd(1.0), t_initial=steps, power=power, lr_min=low, t_in_epochs=False)
    np.testing.assert_allclose(
        [polynomial.lr(step) for step in range(steps)], rates_of_timm(reference, steps), rtol=1e-12, atol=1e-12
    )
    stepped = Schedule("step", steps, 0.0, 1.0, factor=0.7, step_size=step_size)
    expected = rates_of_torch(torch_scheduler.StepLR(sgd(1.0), step_size, gamma=0.7), steps)
    np.testing.assert_allclose([stepped.lr(step) for step in range(steps)], expected, rtol=1e-12)


def test_one_cycle_after_a_warm_up_equals_torchs_between_its_knots():
    schedule = make("one_cycle", warmup_steps=WARMUP, warmup_factor=FACTOR)
    knots = [0, WARMUP, 3 * PER_EPOCH, STEPS]
    expected = np.interp(np.arange(STEPS + 1), knots, [FACTOR * LOW, LOW, HIGH, LOW])
    np.testing.assert_allclose([schedule.lr(step) for step in range(STEPS + 1)], expected, rtol=1e-12)


def test_the_cycles_after_a_warm_up_are_those_of_the_rest_of_the_run():
    schedule = make("cyclic", warmup_epochs=1, cycles=4)
    reference = torch_scheduler.CyclicLR(sgd(LOW), LOW, HIGH, step_size_up=PER_EPOCH, cycle_momentum=False)
    np.testing.assert_allclose(rates(schedule)[PER_EPOCH:], rates_of_torch(reference, STEPS - PER_EPOCH), atol=1e-12)
    np.testing.assert_allclose(rates(schedule)[:PER_EPOCH], LOW * np.linspace(0.01, 1, PER_EPOCH, endpoint=False))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # timm is about to drop it
@settings(max_examples=40, deadline=None)
@given(losses=st.lists(st.floats(0.1, 1), min_size=5, max_size=30), warmup=st.integers(1, 4))
def test_plateau_regards_no_loss_of_the_warm_up_as_in_timm(losses, warmup):
    chosen = {"warmup_epochs": warmup, "warmup_factor": 0.25, "plateau_patience": 1, "plateau_factor": 0.5}
    schedule = make("plateau", lr_min=0, epochs=30, **chosen)
    reference = timm_scheduler.PlateauLRScheduler(
        sgd(HIGH), decay_rate=0.5, patience_t=1, mode="min", warmup_t=warmup, warmup_lr_init=0.25 * HIGH
    )
    for epoch in range(1, len(losses) + 1):
        reference.step(epoch, losses[epoch - 1])
        lr = schedule.lr(epoch * PER_EPOCH, losses[:epoch])
        assert lr == pytest.approx(reference.optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_up_is_linear_from_its_factor_to_the_first_lr_of_the_schedule(kind):
    schedule = make(kind, warmup_epochs=1.5, warmup_factor=0.2)
    warmup = round(1.5 * PER_EPOCH)
    end = schedule.lr(warmup)
    expected = end * np.interp(np.arange(warmup + 1), [0, warmup], [0.2, 1])
    np.testing.assert_allclose([schedule.lr(step) for step in range(warmup + 1)], expected, rtol=1e-12)
    assert end == pytest.approx(LOW if kind in ("one_cycle", "cyclic") else HIGH)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_new_settings_the_rates_are_what_they_were(kind):
    """The former formulas: no curve of a shipped recipe may change in its last digit."""
    schedule, peak, length = make(kind), 3 * PER_EPOCH, STEPS / 2
    for step in range(STEPS + 1):
        if kind in ("one_cycle", "cyclic"):
            at, top, end = (step, peak, STEPS) if kind == "one_cycle" else (step % length, length / 2, length)
            at = end if kind == "cyclic" and step == STEPS else at
            height = at / top if at < top else 0.0 if at >= end else (end - at) / (end - top)
        elif kind == "cosine":
            height = step / peak if step < peak else 0.5 * (1 + math.cos(math.pi * (step - peak) / (STEPS - peak)))
        else:
            continue
        assert schedule.lr(step) == LOW * (1 - height) + HIGH * height
    assert schedule.warmup == 0


def test_steps_and_milestones_are_parts_of_the_run_where_none_are_given():
    assert np.flatnonzero(np.diff(rates(make("step", lr_min=0)))).tolist() == [20, 41]
    assert np.flatnonzero(np.diff(rates(make("multi_step", lr_min=0)))).tolist() == [31, 46]
    for kind in ("step", "multi_step"):
        assert min(rates(make(kind, step_factor=0.001))) == LOW  # never below LRMIN


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "length"), [(24, 7, 0.5), (9, 3, 0.5), (10, 10, 0), (22, 1, 0), (3, 7, 0.35)]
)
def test_steps_of_parts_of_an_epoch_drop_at_every_multiple_rounded_to_an_update(epochs, per_epoch, length):
    config = Config(schedule="step", epochs=epochs, step_epochs=length, lr_min=0, lr_max=1, step_factor=0.5)
    schedule = make_schedule(config, per_epoch)
    size = length * per_epoch or math.ceil(epochs * per_epoch / 3)
    drops = [round(number * size) for number in range(1, epochs * per_epoch + 1)]
    for step in range(epochs * per_epoch):
        assert schedule.lr(step) == pytest.approx(0.5 ** sum(drop <= step for drop in drops), rel=1e-12)
    if not length:
        assert sum(drop < epochs * per_epoch for drop in drops) == 2  # none just before the end


@pytest.mark.parametrize(("per_epoch", "whole"), [(7, 0.5), (3, 0.5), (5, 0.5), (4, 1.5), (10, 2)])
def test_a_warm_up_up_to_the_peak_rises_to_it_whatever_is_rounded(per_epoch, whole):
    config = Config(epochs=EPOCHS, lr_min=LOW, lr_max=HIGH, warmup_epochs=whole, peak_epoch=whole)
    schedule = make_schedule(config, per_epoch)
    lrs = [schedule.lr(step) for step in range(EPOCHS * per_epoch)]
    highest = int(np.argmax(lrs))
    assert lrs[highest] == pytest.approx(HIGH) and abs(highest - whole * per_epoch) <= 1
    rise = np.diff(lrs[: highest + 1])
    assert rise == pytest.approx(rise.mean(), rel=1e-9)  # one straight line


def test_the_drawn_triangles_come_whole_after_a_warm_up():
    drawn = curve({"schedule": "cyclic", "warmup_steps": 10}, 97).lr
    assert drawn[10:] == pytest.approx(curve({"schedule": "cyclic"}, 97).lr, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_momentum_is_at_its_maximum_where_a_warm_up_begins_and_constant_with_levels(kind):
    schedule = make(kind, warmup_epochs=1, momentum=0.95, momentum_min=0.85)
    momenta = [schedule.momentum_at(step) for step in range(STEPS + 1)]
    assert momenta[0] == 0.95 and 0.85 <= min(momenta) <= max(momenta) <= 0.95
    if kind in LEVELS:
        assert set(momenta) == {0.95}
    elif kind in ("cosine", "polynomial"):
        np.testing.assert_allclose(momenta[: PER_EPOCH + 1], np.linspace(0.95, 0.85, PER_EPOCH + 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"warmup_epochs": 2, "warmup_steps": 5}, "both give the length of the warm-up; keep one"),
        ({"schedule": "cosine", "warmup_epochs": 9}, r"warmup_epochs=9\) must end before epochs=9"),
        ({"schedule": "cosine", "warmup_steps": 63}, "warm-up takes 63 updates, and the run 63 updates; lower"),
        ({"schedule": "one_cycle", "warmup_epochs": 4}, "need warmup_epochs <= peak_epoch, got 4 > 3"),
        ({"schedule": "one_cycle", "warmup_steps": 22}, "takes 22 updates, and one_cycle reaches its peak after 21"),
        ({"schedule": "step", "step_epochs": 9}, "lower the LR after epoch 9, and epochs=9; lower --step-epochs"),
        ({"schedule": "multi_step", "milestones": "10,20"}, "after epoch 10, and epochs=9; lower --milestones"),
        ({"schedule": "multi_step", "milestones": "2,9"}, "after epoch 9, and epochs=9; lower --milestones"),
        (
            {"schedule": "step", "step_epochs": 2, "warmup_epochs": 3},
            "lowers the LR after 14 already; .* --step-epochs",
        ),
        ({"schedule": "multi_step", "milestones": "1,5", "warmup_epochs": 3}, "after 7 already; .*raise --milestones"),
        ({"schedule": "one_cycle", "lr_min": 0, "warmup_epochs": 1}, "rises to LRMIN, which is 0.* --peak-epoch"),
        ({"schedule": "cyclic", "lr_min": 0, "warmup_steps": 1}, "rises to LRMIN, which is 0"),
        ({"milestones": "20,10"}, "milestones=20,10: need increasing epochs, such as 30,60,80"),
        ({"milestones": "0,10"}, "milestones=0,10: need increasing"),
        ({"milestones": "soon"}, "milestones=soon: need increasing"),
        ({"milestones": "nan"}, "milestones=nan: need increasing"),
        ({"warmup_factor": 1.5}, "need warmup_factor <= 1"),
        ({"schedule": "polynom"}, r"'polynom': need one of one_cycle, .*did you mean 'polynomial'\?"),
        ({"schedule": "cosine annealing"}, "need one of one_cycle"),
        ({"schedule": "cosine", "schedule_args": "power=2"}, "schedule_args are for schedules of plug-ins"),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        make(**{"kind": "constant", **{{"schedule": "kind"}.get(key, key): value for key, value in given.items()}})


def test_the_epochs_of_a_recipe_keep_their_fractions_of_a_shorter_run(tmp_path):
    recipe = tmp_path / "mine.yaml"
    text = "epochs: 90\nschedule: multi_step\nmilestones: [30, 60, 80]\nwarmup_epochs: 5\nstep_epochs: 30\n"
    recipe.write_text(text)
    shorter = make_config({"recipe": str(recipe), "epochs": 9})
    assert (shorter.milestones, shorter.warmup_epochs, shorter.step_epochs) == (("3", "6", "8"), 0.5, 3.0)
    mine = make_config({"recipe": str(recipe), "epochs": 9, "milestones": "4,5", "warmup_epochs": 2, "step_epochs": 1})
    assert (mine.milestones, mine.warmup_epochs, mine.step_epochs) == (("4", "5"), 2.0, 1.0)
    assert make_config({"epochs": 50}).step_epochs == 0
    assert make_config({"recipe": str(recipe), "epochs": 0}).milestones == ("30", "60", "80")


def test_runs_are_compared_half_way_between_the_end_of_the_warm_up_and_that_of_the_run():
    chosen = {"epochs": 20, "peak_epoch": 5, "schedule": "cosine"}
    assert first_comparison(Config(**chosen)) == 13
    assert first_comparison(Config(**chosen, warmup_epochs=2)) == 11
    assert first_comparison(Config(**{**chosen, "schedule": "polynomial"})) == 10


EXTENDED = ("cosine", "polynomial", "step", "multi_step", "one_cycle", "cyclic", "constant")


@pytest.mark.parametrize("kind", EXTENDED)
@pytest.mark.parametrize("since", [0, 3, 7, 20, 62, 63])
@pytest.mark.parametrize("epochs", [4, 9, 12])
def test_a_change_of_length_leaves_the_past_and_the_warm_up_as_they_were(kind, since, epochs):
    if since > PER_EPOCH * epochs:
        return
    chosen = {"warmup_epochs": 1, "peak_epoch": 2, "milestones": "3,5"}
    former, changed = make(kind, **chosen), make(kind, **chosen, epochs=epochs, extended=[f"{since}:9"])
    fixed = range(max(since, PER_EPOCH + 1))
    assert [changed.lr(step) for step in fixed] == [former.lr(step) for step in fixed]
    lrs = [changed.lr(step) for step in range(PER_EPOCH, changed.steps + 1)]
    assert LOW <= min(lrs) <= max(lrs) <= HIGH
    assert changed.describe_extension(PER_EPOCH)
    if kind in ("cosine", "polynomial", "one_cycle") and PER_EPOCH <= since < STEPS:
        assert changed.lr(since) == pytest.approx(former.lr(since)) and changed.lr(changed.steps) == pytest.approx(LOW)
    if kind in ("step", "multi_step"):
        assert lrs == [max(HIGH * 0.1 ** drops(kind, step), LOW) for step in range(PER_EPOCH, changed.steps + 1)]
        assert "keeps the epochs" in changed.describe_extension(PER_EPOCH)


def drops(kind, step):
    return step // 21 if kind == "step" else (step >= 21) + (step >= 35)


@pytest.mark.parametrize("kind", ["cosine", "polynomial"])
def test_a_curve_that_has_ended_begins_again_with_a_warm_up_where_it_had_one(kind):
    changed = make(kind, warmup_epochs=1, epochs=18, extended=["63:9"])
    begin = [changed.lr(63 + step) for step in range(8)]
    np.testing.assert_allclose(begin, np.linspace(LOW, HIGH, 8), rtol=1e-12)
    assert changed.lr(126) == pytest.approx(LOW)


WARMING = [*TINY, "--schedule", "cosine", "--warmup-steps", "17", "--checkpoint-every", "4", "--name", "r"]


@pytest.mark.slow
def test_a_run_that_is_killed_in_the_middle_of_its_warm_up_resumes_to_the_same_results(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    command("run", *WARMING, cwd=whole, check=0)
    assert command("run", *WARMING, cwd=killed, fault="kill@step=14").code == -signal.SIGKILL
    assert "from step 12" in command("run", *WARMING, cwd=killed, check=0).err
    runs = [read_journal(folder / "runs/r") for folder in (whole, killed)]
    lrs, again = ([lr for record in run.records if record.steps for lr in record.steps.lines["lr"]] for run in runs)
    assert (
        lrs == again == [make_schedule(read_stored_config(whole / "runs/r/config.yaml"), 11).lr(k) for k in range(33)]
    )
    assert lrs[:17] == sorted(lrs[:17]) and lrs[17] == max(lrs) and lrs[0] == pytest.approx(0.01 * lrs[17])
    states = [torch.load(folder / "runs/r/checkpoints/last.pt", weights_only=True) for folder in (whole, killed)]
    assert flatten(states[0]["learner"]) == flatten(states[1]["learner"])
    results = [json.loads((folder / "runs/r/summary.json").read_text())["result"] for folder in (whole, killed)]
    assert results[0] == results[1]
    assert not [key for key in results[0] if key.startswith(TIMED)]


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({}, 0.08, 0.8),
        ({"lr_max": 0.5}, 0.05, 0.5),
        ({"lr_min": 0.02}, 0.02, 0.2),
        ({"lr_min_ratio": 0.25}, 0.2, 0.8),
        ({"lr_min_ratio": 0.25, "lr_max": 0.4}, 0.1, 0.4),
        ({"lr_min": 0.1, "lr_max": 0.3}, 0.1, 0.3),
    ],
)
def test_a_rate_that_is_not_given_for_the_drawn_triangles_is_a_tenth_or_ten_times_of_the_other(given, low, high):
    drawn = curve({"schedule": "cyclic", **given}, 97).lr
    assert (min(drawn), max(drawn)) == (pytest.approx(low), pytest.approx(high))
