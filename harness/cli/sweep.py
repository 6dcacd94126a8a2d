"""Commands about many runs: sweep, runs, sync."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from harness.cli.commands import DAILY, PlainCommand, SettingsCommand
from harness.cli.completion import complete_run, complete_sweep
from harness.cli.options import setting_options_except, setting_options_only
from harness.config.names import REPORTED_SPLITS
from harness.utils.errors import UsageError
from harness.utils.text import percent


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
    click.echo(result.summary)
    click.echo(
        f"Sweep directory: {result.folder} (report.html, best.yaml, trials.csv)\n"
        f"Upload later with: harness sync {result.folder}/runs/*",
        err=True,
    )


@click.command(cls=PlainCommand)
@click.argument("output", default="runs", type=click.Path(path_type=Path))
def runs(output: Path) -> None:
    """List runs with their state, epoch and accuracy, and the command that resumes each unfinished one.

    OUTPUT is the folder that holds the run directories [runs].

    \b
    harness runs
    harness runs other-runs
    """
    from harness.tracking.run_dir import list_runs, read_summary
    from harness.utils.files import read_json

    if not output.is_dir() and output != Path("runs"):
        raise UsageError(f"there is no folder {output}; run directories are in the folder that --output names")
    listed = list(list_runs(output))
    for path, state, status in listed:
        result = read_summary(path).get("result", {})
        accuracy = next(
            (f"{split} {percent(result[f'{split}/acc'], 2)}" for split in REPORTED_SPLITS if f"{split}/acc" in result),
            "-",
        )
        click.echo(f"{path.name:<44} {state:<12} epoch {status.get('epoch', 0):<5} {accuracy}")
        if state != "finished" and status.get("resume"):
            click.echo(f"    {status['resume']}")
    sweeps = sorted(output.glob("*/sweep.json"))
    for path in sweeps:
        click.echo(_sweep_line(path.parent.name, read_json(path)))
    for path in sorted(output.glob("*/seeds.json")):
        click.echo(_seeds_lines(path.parent.name, read_json(path)))
    if not listed and not sweeps:
        click.echo(f"no runs in {output}", err=True)


def _sweep_line(name: str, summary: Mapping[str, Any]) -> str:
    """Return a line for a sweep: its trials by state, and its best value."""
    trials = summary.get("trials", {}).items()
    counts = ", ".join(f"{count} {'stopped early' if state == 'pruned' else state}" for state, count in trials if count)
    value = (summary.get("best") or {}).get("value")
    best = f"{value:.4g}" if isinstance(value, int | float) else "-"
    return f"{name:<44} sweep        {counts}; best {summary.get('metric', {}).get('name')} {best}"


def _seeds_lines(name: str, summary: Mapping[str, Any]) -> str:
    """Return a line for a run over several seeds, and the command that resumes it where a seed is unfinished."""
    states = [seed["state"] for seed in summary.get("seeds", [])]
    means = [
        f"{key.split('/')[0]} {percent(spread['mean'], 2)}" + (f" ± {100 * spread['sd']:.2f}" if spread["sd"] else "")
        for key, spread in summary.get("figures", {}).items()
        if key.endswith("/acc")
    ]
    line = f"{name:<44} seeds        {states.count('finished')} of {len(states)} done  {', '.join(means) or '-'}"
    return f"{line}\n    {summary['resume']}" if summary.get("resume") else line


@click.command(cls=PlainCommand)
@click.argument(
    "folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path), shell_complete=complete_run
)
@click.option("--anew", is_flag=True, help="Send everything as a new W&B run, when the former one has gaps.")
@setting_options_only("project", "entity", "name", "group", "job_type", "tags", "notes")
def sync(settings: dict[str, Any], folders: tuple[Path, ...], anew: bool) -> None:
    """Complete offline, interrupted or partly uploaded runs in W&B, from their journals.

    Records that W&B has are not sent again. An option replaces what the run was started with, for example a tag that
    W&B refuses. The directory that `harness run --seeds` made means all its runs.
    `wandb sync` uploads W&B's own log instead, which may lack its end.

    \b
    harness sync runs/my-run
    harness sync runs/* --anew
    harness sync runs/my-run --project other --tags first,second
    """
    from harness.tracking.run_dir import members
    from harness.tracking.wandb import sync as syncing

    for folder in (run for directory in folders for run in members(directory)):
        result = syncing.sync(folder, lambda text: click.echo(text, err=True), anew, settings)
        verified = "" if result.arrived is None else f"; {result.steps} of {result.steps} steps are there"
        click.echo(f"{result.folder}: {result.sent} of {result.records} records sent, now at {result.url}{verified}")
