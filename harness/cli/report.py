"""The command that makes a shareable page: report."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.commands import PlainCommand
from harness.cli.completion import complete_run
from harness.cli.terminal import echo


@click.command(cls=PlainCommand)
@click.argument(
    "paths", metavar="RUN_OR_SWEEP...", nargs=-1, type=click.Path(path_type=Path), shell_complete=complete_run
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The page. [report.html in the directory of the run or sweep; for several runs, in the current one]",
)
@click.option(
    "--wandb",
    "wandb_target",
    metavar="ENTITY/PROJECT/RUN_OR_SWEEP",
    default="",
    help="Make a W&B report of that run or sweep and print its link (extra: vision-harness[reports]).",
)
@click.option("--draft", is_flag=True, help="With --wandb: save the report as a draft.")
def report(paths: tuple[Path, ...], out: Path | None, wandb_target: str, draft: bool) -> None:
    """Make one self-contained HTML page of a run, of several runs, or of a sweep.

    The page needs no network and no server: it can be mailed, printed, and read on a phone. Several runs are shown side
    by side, with mean and spread where they differ only in the seed. The directory that `harness run --seeds` made
    means all its runs.

    \b
    harness report runs/my-run
    harness report runs/a-s0 runs/a-s1 runs/a-s2 -o seeds.html
    harness report runs/my-sweep
    harness report --wandb me/harness/3x5k2a9q
    """
    if not paths and not wandb_target:
        raise click.UsageError("give a run directory, several, or a sweep's directory; `harness runs` lists them")
    if paths:
        from harness.reporting.html import pages

        echo(pages.write_page(paths, out))
    if wandb_target:
        echo(_save_in_wandb(wandb_target, draft))


def _save_in_wandb(target: str, draft: bool) -> str:
    """Save a W&B report and return its address."""
    from harness.tracking.wandb import report as wandb_report

    return wandb_report.save_report(target, draft)
