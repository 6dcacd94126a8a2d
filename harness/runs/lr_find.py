"""The story of a range test: `harness lr-find` by itself, and `--lr-max find` at the start of a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from harness.utils import environment
from harness.tracking import run_dir
from harness.lr_finder.finder import LRFinderOptions, LRFinder, with_placeholder_lr, range_for
from harness.config.settings import FIND, Config
from harness.utils.errors import HarnessError, UsageError
from harness.utils.files import read_json, write_atomically, write_json
from harness.lr_finder.result import LRFinderResult, sweep_definition, sweep_yaml, result_table
from harness.utils.signals import Interrupted, StopRequests
from harness.runs.components import Components, build_components
from harness.tracking.run_dir import RunDir, RunState
from harness.reporting.html.share import write_run_page
from harness.runs.trainer import ProgressReporter, open_tracker
from harness.tracking.tracker import Tracker
from harness.lr_finder.range_test import median_curve, seed_curve
from harness.lr_finder.suggestion import lr_min_for
from harness.tracking.records import Record
from harness.reporting.figures import training_curves
from harness.reporting.figures import lr_finder


JSON, FIGURE = "lr_finder.json", "lr_finder.png"

log = logging.getLogger(__name__)


def find_lr(
    config: Config,
    *,
    steps: int | None = None,
    low: float | None = None,
    high: float | None = None,
    linear: bool = False,
    seeds: int = 3,
    confirm: int = 0,
    write_sweep: Path | None = None,
    display: ProgressReporter | None = None,
) -> LRFinderResult:
    """Run the range test in a run folder of its own and record it: the same as `harness lr-find`.

    Args:
        steps: updates between `low` and `high`; it goes on above where the loss does not diverge.
        seeds: how often, each with other weights and another order.
        confirm: short one-cycle runs around the suggestion; the best by held-out accuracy is taken.
        write_sweep: where to write a W&B sweep whose ranges come from the test.

    Raises:
        HarnessError: with one line that names what is wrong and its remedy.
        Interrupted: a signal stopped it.
    """
    from harness.runs.progress import LineReporter

    ask = LRFinderOptions(steps, low, high, linear, seeds, confirm)
    range_for(config, ask)  # a wrong range is refused before anything is loaded
    display = display or LineReporter(sys.stderr)
    parts = build_components(with_placeholder_lr(config))
    name = config.name or f"find-{run_dir.default_name(config)}"
    folder = run_dir.claim_run_dir(config.replace(name=name, resume="never"))
    config = config.replace(job_type="find" if config.job_type == "train" else config.job_type)
    try:
        finding = _in_own_folder(config, parts, folder, ask, display)
    finally:
        folder.close()
    if write_sweep is not None:
        write_atomically(write_sweep, sweep_yaml(finding, write_sweep))
        display.say(f"sweep: {write_sweep}")
    return finding


def resolve_lr(
    config: Config,
    parts: Components,
    folder: Path,
    tracker: Tracker,
    display: ProgressReporter,
    check: Callable[[], None] | None = None,
) -> Config:
    """`config` with numbers in the place of the word `find`: by a range test, or by the one in the folder already.

    Args:
        parts: made from `provisional(config)`. They are not touched: training them gives what it would have given.
        folder: the run's; a resumed run finds the first test's result there and does not test again.
        check: called between updates; it may raise to stop.

    Raises:
        UsageError: the test found no learning rate to train with.
    """
    if not config.needs_lr_find:
        return config
    found = read_json(folder / JSON)
    if found.get("digest") != config.digest() or not found.get("lr_max"):
        finding = run_range_test(config, parts, folder, tracker, display, check=check)
        display.say(result_table(finding))
        found = finding.to_json()
    if found["lr_max"] is None:
        raise UsageError(
            f"the range test found no learning rate to train with (see {folder / 'figures' / FIGURE}); give --lr-max and --lr-min as numbers"
        )
    lr_min, lr_max = found["lr_min"], found["lr_max"]
    if config.lr_max != FIND:  # only LRMIN was asked for: where learning begins, seen from the given LRMAX
        lr_max = float(config.lr_max)
        lr_min = lr_min_for(found["begins"], lr_max)
    if config.lr_min == FIND:
        return config.replace(lr_max=lr_max, lr_min=lr_min)
    given = float(config.lr_min)
    if given > lr_max / 3:  # the recipe's LRMIN belongs to another LRMAX
        display.say(
            f"lr_min={given:g} is too near the LRMAX found ({lr_max:.3g}); training starts at {lr_min:.3g} instead"
        )
        return config.replace(lr_max=lr_max, lr_min=lr_min)
    return config.replace(lr_max=lr_max)


def run_range_test(
    config: Config,
    parts: Components,
    folder: Path,
    tracker: Tracker,
    display: ProgressReporter,
    ask: LRFinderOptions | None = None,
    check: Callable[[], None] | None = None,
) -> LRFinderResult:
    """The range test of a run, written into its folder and said to its tracker, at step 0."""
    bench = LRFinder(config, parts, ask or LRFinderOptions(), display, check or (lambda: None))
    for record in bench.records():
        tracker.record(record)
    finding = bench.finding(folder)
    write_json(folder / JSON, finding.to_json())
    picture = draw_lr_finder(finding, folder / "figures" / FIGURE)
    tracker.record(Record(0, 0, {**finding.values(), "find/figure": training_curves.as_image(picture)}, kind="find"))
    tracker.summary(finding.scalars())
    return finding


def draw_lr_finder(finding: LRFinderResult, path: Path) -> Path:
    """The picture of a finding."""
    hidden = ("accuracy peak", "learning begins")
    return lr_finder.draw(
        path,
        seeds=[seed_curve(trace) for trace in finding.curves],
        loss=median_curve(finding.curves, "level"),
        acc=median_curve(finding.curves, "acc_level"),
        chosen=finding.marks(),
        others={name: lr for name, lr in finding.others().items() if name not in hidden},
        interval=finding.suggestion.interval,
        trials=[(trial.lr_max, trial.acc) for trial in finding.trials],
        note=finding.suggestion.sure,
    )


def _in_own_folder(config: Config, parts: Components, folder: RunDir, ask: LRFinderOptions, display: ProgressReporter) -> LRFinderResult:
    """The test in its folder: whatever happens, the status and the tracker say so at the end."""
    write_atomically(folder.path / run_dir.CONFIG, config.to_yaml())
    folder.status(RunState.RUNNING, step=0)
    with StopRequests() as stop_requests:
        facts = environment.describe_environment(parts.learner.device)
        tracker, _, wandb = open_tracker(config, folder, parts, facts, stop_requests, display)
        try:
            finding = run_range_test(config, parts, folder.path, tracker, display, ask, stop_requests.check)
        except BaseException as error:
            state = RunState.INTERRUPTED if isinstance(error, Interrupted) else RunState.FAILED
            code = error.exit_code if isinstance(error, HarnessError) else 1
            folder.status(state, reason=str(error) or type(error).__name__, exit_code=code)
            try:
                tracker.finish("stopped" if state == RunState.INTERRUPTED else "failed", code)
            except Exception:
                log.exception("while closing a range test that had failed")  # the first error is the one that is raised
            raise
        tracker.finish("finished", 0)
        folder.status(RunState.FINISHED, exit_code=0, step=0, tracking=wandb.state)
        if config.report:
            write_run_page(folder.path, display.say)
    display.say(f"run folder: {folder.path}" + (f"\nto W&B: {wandb.sync_command}" if wandb.sync_command else ""))
    return finding
