"""What the benchmarks share: turns taken side by side, medians, tables, and dated files that name the machine."""

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
    """What each piece of work returned, `repeats` times; who begins moves on by one each time, so that a busy moment meets all."""
    names, told = list(work), {name: [] for name in work}
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            told[name].append(work[name]())
    return told


def seconds(work: Callable[[], Any], device: torch.device | None = None) -> float:
    """How long a piece of work takes, the device's part of it included."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the names of their values; numbers to three digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    words = [[_word(row.get(key, "")) for key in columns] for row in rows]
    widths = [max(len(key), *(len(line[at]) for line in words)) for at, key in enumerate(columns)]
    lines = [columns, ["-" * width for width in widths], *words]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in lines)


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def keep(
    name: str, device: torch.device, rows: Sequence[Mapping[str, Any]], out: Path | None = None, **more: Any
) -> Path:
    """Print the rows, and write them as `results/NAME-DATE.json` with hardware and versions."""
    click.echo(table(rows))
    date = datetime.date.today().isoformat()
    path = out or RESULTS / f"{name}-{date}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = describe_environment(device)
    facts.pop("command")  # it may name folders of the machine
    told = {"benchmark": name, "date": date, **facts, "load": _load(), **more, "rows": list(rows)}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    click.echo(f"written: {path.name}", err=True)
    return path


def _load() -> list[float]:
    """How busy the machine is, over 1, 5 and 15 minutes: more than the cores, and other work is in the figures."""
    import os

    return [round(value, 2) for value in os.getloadavg()]


@contextlib.contextmanager
def pictures(train: int, test: int, classes: int = 10, side: int = 32) -> Iterator[Path]:
    """A folder of made pictures, coloured noise by class, that `--data folder` reads; gone afterwards."""
    from PIL import Image

    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        for split, count in (("train", train), ("test", test)):
            for number in range(count):
                folder = Path(place) / split / f"class-{number % classes}"
                folder.mkdir(parents=True, exist_ok=True)
                base = 20 * (number % classes) + 20
                pixels = np.clip(draw.normal(base, 60, (side, side, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)
        yield Path(place)
