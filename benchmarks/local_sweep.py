"""Measure a local sweep: trials per hour, and the share of the time that is not training.

python benchmarks/local_sweep.py
python benchmarks/local_sweep.py --file sweeps/lr.yaml --count 10 -- --data folder --data-dir cifar --model-args width=16
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import measure

from harness.training.device import pick_device
from harness.utils.text import percent

SHIPPED = Path(__file__).parent.parent / "sweeps" / "digits.yaml"


@click.command()
@click.option("--file", default=SHIPPED, type=click.Path(exists=True, path_type=Path), help="[sweeps/digits.yaml]")
@click.option("--count", default=8, show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Two tiny trials.")
@click.option("--out", type=click.Path(path_type=Path))
@click.argument("settings", nargs=-1)
def main(file: Path, count: int, workers: int, quick: bool, out: Path | None, settings: tuple[str, ...]) -> None:
    """Run the sweep with forked trials, then with trials started by their command.

    SETTINGS hold for all trials; give them after `--`.
    """
    if quick:
        count, settings = 2, ("--model-args", "width=4", "--epochs", "1", *settings)
    rows: list[dict[str, Any]] = []
    for option, label in (("--fork", "forked"), ("--no-fork", "new processes")):
        with tempfile.TemporaryDirectory() as folder:
            command = ["sweep", str(file.resolve()), "--count", str(count), "--workers", str(workers), option]
            command += ["--output", folder, "--name", "s", *settings]
            began = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", "harness", *command], capture_output=True, text=True)
            whole = time.perf_counter() - began
            assert done.returncode == 0, done.stderr
            summary = json.loads((Path(folder) / "s/sweep.json").read_text())
            epochs = sum(_epoch_seconds(path) for path in (Path(folder) / "s/runs").glob("*/journal.jsonl"))
        ended = sum(summary["trials"].get(state, 0) for state in ("complete", "pruned", "failed"))
        rows.append(
            {
                "trials": f"{ended}, {label}",
                "total (s)": whole,
                "epochs (s)": epochs,
                "trials/h": 3600 * ended / whole,
                "not training": percent(1 - epochs / whole / workers, 0),
                "per trial beside its epochs (s)": (whole * workers - epochs) / max(ended, 1),
            }
        )
    measure.keep("local-sweep", pick_device("auto"), rows, out, file=file.name, count=count, workers=workers)


def _epoch_seconds(journal: Path) -> float:
    """Return the seconds of a trial's epochs, training and evaluation."""
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line.strip()]
    return sum(float(line["values"]["time/epoch_s"]) for line in lines if line.get("kind") == "epoch")


if __name__ == "__main__":
    main()
