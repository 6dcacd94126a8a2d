"""Read a sweep's folder back: the table of its trials, its summary and its own YAML; damage is named, and raises nothing."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.reporting.html.run_data import SWEEP, TRIALS
from harness.reporting.html.sweep_data import FORMER_NAMES, ParameterAxis, SweepData, TrialData, as_number, mappings_in
from harness.tracking.run_files import SWEEP_COPY
from harness.utils.errors import HarnessError
from harness.utils.files import read_json
from harness.utils.plain import sub_mapping

LAST_COLUMNS = ("values", "seconds", "training_s", "folder", "reason")  # behind the metric's
WIDE = 20.0  # a parameter whose greatest value is so many times its least is shown on a logarithmic axis
MAX_NUMERIC_CHOICES = 3  # a list of so few numbers is shown as categories


def read_sweep(path: Path) -> SweepData:
    """Read a sweep's folder; damage raises nothing, but is named in `missing`."""
    missing: list[str] = []
    summary = read_json(path / SWEEP)
    if not summary:
        missing.append("sweep.json: no trial has ended yet, or the file is damaged")
    names, rows = _table(path / TRIALS, missing)
    about = sub_mapping(summary, "metric")
    document = _document(path / SWEEP_COPY, missing)
    listed = mappings_in(summary.get("metrics")) or mappings_in(document.get("metrics"))
    further = [name for each in listed[1:] if (name := str(each.get("name"))) in names]
    trials = [_trial(names, row, further) for row in rows]
    metric = _metric(names) or str(about.get("name") or "metric")
    goals = [about, sub_mapping(document, "metric"), *listed[:1]]
    goal = next((each["goal"] for each in goals if each.get("goal")), None)
    axes = [_axis(name, trials, sub_mapping(document, "parameters")) for name in _parameters(names, further)]
    best = _text(path / "best.yaml")
    return SweepData(path, metric, goal == "maximize", trials, axes, summary, best, document, missing, further)


def _table(path: Path, missing: list[str]) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            header, *rows = csv.reader(file)
        names = [FORMER_NAMES.get(name, name) for name in header]
    except (OSError, ValueError, csv.Error) as error:
        missing.append(f"{TRIALS}, the table of trials ({getattr(error, 'strerror', None) or 'it is empty'})")
        return [], []
    complete = [row for row in rows if len(row) == len(names)]
    has_columns = tuple(names[-len(LAST_COLUMNS) :]) == LAST_COLUMNS
    if len(complete) < len(rows) or names[:2] != ["trial", "state"] or not has_columns:
        missing.append(f"a part of {TRIALS}: it is damaged")
    return (names, complete) if has_columns else ([], [])


def _metric(names: Sequence[str]) -> str:
    return names[-len(LAST_COLUMNS) - 1] if names else ""


def _parameters(names: Sequence[str], further: Sequence[str]) -> Sequence[str]:
    return names[2 : -len(LAST_COLUMNS) - 1 - len(further)]


def _trial(names: Sequence[str], row: Sequence[str], further: Sequence[str]) -> TrialData:
    columns = dict(zip(names, row, strict=True))
    values, seconds, _, folder, reason = row[-len(LAST_COLUMNS) :]
    return TrialData(
        name=row[0],
        state=row[1],
        parameters=dict(zip(_parameters(names, further), row[2:], strict=False)),
        value=as_number(row[-len(LAST_COLUMNS) - 1]),
        values=int(as_number(values)) if math.isfinite(as_number(values)) else 0,
        seconds=as_number(seconds),
        reason=reason,
        folder=folder,
        further={name: as_number(columns[name]) for name in further},
    )


def _axis(name: str, trials: Sequence[TrialData], parameters: Mapping[str, Any]) -> ParameterAxis:
    texts = [text for trial in trials if (text := trial.parameters.get(name, ""))]
    numbers = [as_number(text) for text in texts]
    first, *inner = name.split(".")
    spec = sub_mapping(parameters, first)
    for part in inner:  # `model_args.width`
        spec = sub_mapping(sub_mapping(spec, "parameters"), part)
    listed = spec.get("values")
    listed = listed if isinstance(listed, list) else []
    if not all(map(math.isfinite, numbers)) or 0 < len(listed) <= MAX_NUMERIC_CHOICES:
        return ParameterAxis(name, categories=_categories(texts, listed))
    wide = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= WIDE
    is_log = "log" in str(spec.get("distribution", ""))
    return ParameterAxis(name, logarithmic=bool(numbers) and min(numbers) > 0 and (is_log or wide))


def _categories(texts: Sequence[str], listed: Sequence[Any]) -> tuple[str, ...]:
    """Return the values of a list in its order, each as the table writes it, then those that only the table has."""
    in_table = {_same(text): text for text in texts}
    ordered = [in_table.get(_same(value), str(value)) for value in listed]
    return tuple(dict.fromkeys([*ordered, *texts]))


def _same(value: Any) -> float | str:
    """Return what is equal for a value of the YAML and its text in the table."""
    number = as_number(str(value))
    return number if math.isfinite(number) else str(value).lstrip("'")


def _document(path: Path, missing: list[str]) -> Mapping[str, Any]:
    try:
        return yaml_io.read_yaml(path, aliases=True)
    except HarnessError:
        missing.append("sweep.yaml, the sweep's configuration")
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
