"""Commands about many runs: sweep and sync."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from harness.cli.commands import DAILY, PlainCommand, SettingsCommand
from harness.cli.completion import complete_run, complete_sweep
from harness.cli.options import setting_options_except, setting_options_only
from harness.cli.terminal import echo
from harness.utils.errors import UsageError


@click.command(cls=SettingsCommand, shown=DAILY)
@click.argument("file", type=click.Path(path_type=Path), shell_complete=complete_sweep)
@click.option(
    "--count", type=click.IntRange(1), help="Trials in all, over every machine that works on the sweep. [run_cap]"
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Trials at a time; they share the GPUs and the CPU threads.",
)
@click.option(
    "--storage",
    default="",
    metavar="URL",
    help="Database that several machines share, or a SQLite file. [one in the sweep's directory]",
)
@click.option(
    "--final", type=click.IntRange(0), default=0, help="Then train the best over N seeds and read the test set."
)
@click.option("--search-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the search.")
@click.option(
    "--sampler",
    default="auto",
    metavar="NAME",
    help="Optuna's sampler for a Bayesian search: tpe, gp, nsga2, qmc or random. [tpe]",
)
@click.option(
    "--pruner",
    default="none",
    metavar="NAME",
    help="Stop trials early by Optuna's median, asha or patient pruner, none before half-way between the peak of the LR and the end. [none]",
)
@click.option("--choose-on-test", is_flag=True, help="Allow a metric of the test set.")
@click.option(
    "--fork/--no-fork", default=True, help="Fork trials from a process that has torch and timm imported. [fork]"
)
@setting_options_except("workers", "resume")
def sweep(settings: dict[str, Any], file: Path, choose_on_test: bool, search_seed: int, **options: Any) -> None:
    """Run a W&B sweep on this machine, with no server and no account: the same YAML, the same meaning.

    FILE is a sweep in W&B's format whose command starts `harness run`. Settings given here replace its constants. The
    same command resumes a sweep that was stopped.

    \b
    harness sweep sweeps/digits.yaml
    harness sweep sweeps/lr.yaml --count 20 --workers 2 --data-dir data --final 3
    harness sweep sweeps/lr.yaml --count 60 --storage postgresql+psycopg://user@host/db --name lr     on each machine
    """
    if options["storage"].startswith("postgresql+psycopg:") and find_spec("psycopg") is None:
        raise UsageError("--storage postgresql+psycopg://... needs an extra: pip install 'vision-harness[postgres]'")
    from harness.sweep.run import run_sweep

    result = run_sweep(file, settings, choose_on_test=choose_on_test, search_seed=search_seed, **options)
    echo(result.summary)
    echo(
        f"Sweep directory: {result.folder} (report.html, best.yaml, trials.csv)\n"
        f"Upload later with: harness sync {result.folder}/runs/*",
        err=True,
    )


@click.command(cls=PlainCommand)
@click.argument(
    "folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path), shell_complete=complete_run
)
@click.option("--anew", is_flag=True, help="Send everything as a new W&B run, when the former one has gaps.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1, max=86_400),
    help="Seconds that the upload may take beyond what its bytes need at 100 kB/s; --finish-timeout of the run without it.",
)
@click.option(
    "--tracker",
    default="wandb",
    show_default=True,
    metavar="NAMES",
    help="Write the run to these: wandb, tensorboard, mlflow, trackio, one that a plug-in registers, or several with commas.",
)
@setting_options_only("project", "entity", "name", "group", "job_type", "tags", "notes", "link", "plugin")
def sync(settings: dict[str, Any], folders: tuple[Path, ...], anew: bool, timeout: float | None, tracker: str) -> None:
    """Complete offline, interrupted or partly uploaded runs in W&B, or write them to another tracker.

    W&B's own logs are sent as far as they are whole, in the order of their steps, and the journal for the rest. Rows,
    files, tables and artifacts are counted in W&B, and sent again where they are missing. What W&B has is not sent
    again. An option replaces what the run was started with, for example a tag that W&B refuses. The directory that
    `harness run --seeds` made means all its runs. Other trackers get what they lack from the journal.

    \b
    harness sync runs/my-run
    harness sync runs/* --anew
    harness sync runs/my-run --project other --tags first,second
    harness sync runs/my-run --link model/digits
    harness sync runs/my-run --tracker mlflow
    """
    from harness.config.settings import WANDB, coerce
    from harness.tracking.backends.sync import sync_tracker
    from harness.tracking.run_dir import members
    from harness.tracking.wandb import sync as syncing
    from harness.utils.plugins import allow_plugins

    modules = coerce("plugin", settings.pop("plugin", ()))
    allow_plugins(modules)
    kinds = dict.fromkeys(coerce("tracker", tracker))
    if not kinds:
        raise UsageError("--tracker is empty; name at least one")
    if settings.get("link") and WANDB not in kinds:
        raise UsageError("--link: only W&B links models; add wandb to --tracker, or leave --link out")

    def notify(text: str) -> None:
        echo(text, err=True)

    # A shell's `*` names both the directory of several seeds and their runs.
    for folder in {run.absolute(): run for directory in folders for run in members(directory)}.values():
        others = {name: value for name, value in settings.items() if name not in ("link", "entity")}
        for kind in (kind for kind in kinds if kind != WANDB):
            written = sync_tracker(kind, folder, notify, anew, others, timeout, modules)
            echo(f"{written.folder}: {written.rows} rows written, {written.title} has the whole run")
        if WANDB not in kinds:
            continue
        result = syncing.sync(folder, notify, anew, settings, timeout)
        artifacts = "" if result.artifacts is None else f", artifacts: {result.artifacts}"
        verified = f"{result.steps} of {result.steps} steps are there, files: {result.files}{artifacts}"
        echo(f"{result.folder}: {result.sent} of {result.records} records sent, now at {result.url}; {verified}")
