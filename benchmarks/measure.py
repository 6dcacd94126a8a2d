"""Shared by the benchmarks: interleaved repetitions, medians, tables, and dated result files that name the machine."""

from __future__ import annotations

import contextlib
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from harness.training.device import describe_environment

RESULTS = Path(__file__).parent / "results"


def in_turns(work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Call every function `repeats` times, interleaved, and return the results of each.

    Each repetition starts with the next function, so that a busy moment of the machine affects all of them.
    """
    names, results = list(work), {name: [] for name in work}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(work[name]())
    return results


def seconds(work: Callable[[], Any], device: torch.device | None = None) -> float:
    """Return the seconds that a function takes, including its work on the device."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest value."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a text table, numbers with three significant digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_format_cell(row.get(key, "")) for key in columns] for row in rows]
    widths = [max(len(key), *(len(line[index]) for line in cells)) for index, key in enumerate(columns)]
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _format_cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def keep(
    name: str, device: torch.device, rows: Sequence[Mapping[str, Any]], out: Path | None = None, **more: Any
) -> Path:
    """Print the rows and write them to `results/NAME-DATE.json` with hardware and versions."""
    click.echo(table(rows))
    date = datetime.date.today().isoformat()
    path = out or RESULTS / f"{name}-{date}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = describe_environment(device)
    facts.pop("command")  # it may contain paths of this machine
    content = {"benchmark": name, "date": date, **facts, "load": _load(), **more, "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    click.echo(f"written: {path.name}", err=True)
    return path


def _load() -> list[float]:
    """Return the load averages over 1, 5 and 15 minutes; above the number of cores, other work disturbs the results."""
    import os

    return [round(value, 2) for value in os.getloadavg()]


@contextlib.contextmanager
def pictures(train: int, test: int, classes: int = 10, side: int = 32) -> Iterator[Path]:
    """Yield a temporary image folder of coloured noise, one mean colour per class, that `--data folder` reads."""
    from PIL import Image

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for split, count in (("train", train), ("test", test)):
            for number in range(count):
                folder = Path(root) / split / f"class-{number % classes}"
                folder.mkdir(parents=True, exist_ok=True)
                base = 20 * (number % classes) + 20
                pixels = np.clip(rng.normal(base, 60, (side, side, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)
        yield Path(root)
