"""One self-contained HTML page of a run, of several runs, or of a sweep."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.evaluation.metrics import confusion_matrix, most_confused, per_class, reliability
from harness.reporting.html import comparison, facts, run_charts, sweep_charts
from harness.reporting.html.galleries import augmented_view, galleries
from harness.reporting.html.groups import group_runs, run_differences
from harness.reporting.html.plotly import Chart
from harness.reporting.html.run_data import RunData, contained, is_sweep, read_run, resolve_folders
from harness.reporting.html.sweep_data import STATE_LABELS, SweepData, value_text
from harness.reporting.html.sweep_reader import read_sweep
from harness.tracking.metric_names import interval_scale
from harness.tracking.run_files import is_run
from harness.utils.environment import version
from harness.utils.errors import UsageError, as_harness_error
from harness.utils.files import write_atomically
from harness.utils.plain import sub_mapping
from harness.utils.text import duration, percent

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
# On which scale an interval is computed -> the page's captions.
INTERVALS = {
    "logit": "Student's t on the logit scale, so that it stays within 0 and 100 %",
    "log": "Student's t on the logarithmic scale, so that it stays above 0",
}
MATRIX_ROWS = 20  # classes up to which the page has the confusion matrix as a table too
log = logging.getLogger(__name__)


def write_run_page(folder: Path, notify: Callable[[str], None], state: str = "") -> None:
    """Write the page of a run or a sweep at its end; a failure is reported in one line, and fails nothing.

    Args:
        state: of a run whose `status.json` does not have it yet.
    """
    try:
        write_page([folder], state=state)
    except Exception as error:
        user_error = as_harness_error(error)
        if user_error is None:
            log.exception("while writing the page of %s", folder)
        notify(f"{PAGE} was not written: {user_error or error}; write it with: harness report {folder}")


def write_page(paths: Path | str | Sequence[Path | str], out: Path | str | None = None, state: str = "") -> Path:
    """Write the page of some runs, or of a sweep, and return its path.

    Args:
        paths: run directories, folders of several seeds, sweeps, or folders that hold any of these, such as `runs`.
        out: the file; by default `report.html` in the directory of a single run, several seeds or a sweep, and in the
            working directory for several of them.
        state: of a single run that is about to write it itself.

    Raises:
        UsageError: one of them is neither a run nor a sweep, and holds none. ResourceError: the file cannot be written.
    """
    folders = [Path(path).expanduser() for path in ([paths] if isinstance(paths, Path | str) else paths)]
    members, left_out = resolve_folders(folders)
    sweeps = [path for path in members if is_sweep(path) and not is_run(path)]
    runs = [path for path in members if path not in sweeps]
    is_single = len(folders) == 1 and not contained(folders[0])
    single = folders[0] if is_single else members[0] if len(members) == 1 else None
    target = Path(out) if out else Path(PAGE) if single is None else single / PAGE
    if target.is_dir():
        raise UsageError(f"{target} is a directory; give a file: -o {target / PAGE}")
    if len(members) == 1:
        text = sweep_page(read_sweep(members[0])) if sweeps else run_page(read_run(members[0], state))
    else:
        text = runs_page([read_run(path) for path in runs], [read_sweep(path) for path in sweeps], left_out)
    # A file name need not be valid Unicode; what is not is written as an escape.
    write_atomically(target, text.encode("utf-8", "backslashreplace"))
    return target


def run_page(run: RunData) -> str:
    """Return the page of one run, whatever its state."""
    predictions, times = run.predictions, facts.times(run)
    matrix = confusion_matrix(predictions) if predictions else None
    calibration = reliability(predictions) if predictions else None
    charts = {
        "epochs": run_charts.by_epoch(run),
        "steps": run_charts.by_step(run),
        "finder": run_charts.range_test_charts(run),
        "confusion": [chart] if predictions and (chart := run_charts.confusion(predictions)) else [],
        "calibration": [run_charts.calibration(calibration)] if calibration else [],
        "time": [run_charts.time(times)] if times else [],
    }
    return _fill(
        "run.html",
        charts,
        run=run,
        title=run.name,
        state_text=facts.STATE_SENTENCES.get(run.state, ""),
        resumable=facts.is_resumable(run),
        facts=facts.headline(run),
        configuration=facts.configuration(run),
        data_notes=facts.data_notes(run),
        settings=facts.all_settings(run),
        chosen=facts.chosen_settings(run),
        epochs=_epoch_table(run),
        rules=run.table("find/rules"),
        trials=run.table("find/trials"),
        per_class=per_class(matrix).rows(predictions.classes) if predictions and matrix is not None else [],
        confusions=most_confused(matrix, predictions.classes) if predictions and matrix is not None else [],
        matrix=matrix.tolist() if matrix is not None and len(matrix) <= MATRIX_ROWS else [],
        bins=calibration.bins if calibration else [],
        multilabel=run.table("predictions/per_class") if run.is_multilabel else None,
        thresholds=sub_mapping(run.summary, "thresholds").get("chosen", ""),
        galleries=galleries(run),
        augmented=augmented_view(run),
        times=times,
        environment=facts.environment_facts(run),
        commands=facts.reproduce_commands(run),
    )


def runs_page(
    runs: Sequence[RunData], sweeps: Sequence[SweepData] = (), left_out: Sequence[tuple[Path, str]] = ()
) -> str:
    """Return the page of several runs, side by side and grouped over seeds, and of sweeps.

    Args:
        left_out: (folder, why) of those that could not be read.
    """
    groups = group_runs(runs)
    metrics = ("test/acc", "val/acc", "test/map", "val/map", "test/loss", "val/loss")
    keys = [key for key in metrics if any(key in run.result for run in runs)]
    classes = comparison.compare_classes(groups)
    difference = classes.chart() if classes else None
    counted = [
        f"{len(some)} {noun}{'' if len(some) == 1 else 's'}"
        for some, noun in ((runs, "run"), (sweeps, "sweep"))
        if some
    ]
    settings = {id(run): group.settings for group in groups for run in group.runs}
    return _fill(
        "runs.html",
        {"curves": comparison.overlaid(groups), "difference": [difference] if difference else []},
        title=" and ".join(counted),
        runs=runs,
        groups=groups,
        has_spread=any(len(group.seeds) > 1 for group in groups),
        numbers={group.label: f"#{number}" for number, group in enumerate(groups, 1)},
        configurations=[settings[id(run)] for run in runs],
        data_sets=sorted({run.data for run in runs}),
        keys=keys,
        scales={key: INTERVALS[interval_scale(key)] for key in keys},
        intervals=[{key: facts.accuracy_interval(run, key.split("/")[0]) for key in keys if key.endswith("acc")} for run in runs],
        legend=comparison.legend_entries(groups, keys[0] if keys else ""),
        styles=comparison.STYLES,
        classes=classes,
        max_classes=comparison.MAX_CLASSES,
        differences=run_differences(runs),
        environments=_differing_environments(runs),
        seconds=[sum(facts.times(run).values()) for run in runs],
        sweeps=sweeps,
        left_out=left_out,
    )  # fmt: skip


def sweep_page(sweep: SweepData) -> str:
    """Return the page of a sweep, whatever its state."""
    return _fill(
        "sweep.html",
        {"charts": sweep_charts.charts(sweep)},
        title=sweep.name,
        sweep=sweep,
        best=sweep.winner,
        state_labels=STATE_LABELS,
        final=sweep.final,
    )


def _differing_environments(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """Return name -> value in each run, for machine, versions, code and data that are not equal in all runs."""
    environments = [dict(facts.environment_facts(run)) for run in runs]
    names = ("Device", "Threads", "System", "Python", "Packages", "Git", "Data fingerprint")
    return {
        name: [each.get(name, "") for each in environments]
        for name in names
        if len({each.get(name, "") for each in environments}) > 1
    }


def _epoch_table(run: RunData) -> dict[str, Any]:
    rows = run.scalars()
    columns = dict.fromkeys(key for row in rows for key in row if key != "epoch" and not key.startswith("best/"))
    return {
        "columns": list(columns),
        "rows": [(record.epoch, row) for record, row in zip(run.epochs, rows, strict=True)],
    }


def precompile() -> None:
    """Compile the templates and compress the script, so that the next page of this process is fast."""
    for path in sorted(TEMPLATES.glob("*.html*")):
        _templates().get_template(path.name)
    _plotly()


def _fill(template: str, charts: Mapping[str, Sequence[Chart]], **values: Any) -> str:
    chart_data = {chart.key: chart.to_json() for group in charts.values() for chart in group}
    return _templates().get_template(template).render(
        charts=charts,
        chart_data=as_script_data(chart_data),
        plotly=_plotly() if chart_data else "",
        css=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
        harness_version=version("vision-harness"),
        **values,
    )  # fmt: skip


def as_script_data(value: Any) -> str:
    """Return JSON for a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _plotly() -> str:
    """Return plotly.js as gzip in base64, less than half its size, without importing the package, which takes a second."""
    script = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, 4, mtime=0)).decode()


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "figure": _cell_text,
        "sort_value": _sort_value,
        "duration": duration,
        "short": value_text,
        "setting": facts.setting_cell,
    }
    return environment


def _percent(share: Any, digits: int = 1) -> str:
    return percent(share, digits) if isinstance(share, int | float) and math.isfinite(share) else "–"


def _cell_text(value: Any, key: str = "") -> str:
    """Return a table's cell as a person reads it."""
    if isinstance(value, bool) or value is None:
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–" if math.isnan(value) else str(value)
        if "acc" in key or key.rsplit("/", 1)[-1] in ("map", "exact_match"):
            return f"{100 * value:.2f} %"
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return str(value)


def _sort_value(value: Any) -> str:
    """Return what a table is sorted by; an empty text, which comes last, for a missing value."""
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else str(value)
