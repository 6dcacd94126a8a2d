"""Commands that check: verify, doctor."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from harness.errors import CHECK_FAILED
from harness.options import SettingsCommand, settings


@click.command(cls=SettingsCommand)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the table for programs.")
@settings
def verify(settings: dict[str, Any], run: Path | None, as_json: bool) -> None:
    """Hold a configuration, or a run, against the written assignment, point by point.

    Without RUN, the settings given here (their recipe: custom-resnet) are checked: the model is built, run and
    counted, the schedule drives its optimizer, a test pattern goes through the loaders. With RUN, a run folder, its
    journal, checkpoint and predictions are read too. Exit status 9 where a point deviates.

    \b
    harness verify
    harness verify --batch-size 256
    harness verify runs/my-run --json
    """
    from harness import verify as verifying

    verdict = verifying.verify(settings, run)
    click.echo(json.dumps(verdict.to_dict(), indent=2) if as_json else verdict.text(columns()))
    click.echo(verdict.told(), err=True)
    if verdict.deviating:
        click.get_current_context().exit(CHECK_FAILED)


def columns() -> int:
    """Columns of the terminal that standard output goes to; 0 where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
