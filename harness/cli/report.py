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
    "wandb_targets",
    metavar="ENTITY/PROJECT/RUN_OR_SWEEP",
    multiple=True,
    help="Make a W&B report of that run, group of runs or sweep and print its link; given several times, one report of all those runs (extra: vision-harness[reports]).",
)
@click.option("--draft", is_flag=True, help="With --wandb: save the report as a draft.")
@click.option("--workspace", is_flag=True, help="With --wandb: save a view of the project's workspace too.")
def report(
    paths: tuple[Path, ...], out: Path | None, wandb_targets: tuple[str, ...], draft: bool, workspace: bool
) -> None:
    """Make one self-contained HTML page of a run, of several runs, or of a sweep.

    The page needs no network and no server: it can be mailed, printed, and read on a phone. Several runs are shown side
    by side: curves, classes and confusions, and mean and spread over different seeds. The directory that `harness run
    --seeds` made means all its runs, and a folder such as `runs` everything in it, sweeps as a table.

    \b
    harness report runs/my-run
    harness report runs/a-s0 runs/a-s1 runs/a-s2 -o seeds.html
    harness report runs/my-sweep
    harness report runs
    harness report --wandb me/harness/3x5k2a9q
    harness report --wandb runs/my-sweep --workspace
    harness report --wandb me/harness/groups/narrow --wandb me/harness/groups/wide
    """
    if workspace and not wandb_targets:
        raise click.UsageError("--workspace needs the run, group or sweep in W&B; add --wandb ENTITY/PROJECT/RUN")
    if not paths and not wandb_targets:
        raise click.UsageError("give a run directory, several, or a sweep's directory; `harness runs` lists them")
    if paths:
        from harness.reporting.html import pages

        echo(pages.write_page(paths, out))
    if wandb_targets:
        from harness.tracking.wandb import report as wandb_report

        echo(wandb_report.save_report(*wandb_targets, draft=draft))
    if workspace:
        from harness.tracking.wandb.workspace import save_workspace

        echo(save_workspace(*wandb_targets))
