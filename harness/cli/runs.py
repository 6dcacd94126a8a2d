"""The command that lists runs, sweeps and seeds."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.commands import PlainCommand
from harness.cli.terminal import echo
from harness.utils.errors import UsageError
from harness.utils.plain import json_text, number, sub_mapping
from harness.utils.text import percent, printable

if TYPE_CHECKING:
    from harness.tracking.run_list import ListedRun

SORTS = ("date", "name", "state", "accuracy", "lr", "model", "data", "epoch")
HEADINGS = ("run", "state", "last written", "model", "data", "LRMAX", "epoch", "accuracy")


@click.command(cls=PlainCommand)
@click.argument("output", default="runs", type=click.Path(path_type=Path))
@click.option("--sort", type=click.Choice(SORTS), default="date", show_default=True, help="Order, ascending.")
@click.option(
    "--state", "states", multiple=True, metavar="STATE", help="List only runs in this state; may be repeated."
)
@click.option("--match", default="", metavar="TEXT", help="List only runs whose name, model or data contains TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def runs(output: Path, sort: str, states: tuple[str, ...], match: str, as_json: bool) -> None:
    """List runs with their state, model, data, LR, epoch and accuracy, and the command that resumes each unfinished one.

    OUTPUT is the folder that holds the run directories [runs]. The accuracy is the result's; of a run without one, the
    last epoch's.

    \b
    harness runs
    harness runs other-runs --sort accuracy --state finished
    harness runs --match resnet --json
    """
    from harness.tracking.run_dir import RunState
    from harness.tracking.run_list import listed_runs
    from harness.utils.files import read_json

    if not output.is_dir() and output != Path("runs"):
        raise UsageError(
            f"there is no folder {output}; run directories are in the folder that `harness run --output` names"
        )
    if unknown := set(states) - set(RunState):
        raise UsageError(f"--state {min(unknown)}: need one of {', '.join(RunState)}")
    listed = listed_runs(output, states, match, sort)
    sweeps, seeds = (_folders_with(name, output, states, match) for name in ("sweep.json", "seeds.json"))
    if as_json:
        entries = [{"kind": "run", **_plain(run)} for run in listed]
        for kind, paths in (("sweep", sweeps), ("seeds", seeds)):
            entries += [
                {"kind": kind, "name": path.parent.name, "path": str(path.parent), **read_json(path)} for path in paths
            ]
        echo(json_text(entries, indent=1))
        return
    for line in _table([_cells(run) for run in listed], [run.advice for run in listed]):
        echo(line)
    for path in sweeps:
        echo(_sweep_line(path.parent.name, read_json(path)))
    for path in seeds:
        for line in _seeds_lines(path.parent, read_json(path)):
            echo(line)
    if not listed and not sweeps and not seeds:
        echo(f"no runs in {output}" + (" that match" if states or match else ""), err=True)


def _folders_with(name: str, output: Path, states: Sequence[str], match: str) -> list[Path]:
    """Return the summaries of sweeps or of several seeds; they have no state, model or data to choose by, but a name."""
    return [
        path for path in sorted(output.glob(f"*/{name}")) if not states and match.lower() in path.parent.name.lower()
    ]


def _plain(run: ListedRun) -> dict[str, Any]:
    values = {"name": run.name, **dataclasses.asdict(run)}
    written = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(run.written_at)) if _has_date(run) else None
    values |= {"path": str(run.path), "date": written, "advice": run.advice}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def _has_date(run: ListedRun) -> bool:
    return 0 < run.written_at < 1e11  # beyond, in the year 5138, a file system or an archive has written nonsense


def _cells(run: ListedRun) -> tuple[str, ...]:
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.written_at)) if _has_date(run) else "-"
    epoch = "-" if run.is_range_test else f"{run.epoch:.0f}" if 0 <= run.epoch < 1e9 else "?"
    of = f"/{run.epochs:.0f}" if 0 <= run.epochs < 1e9 else ""
    lr = f"{run.lr_max:.3g}" if math.isfinite(run.lr_max) else "-"
    accuracy = f"{run.split} {percent(run.accuracy, 2)}" if run.split else "range test" if run.is_range_test else "-"
    return run.name, run.state, date, run.model or "-", run.data or "-", lr, f"{epoch}{of}", accuracy


def _table(rows: Sequence[Sequence[str]], below: Sequence[str]) -> list[str]:
    """Return the lines of a table, each row followed by its text of `below` where it has one."""
    if not rows:
        return []
    table = [HEADINGS, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    lines = []
    for row, text in zip(table, ("", *below), strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if text:
            lines.append(f"    {text}")
    return lines


def _sweep_line(name: str, summary: Mapping[str, Any]) -> str:
    """Return a line for a sweep: its trials by state, and its best value."""
    trials = {state: number(count) for state, count in sub_mapping(summary, "trials").items()}
    counts = ", ".join(
        f"{count:.0f} {'stopped early' if state == 'pruned' else state}" for state, count in trials.items() if count > 0
    )
    value = number(sub_mapping(summary, "best").get("value"))
    best = f"{value:.4g}" if math.isfinite(value) else "-"
    metric = sub_mapping(summary, "metric").get("name")
    return printable(
        f"{name:<44} sweep        {counts}; {metric if str(metric).startswith('best/') else f'best {metric}'} {best}"
    )


def _seeds_lines(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """Return a line for a run over several seeds, and one with what to do about seeds that have not finished."""
    from harness.tracking.run_dir import is_locked, resume_seeds_command
    from harness.tracking.run_list import diverged_advice, has_diverged

    every = _list(summary, "seeds")
    seeds = [seed for seed in every if isinstance(seed, Mapping)]
    states = [seed.get("state") for seed in seeds]
    means = []
    for key in sub_mapping(summary, "figures"):
        spread = sub_mapping(summary["figures"], key)
        mean, deviation = number(spread.get("mean")), number(spread.get("sd"))
        if key.endswith(("/acc", "/map")) and 0 <= mean <= 1:
            means.append(
                f"{key.removesuffix('/acc').replace('/map', ' mAP')} {percent(mean, 2)}"
                + (f" ± {100 * deviation:.2f}" if deviation > 0 else "")
            )
    done, diverged = states.count("finished"), [seed for seed in seeds if has_diverged(str(seed.get("state")), seed)]
    lines = [printable(f"{folder.name:<44} seeds        {done} of {len(states)} done  {', '.join(means) or '-'}")]
    if diverged:
        count = f"{len(diverged)} of {len(states)} seeds"
        lines.append(f"    {count} {diverged_advice(number(sub_mapping(summary, 'config').get('lr_max')))}")
    if summary.get("resume") and done + len(diverged) < len(every) and not is_locked(folder):
        lines.append(f"    {resume_seeds_command(folder, len(every))}")
    return lines


def _list(mapping: Mapping[str, Any], key: str) -> list[Any]:
    value = mapping.get(key)
    return value if isinstance(value, list) else []
