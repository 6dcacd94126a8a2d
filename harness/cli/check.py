"""Commands that check, and help at the shell: verify, doctor, completion."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.completion import complete_run, script
from harness.cli.options import PlainCommand, SettingsCommand, setting_options
from harness.utils.errors import CHECK_FAILED

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=SettingsCommand)
@click.argument("run", required=False, type=click.Path(path_type=Path), shell_complete=complete_run)
@click.option("--json", "as_json", is_flag=True, help="Print the table for programs.")
@setting_options
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
    from harness.checks import verify as verifying

    verdict = verifying.verify(settings, run)
    click.echo(json.dumps(verdict.to_dict(), indent=2) if as_json else verdict.text(columns()))
    click.echo(verdict.summary(), err=True)
    if verdict.deviating:
        click.get_current_context().exit(CHECK_FAILED)


def columns() -> int:
    """Columns of the terminal that standard output goes to; 0 where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


@click.command(cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="Print the findings for programs.")
@setting_options
def doctor(settings: dict[str, Any], as_json: bool) -> None:
    """What this machine has, what a run with these settings would use, and what stands in its way.

    Versions, devices, memory, W&B, data, disk and git, with a remedy for each problem. Nothing is asked of the
    network, and no secret is shown. Exit status 9 where a run is impossible.

    \b
    harness doctor
    harness doctor --data folder --data-dir pictures --device cuda
    """
    from harness.checks import doctor as examining

    found = examining.diagnose(settings)
    click.echo(json.dumps(examining.to_dict(found), indent=2) if as_json else examining.diagnosis_text(found))
    if any(each.fatal for each in found):
        click.get_current_context().exit(CHECK_FAILED)


@click.command(cls=PlainCommand)
@click.argument("shell", required=False, type=click.Choice(SHELLS))
def completion(shell: str | None) -> None:
    """Print the script that makes a shell complete commands, options, recipes, models and runs.

    SHELL is your own when it is left out. To have it in every new shell:

    \b
    harness completion bash > ~/.local/share/bash-completion/completions/harness
    harness completion zsh > ~/.zfunc/_harness                  with fpath+=~/.zfunc before compinit in ~/.zshrc
    harness completion fish > ~/.config/fish/completions/harness.fish
    """
    own = Path(os.environ.get("SHELL", "")).name
    click.echo(script(click.get_current_context().find_root().command, shell or (own if own in SHELLS else "bash")))
