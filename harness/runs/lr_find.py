"""The LR range test of `harness lr-find`, and of `--lr-max find` at the start of a run."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.config.recipe import AnyConfig
from harness.config.settings import FIND, Config
from harness.config.sweep_values import with_sweep_values
from harness.data.own_datasets import config_of_call
from harness.lr_finder.finder import LRFinder, LRFinderInputs, LRFinderOptions, range_for, with_placeholder_lr
from harness.lr_finder.range_test import median_curve, seed_curve
from harness.lr_finder.result import LRFinderResult, check_sweepable, result_table, sweep_yaml
from harness.lr_finder.suggestion import lr_min_for, peak_rule
from harness.reporting.figures import lr_finder, training_curves
from harness.reporting.range_test_chart import range_test_chart
from harness.runs.advice import missing_weights
from harness.runs.automatic import choices_table, decide_settings
from harness.runs.components import Components, build_components
from harness.runs.console_log import ConsoleLog
from harness.runs.progress import LineReporter, ProgressReporter
from harness.runs.tracked_run import check_tracking, tracked_run
from harness.runs.trainer import tracking_header
from harness.tracking import run_dir
from harness.tracking.chosen_settings import write_choices
from harness.tracking.records import Record, Value
from harness.tracking.run_names import default_name
from harness.tracking.tracker import Tracker
from harness.tracking.wandb.client import has_active_run
from harness.tracking.wandb.failed_trial import report_failed_trial
from harness.training.device import describe_environment
from harness.training.process_settings import restore_process_state
from harness.utils.errors import UsageError
from harness.utils.files import read_json, write_atomically, write_json
from harness.utils.plain import number
from harness.utils.signals import StopRequests

JSON, FIGURE = "lr_finder.json", "lr_finder.png"


@restore_process_state()
def find_lr(
    config: AnyConfig = None,
    *,
    steps: int | None = None,
    low: float | None = None,
    high: float | None = None,
    linear: bool = False,
    seeds: int = 3,
    confirm: int = 0,
    write_sweep: Path | None = None,
    reporter: ProgressReporter | None = None,
    **settings: Any,
) -> LRFinderResult:
    """Run the LR range test in a run directory of its own and record it: the same as `harness lr-find`.

    Args:
        config: a configuration, a dictionary of settings, or a recipe by its name or path.
        steps: updates between `low` and `high`; the test continues above `high` while the loss does not diverge.
        low, high: bounds of the learning rate; by default those that fit the optimizer.
        linear: raise the rate by equal steps instead of equal factors.
        seeds: how many times the test runs, each with other weights and another order of the images.
        confirm: short one-cycle runs around the suggestion; the one with the best held-out accuracy (mAP of several labels per image) is taken.
        write_sweep: where to write a W&B sweep whose ranges come from the test.
        settings: settings by keyword, such as `epochs=3`; they win. `data` may also be that of `run`.

    Raises:
        HarnessError: with one line that names what is wrong and the remedy.
        Interrupted: a signal stopped it.
    """
    options = LRFinderOptions(steps, low, high, linear, seeds, confirm)
    reporter = ConsoleLog(reporter or LineReporter(sys.stderr))
    with contextlib.ExitStack() as data:
        with report_failed_trial():
            config = data.enter_context(config_of_call(config, settings))
            config = with_sweep_values(config, reporter.message, is_own=has_active_run())
            if write_sweep is not None:
                check_sweepable(config)
            range_for(config, options)  # a wrong range is refused before anything is loaded
            check_tracking(config)
        return _find_lr(config, options, write_sweep, reporter)


def _find_lr(
    config: Config, options: LRFinderOptions, write_sweep: Path | None, reporter: ProgressReporter
) -> LRFinderResult:
    name = config.name or f"find-{default_name(config)}"
    if config.link:
        reporter.message(
            f"link={config.link}: a range test logs no model, so it links none; give --link to the run that trains"
        )
    decided = decide_settings(config)
    if decided.choices:
        reporter.message(choices_table(decided.choices))
    if line := missing_weights(decided.config.model, decided.choices):
        reporter.message(f"Warning: {line}")
    config = decided.config
    components = build_components(with_placeholder_lr(config), dataset=decided.dataset)
    if components.initial_note:
        reporter.message(f"{components.initial_note}.")
    directory = run_dir.claim_run_dir(config.replace(name=name, resume="never"))
    write_choices(directory.path, decided.choices)
    config = config.replace(job_type="find" if config.job_type == "train" else config.job_type)
    facts = describe_environment(components.learner.device)
    try:
        with (
            StopRequests() as stop_requests,
            tracked_run(
                config, directory, reporter, stop_requests, header=tracking_header(components, facts)
            ) as tracked,
        ):
            result = run_range_test(
                config, components, directory.path, tracked.tracker, reporter, options, stop_requests.check
            )
    finally:
        directory.close()
    if write_sweep is not None:
        write_atomically(write_sweep, sweep_yaml(result, write_sweep))
        reporter.message(f"Sweep: {write_sweep}; start its trials with: harness sweep {shlex.quote(str(write_sweep))}")
    return result


def resolve_lr(
    config: Config,
    components: Components,
    folder: Path,
    tracker: Tracker,
    reporter: ProgressReporter,
    check: Callable[[], None] | None = None,
) -> Config:
    """Return `config` with learning rates of an LR range test in place of `find`; a result in the folder is reused.

    Args:
        components: built from `with_placeholder_lr(config)`. They are not changed: training them afterwards gives the same
            results as without the test.
        folder: the run directory; a resumed run finds the first test's result there and does not test again.
        check: called between updates; it may raise to stop.

    Raises:
        UsageError: the test found no learning rate to train with.
    """
    if not config.needs_lr_find:
        return config
    stored = read_json(folder / JSON)
    if stored.get("digest") != config.before_extensions().digest() or not _is_usable(stored):
        result = run_range_test(config, components, folder, tracker, reporter, check=check)
        reporter.message(result_table(result))
        stored = result.to_json()
    if stored["lr_max"] is None:
        raise UsageError(
            f"the range test found no learning rate to train with (see {folder / 'figures' / FIGURE}); give --lr-max and --lr-min as numbers"
        )
    lr_min, lr_max = stored["lr_min"], stored["lr_max"]
    if config.lr_max != FIND:  # only LRMIN is wanted: where learning begins, bounded by the given LRMAX
        lr_max = float(config.lr_max)
        lr_min = lr_min_for(stored["begins"], lr_max)
    if config.lr_min == FIND:
        return config.replace(lr_max=lr_max, lr_min=lr_min)
    given = float(config.lr_min)
    if given > lr_max / 10:  # the recipe's LRMIN belongs to another LRMAX
        reporter.message(
            f"lr_min={given:g} is too close to the LRMAX of the range test ({lr_max:.3g}); training starts at {lr_min:.3g} instead."
        )
        return config.replace(lr_max=lr_max, lr_min=lr_min)
    return config.replace(lr_max=lr_max)


def _is_usable(stored: Mapping[str, Any]) -> bool:
    """Return whether a stored result has the learning rates; the file may be damaged."""
    has_rates = all(number(stored.get(key)) > 0 for key in ("lr_min", "lr_max"))
    return has_rates and (stored.get("begins") is None or number(stored["begins"]) > 0)


def run_range_test(
    config: Config,
    components: Components,
    folder: Path,
    tracker: Tracker,
    reporter: ProgressReporter,
    options: LRFinderOptions | None = None,
    check: Callable[[], None] | None = None,
) -> LRFinderResult:
    """Run the range test of a run, write its result into the run directory and record it at step 0."""
    finder = LRFinder(
        finder_inputs(config, components),
        options or LRFinderOptions(),
        report=reporter.message,
        on_step=reporter.on_step,
        check=check or (lambda: None),
    )
    for record in finder.records():
        tracker.record(record)
    result = finder.result(folder)
    write_json(folder / JSON, result.to_json())
    figure = draw_lr_finder(result, folder / "figures" / FIGURE)
    chart = replace(range_test_chart(result), picture=training_curves.as_image(figure))
    values: dict[str, Value] = {"find/chart": chart, "find/steps": result.steps_table()}
    tracker.record(Record(0, 0, values, kind="find", details=result.details()))
    tracker.summary(result.scalars())
    return result


def finder_inputs(config: Config, components: Components) -> LRFinderInputs:
    """Return what the LR finder needs of a run's components, which it leaves as they are."""
    return LRFinderInputs(
        config=config,
        dataset=components.dataset,
        preprocess=components.preprocess,
        device=components.learner.device,
        precision=components.learner.precision,
        steps_per_epoch=components.loaders.train.steps,
    )


def draw_lr_finder(result: LRFinderResult, path: Path) -> Path:
    """Draw the figure of a range test."""
    hidden = (peak_rule(result.measure), "learning begins")
    return lr_finder.draw_range_test(
        path,
        seeds=[seed_curve(curve) for curve in result.curves],
        loss=median_curve(result.curves, "level"),
        acc=median_curve(result.curves, "acc_level"),
        chosen=result.chosen(),
        others={name: lr for name, lr in result.estimates().items() if name not in hidden},
        interval=result.suggestion.interval,
        trials=[(run.lr_max, run.acc) for run in result.short_runs],
        note=result.suggestion.confidence,
        measure=result.measure,
    )
