"""Commands that check, and shell completion: verify, doctor, completion."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.commands import PlainCommand, SettingsCommand
from harness.cli.completion import complete_run, script
from harness.cli.options import setting_options
from harness.cli.terminal import echo
from harness.utils.errors import CHECK_FAILED
from harness.utils.plain import json_text

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=SettingsCommand)
@click.argument("run", required=False, type=click.Path(path_type=Path), shell_complete=complete_run)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@setting_options
def verify(settings: dict[str, Any], run: Path | None, as_json: bool) -> None:
    """Check a configuration, or a run, against the written specification of a CIFAR ResNet, point by point.

    The specification is that of the custom ResNet on CIFAR-10 (batch size 512, 24 epochs, one cycle, 90 % accuracy), or of
    the CIFAR ResNet-18 for its recipe. A run on data of your own is not meant to meet it: its page shows how good it is.

    Without RUN, the given settings (by default the recipe custom-resnet) are checked: the model is built, run and
    counted, the schedule drives its optimizer, a test pattern goes through the loaders. With RUN, a run directory, its
    journal, checkpoint and predictions are checked too. The exit status is 9 if a point deviates.

    \b
    harness verify
    harness verify --batch-size 256
    harness verify runs/my-run --json
    """
    from harness.checks import verify as verifying

    verdict = verifying.verify(settings, run)
    echo(json_text(verdict.to_dict(), indent=2) if as_json else verdict.text(columns()))
    echo(verdict.summary(), err=True)
    if verdict.deviating:
        click.get_current_context().exit(CHECK_FAILED)


def columns() -> int:
    """Return the columns of the terminal that standard output goes to; 0 when it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


@click.command(cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@setting_options
def doctor(settings: dict[str, Any], as_json: bool) -> None:
    """Show what this machine has, what a run with these settings would use, and what would stop it.

    Versions, devices, memory, W&B, data, disk and git, with a remedy for each problem. The network is not used, and no
    secret is shown. The exit status is 9 if a run is not possible.

    \b
    harness doctor
    harness doctor --data folder --data-dir pictures --device cuda
    """
    from harness.checks import doctor as diagnosing

    findings = diagnosing.diagnose(settings)
    echo(json_text(diagnosing.to_dict(findings), indent=2) if as_json else diagnosing.diagnosis_text(findings))
    if any(finding.fatal for finding in findings):
        click.get_current_context().exit(CHECK_FAILED)


@click.command(cls=PlainCommand)
@click.argument("shell", required=False, type=click.Choice(SHELLS))
def completion(shell: str | None) -> None:
    """Print the script that lets a shell complete commands, options, recipes, models and runs.

    Without SHELL, the script is for your own shell. To install it for every new shell:

    \b
    harness completion bash > ~/.local/share/bash-completion/completions/harness
    harness completion zsh > ~/.zfunc/_harness                  with fpath+=~/.zfunc before compinit in ~/.zshrc
    harness completion fish > ~/.config/fish/completions/harness.fish
    """
    login_shell = Path(os.environ.get("SHELL", "")).name
    chosen = shell or (login_shell if login_shell in SHELLS else "bash")
    click.echo(script(click.get_current_context().find_root().command, chosen))
