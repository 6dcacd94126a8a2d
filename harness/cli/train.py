"""Commands that train, or prepare training: run, find, plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.options import SettingsCommand, config_from_options, setting_options
from harness.config.settings import Config
from harness.runs.progress import BarReporter, LineReporter


@click.command(cls=SettingsCommand)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    help="Train so many seeds, from --seed on: mean, standard deviation and 95 % interval, one W&B group.",
)
@setting_options
def run(settings: dict[str, Any], seeds: int | None) -> None:
    """Train, evaluate every epoch, and record everything on disk and in W&B.

    \b
    harness run --recipe digits
    harness run --recipe digits --seeds 5
    harness run --data folder --data-dir pictures --model resnet18 --pretrained --epochs 10
    harness run --model-args width=16 --lr-max 0.05 --tags try,narrow
    """
    from harness.tracking.wandb.failed_trial import report_failed_trial

    with report_failed_trial():
        config = config_from_options(settings)
    from harness.runs import run as runner

    reporter = _reporter()
    try:
        if seeds is not None:
            _run_seeds(config, seeds, reporter)
        elif summary := runner.run(config, reporter).summary:  # of several processes, the first one has it
            click.echo(summary_table(summary))
    finally:
        reporter.close()


def _run_seeds(config: Config, count: int, reporter: LineReporter) -> None:
    from harness.runs import seeds

    told = seeds.run_seeds(config, count, reporter)
    click.echo(seeds.seeds_table(told))
    told.check()


def _reporter() -> LineReporter:
    """A bar on a terminal, lines elsewhere."""
    return BarReporter(sys.stderr) if sys.stderr.isatty() else LineReporter(sys.stderr)


def summary_table(summary: dict[str, Any]) -> str:
    """The headline figures of a finished run, for a person."""
    result, best = summary["result"], summary["best"]
    rows = []
    for split in ("test", "val"):
        if f"{split}/acc" in result:
            how = f"{result['chosen']}, epoch {result['epoch']}"
            rows.append(
                (
                    f"{split} accuracy",
                    f"{100 * result[f'{split}/acc']:.2f} %  (loss {result[f'{split}/loss']:.4f}; {how})",
                )
            )
        for key, name in (("acc_tta", "with flip TTA"), ("acc5", "top 5")):
            if f"{split}/{key}" in result:
                rows.append((f"  {name}", f"{100 * result[f'{split}/{key}']:.2f} %"))
        if f"{split}/ece" in result:
            rows.append(("  calibration", f"off by {100 * result[f'{split}/ece']:.1f} points (ECE)"))
    key = next((key for key in best if key.endswith("/acc")), "")
    if key and best["epoch"] != result["epoch"]:
        rows.append(("best epoch", f"{100 * best[key]:.2f} %  ({best['chosen']}, epoch {best['epoch']})"))
    rows.append(("parameters", f"{summary['parameters']:,}"))
    rows.append(
        ("training", f"{summary['epochs']} epochs, {summary['steps']} steps, {summary['seconds']['epoch']:.1f} s")
    )
    return "\n".join(f"{name:<14} {text}" for name, text in rows)


@click.command(cls=SettingsCommand)
@click.option("--steps", type=click.IntRange(4), help="Updates between --low and --high. [25 a decade]")
@click.option("--low", type=float, help="Lowest learning rate tried. [0.0001 for SGD]")
@click.option(
    "--high", type=float, help="Highest; the test goes on above it while the loss does not diverge. [1 for SGD]"
)
@click.option("--linear", is_flag=True, help="Raise the learning rate by equal steps instead of equal factors.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How often, each with other weights and order.",
)
@click.option(
    "--confirm",
    type=click.IntRange(0),
    default=0,
    help="Short one-cycle runs around the suggestion; the best held-out accuracy wins.",
)
@click.option(
    "--write-sweep", type=click.Path(path_type=Path), help="Write a W&B sweep whose ranges come from the test."
)
@setting_options
def lr_find(settings: dict[str, Any], **ask: Any) -> None:
    """Find LRMIN and LRMAX by a learning-rate range test: why, and how sure.

    The steps are those of training (model, optimizer, batch, augmentation, precision); a part of the training images
    is held out to look at, and the test set is not touched.

    \b
    harness lr-find --recipe digits
    harness lr-find --data folder --data-dir pictures --seeds 5 --confirm 3 --write-sweep sweeps/mine.yaml
    """
    config = config_from_options(settings)
    from harness.lr_finder.result import result_table
    from harness.runs import lr_find as finder

    reporter = _reporter()
    try:
        finding = finder.find_lr(config, reporter=reporter, **ask)
    finally:
        reporter.close()
    click.echo(result_table(finding))


@click.command(cls=SettingsCommand)
@click.option(
    "-o",
    "--out",
    default="lr.png",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The picture, PNG or SVG by its suffix.",
)
@click.option(
    "--steps-per-epoch",
    default=97,
    show_default=True,
    type=click.IntRange(1),
    help="Updates an epoch (97: CIFAR-10 at batch 512).",
)
@click.option("--iterations", type=click.IntRange(1), help="Length of a cyclic curve, updates. [100]")
@click.option("--step-size", type=click.IntRange(1), help="Half a cycle of a cyclic curve, updates. [10]")
@setting_options
def plot(
    settings: dict[str, Any], out: Path, steps_per_epoch: int, iterations: int | None, step_size: int | None
) -> None:
    """Draw the learning-rate (and momentum) curve of any schedule, without training.

    \b
    harness plot --schedule cyclic                       between 0.08 and 0.8, step 10, 100 iterations
    harness plot --schedule cosine --peak-epoch 2 -o cosine.svg
    harness plot --recipe dawnbench --momentum-min 0.85
    """
    from harness.runs.plot import plot_schedule

    click.echo(plot_schedule(settings, out, steps_per_epoch, iterations, step_size))
