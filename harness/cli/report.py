"""Commands that share what was found: report."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.completion import complete_run
from harness.cli.options import PlainCommand


@click.command(cls=PlainCommand)
@click.argument(
    "paths", metavar="RUN_OR_SWEEP...", nargs=-1, type=click.Path(path_type=Path), shell_complete=complete_run
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="The page. [report.html in the run's or the sweep's folder; here for several runs]",
)
@click.option(
    "--wandb",
    "wandb_target",
    metavar="ENTITY/PROJECT/RUN_OR_SWEEP",
    default="",
    help="Build a W&B report of that run or sweep and print its link (extra: reports).",
)
@click.option("--draft", is_flag=True, help="With --wandb: save the report as a draft.")
def report(paths: tuple[Path, ...], out: Path | None, wandb_target: str, draft: bool) -> None:
    """Make one self-contained HTML page of a run, of several runs, or of a sweep.

    The page needs no network and no server; it can be mailed, printed, and read on a phone. Several runs stand side by
    side, with mean and spread where they differ in the seed only; the folder of several seeds stands for its runs.

    \b
    harness report runs/my-run
    harness report runs/a-s0 runs/a-s1 runs/a-s2 -o seeds.html
    harness report runs/my-sweep
    harness report --wandb me/harness/3x5k2a9q
    """
    if not paths and not wandb_target:
        raise click.UsageError("say what of: a run folder, several, or a sweep's folder; `harness runs` lists them")
    if paths:
        from harness.reporting.html import pages

        click.echo(pages.write_page(paths, out))
    if wandb_target:
        click.echo(_save_in_wandb(wandb_target, draft))


def _save_in_wandb(target: str, draft: bool) -> str:
    """The address of the report that W&B keeps now."""
    from harness.tracking.wandb import report as wandb_report

    return wandb_report.save(target, draft)
