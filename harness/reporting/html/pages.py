"""One self-contained HTML page of a run, of several runs, or of a sweep."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.evaluation.metrics import confusion_matrix, most_confused, per_class, reliability
from harness.reporting.html import facts, run_charts, run_pictures, sweep_charts
from harness.reporting.html.groups import differences, group_runs
from harness.reporting.html.plotly import Chart
from harness.reporting.html.run_data import RunData, check, is_run, is_sweep, read_run
from harness.reporting.html.sweep_data import SweepData, read_sweep
from harness.tracking.run_dir import members
from harness.utils.environment import version
from harness.utils.errors import UsageError
from harness.utils.files import write_atomically
from harness.utils.text import percent

if TYPE_CHECKING:
    from jinja2 import Environment

NAME = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
MATRIX_ROWS = 20  # classes up to which the confusion matrix stands in the page as a table too


def write_page(paths: Sequence[Path], out: Path | None = None, state: str = "") -> Path:
    """The page of these runs, or of this sweep, as a file.

    Args:
        paths: run folders, folders of several seeds, or the folder of one sweep.
        out: where to; by default `report.html` in the folder itself, or here where it is about several.
        state: of a single run that is about to say so itself.

    Raises:
        UsageError: one of them is no run's or sweep's folder. ResourceError: the file can not be written.
    """
    given = [Path(path).expanduser() for path in paths]
    paths = [member for path in given for member in members(path)]
    for path in paths:
        check(path)
    sweeps = [path for path in paths if is_sweep(path) and not is_run(path)]
    if sweeps and len(paths) > 1:
        raise UsageError(
            f"{sweeps[0]} is a sweep, which has a page of its own: harness report {sweeps[0]}; to compare its trials: harness report {sweeps[0]}/runs/*"
        )
    target = out or (given[0] / NAME if len(given) == 1 else Path(NAME))
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give a file: -o {target / NAME}")
    if sweeps:
        text = sweep_page(read_sweep(paths[0]))
    elif len(paths) == 1:
        text = run_page(read_run(paths[0], state))
    else:
        text = runs_page([read_run(path) for path in paths])
    # A file name need not be valid Unicode; what is not is written as an escape.
    write_atomically(target, text.encode("utf-8", "backslashreplace"))
    return target


def run_page(run: RunData) -> str:
    """The page of one run, whatever its state."""
    said = run.predictions
    matrix = confusion_matrix(said) if said else None
    calibration = reliability(said) if said else None
    spent = facts.times(run)
    charts = {
        "epochs": run_charts.by_epoch(run),
        "steps": run_charts.by_step(run),
        "finder": run_charts.range_test(run),
        "confusion": [chart] if said and (chart := run_charts.confusion(said)) else [],
        "calibration": [run_charts.calibration(calibration)] if calibration else [],
        "time": [run_charts.time(spent)] if spent else [],
    }
    return _fill(
        "run.html",
        charts,
        run=run,
        title=run.name,
        state_says=facts.STATES.get(run.state, ""),
        facts=facts.headline(run),
        essentials=facts.essentials(run),
        settings=facts.all_settings(run),
        epochs=_epoch_table(run),
        rules=run.table("find/rules"),
        trials=run.table("find/trials"),
        per_class=per_class(matrix).rows(said.classes) if said and matrix is not None else [],
        confusions=most_confused(matrix, said.classes) if said and matrix is not None else [],
        matrix=matrix.tolist() if matrix is not None and len(matrix) <= MATRIX_ROWS else [],
        bins=calibration.bins if calibration else [],
        galleries=run_pictures.galleries(run),
        times=spent,
        machine=facts.machine_facts(run),
        repeat=facts.repeat_commands(run),
    )


def runs_page(runs: Sequence[RunData]) -> str:
    """The page of several runs: side by side, and in groups that differ in the seed only."""
    together = group_runs(runs)
    keys = [key for key in ("test/acc", "val/acc", "test/loss", "val/loss") if any(key in run.result for run in runs)]
    return _fill(
        "runs.html",
        {"curves": run_charts.overlaid(together)},
        title=f"{len(runs)} runs",
        runs=runs,
        groups=together,
        keys=keys,
        differences=differences(runs),
        surroundings=_surroundings(runs),
        seconds=[sum(facts.times(run).values()) for run in runs],
    )


def sweep_page(sweep: SweepData) -> str:
    """The page of a sweep, whatever its state."""
    return _fill(
        "sweep.html",
        {"charts": sweep_charts.charts(sweep)},
        title=sweep.name,
        sweep=sweep,
        best=sweep.winner,
        score=lambda value: sweep_charts.score(sweep, value),
        final=sweep.told.get("final") if isinstance(sweep.told.get("final"), Mapping) else None,
    )


def _surroundings(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """What is not a setting and yet not equal in all the runs: machine, versions, code, data."""
    found = [dict(facts.machine_facts(run)) for run in runs]
    names = ("Device", "Threads", "System", "Python", "Packages", "Git", "Data fingerprint")
    return {
        name: [own.get(name, "") for own in found] for name in names if len({own.get(name, "") for own in found}) > 1
    }


def _epoch_table(run: RunData) -> dict[str, Any]:
    rows = run.scalars()
    wanted = dict.fromkeys(key for row in rows for key in row if key != "epoch" and not key.startswith("best/"))
    return {
        "columns": list(wanted),
        "rows": [(record.epoch, row) for record, row in zip(run.epochs, rows, strict=True)],
    }


def _fill(template: str, charts: Mapping[str, Sequence[Chart]], **values: Any) -> str:
    about = {chart.key: chart.to_json() for group in charts.values() for chart in group}
    return _templates().get_template(template).render(
        charts=charts,
        chart_data=as_script_data(about),
        plotly=_plotly() if about else "",
        css=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
        harness_version=version("vision-harness"),
        **values,
    )  # fmt: skip


def as_script_data(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _plotly() -> str:
    """plotly.js, compressed: gzip in base64, a third of its size. The package is not imported, which takes a second."""
    script = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, 6, mtime=0)).decode()


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": _percent,
        "figure": _figure,
        "sort_value": _sort_value,
        "duration": facts.duration,
        "short": sweep_charts.short,
    }
    return made


def _percent(share: Any, digits: int = 1) -> str:
    return percent(share, digits) if isinstance(share, int | float) and math.isfinite(share) else "–"


def _figure(value: Any, key: str = "") -> str:
    """A table's cell for a person."""
    if isinstance(value, bool) or value is None:
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–" if math.isnan(value) else str(value)
        if "acc" in key:
            return f"{100 * value:.2f} %"
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return str(value)


def _sort_value(value: Any) -> str:
    """What a table is sorted by; empty, which comes last, where there is nothing."""
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else str(value)
