"""Commands that train, or prepare training: run, lr-find, plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.commands import SettingsCommand
from harness.cli.options import setting_options, words_argument
from harness.cli.terminal import echo
from harness.config.recipe import make_config
from harness.config.settings import WANDB, Config
from harness.config.sweep_values import complete_options
from harness.config.unused_settings import unused_settings
from harness.runs.progress import BarReporter, LineReporter
from harness.utils.environment import rank, world_size
from harness.utils.errors import UsageError

CURVE = (
    "recipe", "epochs", "schedule", "lr_min", "lr_max", "peak_epoch", "warmup_epochs", "warmup_steps", "warmup_factor",
    "cycles", "step_epochs", "milestones", "step_factor", "poly_power", "plateau_patience", "plateau_factor",
    "momentum", "momentum_min", "schedule_args", "plugin",
)  # fmt: skip


@click.command(cls=SettingsCommand)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    help="Train this many seeds, from --seed on: mean, standard deviation and 95 % interval, one W&B group.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Choose and check everything, show what would be trained, and stop: no run directory, nothing in W&B. Missing data is downloaded.",
)
@setting_options
@words_argument
def run(settings: dict[str, Any], seeds: int | None, dry_run: bool) -> None:
    """Train, evaluate every epoch, and record everything on disk and in W&B.

    An option wins over the recipe, the recipe over the default. Options are understood in any spelling of case, dash
    and underscore. A stopped run resumes when the same command is given again. The result is printed on standard output,
    the lines of the epochs on standard error: `2>&1 | tee FILE` behind the command keeps both, as console.log in the
    run directory does.

    \b
    harness run --recipe digits
    harness run --recipe digits --seeds 5
    harness run --data-dir pictures                         settings chosen from the data: --recipe auto
    harness run --data-dir pictures --dry-run               what would be chosen, without training
    harness run --data-dir pictures --model resnet18 --epochs 10
    harness run --model-args width=16 --lr-max 0.05 --tags try,narrow
    """
    from harness.tracking.run_packages import missing_packages_named
    from harness.tracking.wandb import init
    from harness.tracking.wandb.failed_trial import report_failed_trial

    with report_failed_trial(), missing_packages_named(str(settings.get("resume") or "auto")):
        options = complete_options(settings)
        config = make_config(options)
    if (dry_run or seeds is not None) and rank() == 0:
        for sentence in unused_settings(config, options):
            echo(f"Warning: {sentence}", err=True)
    if dry_run:
        _show_dry_run(config, seeds)
        return
    if WANDB in config.tracker and config.wandb != "disabled":
        init.preload()
    from harness.runs import run as runner
    from harness.runs.summary import summary_table

    reporter = _reporter()
    try:
        if seeds is not None:
            _run_seeds(config, seeds, reporter)
        else:
            summary = runner.run(config, reporter, given=options).summary
            if summary:  # of several processes, only the main one has it
                echo(summary_table(summary))
    finally:
        reporter.close()


def _show_dry_run(config: Config, seeds: int | None) -> None:
    if seeds is not None or world_size() > 1:
        raise UsageError("--dry-run shows one run in one process; leave --seeds and torchrun out")
    from harness.runs import dry_run

    echo(dry_run.dry_run(config))


def _run_seeds(config: Config, count: int, reporter: LineReporter) -> None:
    from harness.runs import seeds

    summary = seeds.run_seeds(config, count, reporter)
    echo(seeds.seeds_table(summary))
    summary.check()


def _reporter() -> LineReporter:
    """Return a progress bar on a terminal, lines elsewhere."""
    return BarReporter(sys.stderr) if sys.stderr.isatty() else LineReporter(sys.stderr)


@click.command(cls=SettingsCommand)
@click.option("--steps", type=click.IntRange(4), help="Updates between --low and --high. [25 per decade]")
@click.option("--low", type=float, help="Lowest learning rate. [0.0001 for SGD]")
@click.option(
    "--high", type=float, help="Highest learning rate; the test continues above it until the loss diverges. [1 for SGD]"
)
@click.option("--linear", is_flag=True, help="Raise the learning rate by equal steps instead of equal factors.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Repetitions, each with its own initial weights and order of images.",
)
@click.option(
    "--confirm",
    type=click.IntRange(0),
    default=0,
    help="Number of short one-cycle runs around the suggestion; the best held-out accuracy (or mAP) wins.",
)
@click.option(
    "--write-sweep",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a W&B sweep whose ranges come from the test.",
)
@setting_options
@words_argument
def lr_find(settings: dict[str, Any], **options: Any) -> None:
    """Suggest LRMIN and LRMAX by a learning-rate range test, with reasons and a confidence.

    The steps are those of training (model, optimizer, batch, augmentation, precision). A part of the training images
    is held out to evaluate on; the test set is not read.

    \b
    harness lr-find --recipe digits
    harness lr-find --data-dir pictures --seeds 5 --confirm 3 --write-sweep sweeps/mine.yaml
    """
    from harness.tracking.wandb.failed_trial import report_failed_trial

    with report_failed_trial():
        config = make_config(complete_options(settings))
    from harness.lr_finder.result import result_table
    from harness.runs import lr_find as finder

    reporter = _reporter()
    try:
        result = finder.find_lr(config, reporter=reporter, **options)
    finally:
        reporter.close()
    echo(result_table(result))


@click.command(cls=SettingsCommand, shown=CURVE)
@click.option(
    "-o",
    "--out",
    default="lr.png",
    show_default=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The figure, PNG or SVG by its suffix.",
)
@click.option(
    "--steps-per-epoch",
    default=97,
    show_default=True,
    type=click.IntRange(1),
    help="Updates per epoch (97: CIFAR-10 at batch 512).",
)
@click.option("--iterations", type=click.IntRange(1), help="Length of a cyclic schedule, updates. [100]")
@click.option("--step-size", type=click.IntRange(1), help="Half a cycle of a cyclic schedule, updates. [10]")
@setting_options
def plot(
    settings: dict[str, Any], out: Path, steps_per_epoch: int, iterations: int | None, step_size: int | None
) -> None:
    """Draw the learning rate (and momentum) of any schedule, without training.

    \b
    harness plot --schedule cyclic                          0.08 to 0.8, step size 10, 100 iterations
    harness plot --schedule cosine --peak-epoch 2 -o cosine.svg
    harness plot --recipe dawnbench --momentum-min 0.85
    """
    from harness.runs.plot import plot_schedule

    echo(plot_schedule(settings, out, steps_per_epoch, iterations, step_size))
