"""What a sweep shows on standard error, and the text of its result."""

import io
import statistics

from harness.config.names import TrialStatus
from harness.sweep import progress
from harness.sweep.progress import SweepLog, SweepTable, sweep_summary
from harness.sweep.schema import parse_sweep
from harness.sweep.selection import TrialRecord
from tests.sweep.test_study import BOTH, sweep


def record(number, history=(), state=TrialStatus.COMPLETE, reason="", objectives=(), **values):
    return TrialRecord(number, f"trial-{number:04d}", state, values, list(history), reason, tuple(objectives))


RECORDS = [
    record(0, [0.5, 0.75], lr_max=0.1, lr_min=0.001),
    record(1, [0.25], TrialStatus.PRUNED, lr_max=0.9, lr_min=0.5),
    record(2, [], TrialStatus.FAILED, "the loss is [nan]", lr_max=3.0, lr_min=0.1),
    record(3, [0.125], TrialStatus.RUNNING, lr_max=0.2, lr_min=0.002),
]


def rows(stream):
    """Return the cells of the last table that was drawn, a list for each trial."""
    lines = [line for line in stream.getvalue().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {row[0]: row[1:] for row in cells if row[0].startswith("trial-")}


def test_the_table_has_a_row_for_each_trial_with_what_was_drawn_and_its_best_score(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stream = io.StringIO()
    table = SweepTable(sweep(), stream)
    table.update(RECORDS, RECORDS[0], "8 to start")
    table.close()
    assert rows(stream) == {
        "trial-0000": ["0.1", "0.001", "complete", "2", "0.7500"],
        "trial-0001": ["0.9", "0.5", "stopped early", "1", "0.2500"],
        "trial-0002": ["3", "0.1", "failed", "0", "-"],
        "trial-0003": ["0.2", "0.002", "running", "1", "0.1250"],
    }
    text = " ".join(stream.getvalue().split())
    assert "x: 1 complete, 1 stopped early, 1 failed, 1 running; " in text
    assert "best so far 0.7500 (trial-0000)" in text and "8 to start" in text


def test_of_many_trials_the_table_has_the_latest_ones_and_the_best(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    many = [record(number, [0.9 if number == 2 else 0.1], lr_max=0.1, lr_min=0.01) for number in range(40)]
    stream = io.StringIO()
    table = SweepTable(sweep(), stream)
    table.update(many, many[2], "")
    table.close()
    latest = [f"trial-{number:04d}" for number in range(40 - progress.MAX_ROWS, 40)]
    assert list(rows(stream)) == ["trial-0002", *latest]


def test_the_table_shows_the_reason_of_a_failure_as_it_is_written_and_no_other_end(monkeypatch):
    stream = io.StringIO()
    table = SweepTable(sweep(), stream)
    table.trial_started("trial-0000", {})
    for each in RECORDS[:3]:
        table.trial_ended(each, 1.0, None, "")
    table.close()
    assert "trial-0002 failed: the loss is [nan]" in stream.getvalue() and "trial-0000" not in stream.getvalue()


def test_the_table_is_redrawn_at_most_twice_a_second(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    table = SweepTable(sweep(), io.StringIO())
    assert table.is_due()
    table.update(RECORDS, None, "")
    assert not table.is_due()
    now[0] += progress.REDRAW_INTERVAL
    assert table.is_due()
    table.close()


def test_without_a_terminal_each_start_and_end_is_a_line():
    stream = io.StringIO()
    log = SweepLog(sweep(), stream)
    log.trial_started("trial-0000", {"lr_max": 0.123456, "model": "resnet\x1b[2J"})
    log.trial_ended(RECORDS[1], 12.34, RECORDS[0], "8 to start")
    log.trial_ended(RECORDS[2], 0.5, None, "")
    assert not log.is_due()
    assert [" ".join(line.split()) for line in stream.getvalue().splitlines()] == [
        "trial-0000 started lr_max=0.1235 model=resnet\\u001b[2J",
        "trial-0001 stopped early best/val_acc 0.2500 12.3 s best so far 0.7500 (trial-0000) 8 to start",
        "trial-0002 failed best/val_acc - 0.5 s the loss is [nan]",
    ]


def test_the_summary_has_the_best_trial_and_the_time_that_was_not_training():
    times = {"seconds": 120.4, "fraction_not_training": 0.25, "median_overhead_s": 3.21}
    lines = sweep_summary(sweep(), RECORDS, RECORDS[0], times).splitlines()
    assert lines[1:3] == ["best        best/val_acc 0.7500 (trial-0000)", "            lr_max=0.1  lr_min=0.001"]
    assert lines[3] == "time        120 s in trials, 25 % of it not training (3.2 s per trial)"
    assert sweep_summary(sweep(), [], None, {}).splitlines() == [
        "trials      0: none",
        "best        none: no trial logged the metric",
    ]


def test_the_summary_of_a_search_over_seeds_has_the_mean_and_deviation_of_the_best_configuration():
    scores = {(0.1, 0): 0.75, (0.1, 1): 0.5, (0.2, 0): 0.25, (0.2, 1): 0.25}
    records = [record(n, [score], lr_max=lr, seed=seed) for n, ((lr, seed), score) in enumerate(scores.items())]
    parameters = {"lr_max": {"values": [0.1, 0.2]}, "seed": {"values": [0, 1]}}
    summary = sweep_summary(sweep("grid", parameters), records, records[0], {})
    mean, deviation = statistics.fmean([0.75, 0.5]), statistics.stdev([0.75, 0.5])
    assert f"seeds       2: mean {mean:.4f}, standard deviation {deviation:.4f}" in summary


def test_the_summary_of_several_metrics_has_the_trials_that_no_other_beats():
    metrics = [{"name": "val/acc", "goal": "maximize"}, {"name": "val/loss", "goal": "minimize"}]
    records = [
        record(0, [0.75], objectives=(0.75, 0.9), lr_max=0.1),
        record(1, [0.5], objectives=(0.5, 0.3), lr_max=0.2),
        record(2, [0.4], objectives=(0.4, 0.8), lr_max=0.3),  # worse than 1 in both
    ]
    parameters = {**BOTH, "val_fraction": {"value": 0.2}}
    several = {"method": "custom", "metrics": metrics, "scheduler": {"engine": "optuna"}}
    document = parse_sweep({**several, "command": ["harness", "run", "${args}"], "parameters": parameters}, "x", {})
    summary = sweep_summary(document, records, records[0], {})
    assert "best        val/acc val/loss 0.75 0.9 (trial-0000)" in summary
    assert "Pareto      2 trials: trial-0000, trial-0001" in summary
