"""Commands about many runs: sweep, runs, sync."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from harness.cli.completion import complete_run, complete_sweep
from harness.cli.options import PlainCommand, SettingsCommand, setting_options_except


@click.command(cls=SettingsCommand)
@click.argument("file", type=click.Path(path_type=Path), shell_complete=complete_sweep)
@click.option(
    "--count", type=click.IntRange(1), help="Trials in all, over every command that works on this search. [run_cap]"
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Trials at a time; GPUs and CPU threads are shared out.",
)
@click.option(
    "--storage",
    default="",
    help="Database URL that several machines share, or a SQLite file. [one in the sweep's folder]",
)
@click.option(
    "--final", type=click.IntRange(0), default=0, help="Then train the best over so many seeds and read the test set."
)
@click.option("--search-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of what is tried.")
@click.option("--choose-on-test", is_flag=True, help="Allow a metric of the test set.")
@click.option(
    "--fork/--no-fork", default=True, help="Fork trials from a process that has torch and timm imported.  [fork]"
)
@setting_options_except("workers", "resume")
def sweep(settings: dict[str, Any], file: Path, choose_on_test: bool, search_seed: int, **ask: Any) -> None:
    """Run a W&B sweep on this machine, with no server and no account: the same YAML, the same meaning.

    FILE is a sweep in W&B's format whose command starts `harness run`. Settings given here win over its constants.
    The same command goes on with a sweep that was stopped.

    \b
    harness sweep sweeps/digits.yaml
    harness sweep sweeps/lr.yaml --count 20 --workers 2 --data-dir data --final 3
    harness sweep sweeps/lr.yaml --count 60 --storage postgresql+psycopg://user@host/db --name lr     on each machine
    """
    from harness.config.settings import Config, coerce
    from harness.reporting.html.pages import write_run_page
    from harness.sweep import scheduler, schema

    output, name = settings.pop("output", Config().output), settings.pop("name", "")
    found = schema.read_sweep_file(file, settings, on_test=choose_on_test)
    folder, told = scheduler.run_sweep(
        found, file.read_bytes(), output=Path(output).expanduser(), name=name, seed=search_seed, **ask
    )
    click.echo(told)
    if coerce("report", settings.get("report", True)):
        write_run_page(folder, lambda text: click.echo(text, err=True))
    click.echo(
        f"sweep folder: {folder} (report.html, best.yaml, trials.csv)\nto W&B: harness sync {folder}/runs/*", err=True
    )


@click.command(cls=PlainCommand)
@click.argument("output", default="runs", type=click.Path(path_type=Path))
def runs(output: Path) -> None:
    """What is in the output folder, and how to go on with what is unfinished.

    OUTPUT is the folder that runs go to [runs]. A line a run: name, state, epoch, accuracy.

    \b
    harness runs
    harness runs other-runs
    """
    from harness.tracking.run_dir import SUMMARY, list_runs
    from harness.utils.errors import UsageError
    from harness.utils.files import read_json

    if not output.is_dir() and output != Path("runs"):
        raise UsageError(f"there is no folder {output}; runs go to the one that --output names")
    found = list(list_runs(output))
    for path, state, status in found:
        result = read_json(path / SUMMARY).get("result", {})
        accuracy = next(
            (f"{split} {100 * result[f'{split}/acc']:.2f} %" for split in ("test", "val") if f"{split}/acc" in result),
            "-",
        )
        click.echo(f"{path.name:<44} {state:<12} epoch {status.get('epoch', 0):<5} {accuracy}")
        if state != "finished" and status.get("resume"):
            click.echo(f"    {status['resume']}")
    sweeps = sorted(output.glob("*/sweep.json"))
    for path in sweeps:
        told = read_json(path)
        counts = ", ".join(
            f"{count} {'stopped early' if state == 'pruned' else state}"
            for state, count in told.get("trials", {}).items()
            if count
        )
        best = told.get("best") or {}
        click.echo(
            f"{path.parent.name:<44} sweep        {counts}; best {told.get('metric', {}).get('name')} {_rounded(best.get('value'))}"
        )
    for path in sorted(output.glob("*/seeds.json")):
        _show_seeds(path.parent.name, read_json(path))
    if not found and not sweeps:
        click.echo(f"no runs in {output}", err=True)


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _show_seeds(name: str, told: Mapping[str, Any]) -> None:
    """A line for the summary of several seeds, and how to go on where one is unfinished."""
    states = [seed["state"] for seed in told.get("seeds", [])]
    means = [
        f"{key.split('/')[0]} {100 * found['mean']:.2f} %" + (f" ± {100 * found['sd']:.2f}" if found["sd"] else "")
        for key, found in told.get("figures", {}).items()
        if key.endswith("/acc")
    ]
    click.echo(f"{name:<44} seeds        {states.count('finished')} of {len(states)} done  {', '.join(means) or '-'}")
    if told.get("resume"):
        click.echo(f"    {told['resume']}")


@click.command(cls=PlainCommand)
@click.argument(
    "folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path), shell_complete=complete_run
)
@click.option("--anew", is_flag=True, help="Send all of it as a new W&B run, where the old one has holes.")
def sync(folders: tuple[Path, ...], anew: bool) -> None:
    """Bring offline, interrupted or half-uploaded runs to W&B whole, from their journals.

    What W&B has already is not sent again; the folder of several seeds stands for its runs. `wandb sync` uploads W&B's own log, which may have lost its end.

    \b
    harness sync runs/my-run
    harness sync runs/* --anew
    """
    from harness.tracking.run_dir import members
    from harness.tracking.wandb import sync as syncing

    for folder in (run for given in folders for run in members(given)):
        done = syncing.sync(folder, lambda text: click.echo(text, err=True), anew)
        there = "" if done.arrived is None else f"; {done.steps} of {done.steps} steps are there"
        click.echo(f"{done.folder}: {done.sent} of {done.records} records were missing, now at {done.url}{there}")
