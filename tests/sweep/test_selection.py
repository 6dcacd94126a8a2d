"""The best trials: over seeds, and by several metrics at once."""

import itertools

import numpy as np
import optuna
import pytest

from harness.sweep.metric import Metric
from harness.sweep.selection import TrialRecord, best_record, hypervolume, pareto_front, reference_point, seed_groups

UP, DOWN = Metric("val/acc", True), Metric("val/loss", False)


def record(number, history=(), state="complete", objectives=(), **values):
    return TrialRecord(number, f"trial-{number:04d}", state, values, list(history), "", tuple(objectives))


def test_a_configuration_is_the_best_by_its_mean_over_the_seeds_and_not_by_its_luckiest_one():
    scores = {(0.1, 0): 0.99, (0.1, 1): 0.50, (0.1, 2): 0.51, (0.2, 0): 0.80, (0.2, 1): 0.84, (0.2, 2): 0.81}
    records = [record(n, [score], lr=lr, seed=seed) for n, ((lr, seed), score) in enumerate(scores.items())]
    records.append(record(9, [0.999], lr=0.3, seed=0))  # one seed of three is no comparison
    best = best_record(records, [UP], "seed")
    assert best.values == {"lr": 0.2, "seed": 2}  # nearest to the mean, 0.8167
    group = next(group for group in seed_groups(records, UP, "seed") if group.values == {"lr": 0.2})
    assert (group.mean, group.deviation) == pytest.approx(
        (np.mean([0.8, 0.84, 0.81]), np.std([0.8, 0.84, 0.81], ddof=1))
    )
    assert best_record(records, [UP]).values == {"lr": 0.3, "seed": 0}  # without the seeds' name: the single best


@pytest.mark.parametrize(
    ("maximise", "values", "are_reached"),
    [(True, (0.79, 0.8, 0.81), (False, True, True)), (False, (0.79, 0.8, 0.81), (True, True, False))],
)
def test_a_target_is_reached_from_its_own_side_and_at_itself(maximise, values, are_reached):
    metric = Metric("m", maximise, target=0.8)
    assert tuple(map(metric.reached, values)) == are_reached
    assert not any(Metric("m", maximise).reached(value) for value in values)


@pytest.mark.parametrize(("metric", "best"), [(UP, 1), (DOWN, 2), (Metric("m", True, takes_last=True), 0)])
def test_the_best_record_is_that_of_the_goal_by_the_best_or_the_last_value_of_each(metric, best):
    histories = [[0.5, 0.8], [0.9, 0.3], [0.7, 0.1, 0.2]]
    records = [record(number, history) for number, history in enumerate(histories)]
    assert best_record(records, [metric]).number == best
    pruned = [record(9, [2.0, -2.0], state="pruned")]
    assert best_record(records + pruned, [metric]).number == best
    assert best_record(pruned, [metric]).number == 9
    assert best_record([record(3, state="failed")], [metric]) is None


def test_the_mean_over_the_seeds_is_taken_of_the_goal_too():
    scores = {(0.1, 0): 0.1, (0.1, 1): 0.9, (0.2, 0): 0.3, (0.2, 1): 0.4}
    records = [record(n, [score], lr=lr, seed=seed) for n, ((lr, seed), score) in enumerate(scores.items())]
    assert best_record(records, [DOWN], "seed").values["lr"] == 0.2  # 0.35 on average, and 0.5
    assert best_record(records, [UP], "seed").values["lr"] == 0.1


@pytest.mark.parametrize("metrics", [(UP, DOWN), (DOWN, UP, DOWN), (UP, UP)])
def test_the_pareto_front_is_that_of_optuna_and_of_its_definition(metrics):
    draw = np.random.default_rng(len(metrics))
    points = draw.integers(0, 6, (40, len(metrics))).astype(float)
    records = [record(n, [point[0]], objectives=point) for n, point in enumerate(points)]
    signs = np.array([-1 if metric.maximise else 1 for metric in metrics])
    dominated = [
        any(all(other * signs <= point * signs) and any(other * signs < point * signs) for other in points)
        for point in points
    ]
    front = pareto_front(records, metrics)
    assert {each.number for each in front} == {n for n, is_worse in enumerate(dominated) if not is_worse}
    study = optuna.create_study(directions=["maximize" if metric.maximise else "minimize" for metric in metrics])
    for point in points:
        study.add_trial(optuna.trial.create_trial(values=point.tolist()))
    assert {each.number for each in front} == {trial.number for trial in study.best_trials}
    assert best_record(records, metrics) is front[0]
    first = [each.objectives[0] for each in front]
    assert first[0] == (max if metrics[0].maximise else min)(first)


@pytest.mark.parametrize("metrics", [(UP, DOWN), (DOWN, UP, DOWN)])
def test_the_hypervolume_is_the_share_of_a_fine_lattice_that_the_front_dominates(metrics):
    draw = np.random.default_rng(7)
    records = [record(n, [0], objectives=draw.integers(0, 9, len(metrics)).astype(float)) for n in range(12)]
    reference = reference_point(records, metrics)
    signs = np.array([-1 if metric.maximise else 1 for metric in metrics])
    points = np.array([each.objectives for each in records]) * signs
    corner = np.array(reference) * signs
    assert (points.max(axis=0) == corner).all()
    lattice = itertools.product(
        *(np.arange(low, high) + 0.5 for low, high in zip(points.min(axis=0), corner, strict=True))
    )
    count = sum(any((point <= cell).all() for point in points) for cell in map(np.array, lattice))
    assert hypervolume(records, metrics, reference) == pytest.approx(count)
    without = [each for each in records if each is not pareto_front(records, metrics)[0]]
    assert hypervolume(without, metrics, reference) <= count
    assert hypervolume([], metrics, reference) == 0


def test_a_trial_without_every_metric_is_not_on_the_front():
    records = [record(0, [0.9], state="failed"), record(1, [0.5], objectives=(0.5, 2.0))]
    assert [each.number for each in pareto_front(records, (UP, DOWN))] == [1]
    assert best_record([records[0]], (UP, DOWN)) is None
    assert reference_point([records[0]], (UP, DOWN)) == []
