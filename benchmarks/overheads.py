"""Measure everything around training: tracking, explaining, the start of a run, `--help`.

    python benchmarks/overheads.py                       # digits
    python benchmarks/overheads.py --data folder --data-dir cifar --model-args width=16 --epochs 2

Complete runs as processes, interleaved: W&B offline against no W&B; and new processes that only import torch and timm
against ones that reach the first update of a run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import measure

from harness.cli.commands import CONTEXT, SettingsCommand
from harness.cli.options import setting_options
from harness.config.recipe import make_config
from harness.runs.components import build_components

# Ends a run at its first update and prints the time.
TO_THE_FIRST_UPDATE = """
import os, sys, time
from harness.cli.main import main
import harness.training.loop as loop
def stop(*args, **kwargs):
    print("began", time.time()); sys.stdout.flush(); os._exit(0)
loop._step = stop
sys.argv = ["harness", *sys.argv[1:]]
main()
"""
BARE = "import time, torch, timm; print('began', time.time())"


def seconds_until_printed(code: str, arguments: list[str], folder: str) -> float:
    """Return the seconds from the start of a Python process to the time that it prints."""
    began = time.time()
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], cwd=folder, capture_output=True, text=True
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("began ")]
    assert lines, process.stderr
    return float(lines[-1].split()[1]) - began


def run(arguments: list[str], folder: str, mode: str) -> dict[str, Any]:
    """Return the seconds of one run by phase, from its summary, and of the whole process."""
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        began = time.perf_counter()
        line = [sys.executable, "-m", "harness", "run", *arguments, "--wandb", mode, "--output", "runs", "--name", "r"]
        process = subprocess.run(line, cwd=directory, capture_output=True, text=True)
        total = time.perf_counter() - began
        assert process.returncode == 0, process.stderr
        summary = json.loads((Path(directory) / "runs/r/summary.json").read_text())
        records = [json.loads(text) for text in (Path(directory) / "runs/r/journal.jsonl").read_text().splitlines()]
    epochs = [line for line in records if line.get("kind") == "epoch"]
    return {**summary["seconds"], "process": total, "epochs": len(epochs)}


def rows_of_runs(results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    def median(mode: str, key: str) -> float:
        return statistics.median(row[key] for row in results[mode])

    rows = []
    for mode in results:
        rows.append({
            "run": f"wandb={mode}", "training (s)": median(mode, "train"), "evaluating (s)": median(mode, "eval"),
            "explaining (s)": median(mode, "explain"), "whole process (s)": median(mode, "process"),
        })  # fmt: skip
    pairs = list(zip(results["offline"], results["disabled"], strict=True))
    share = statistics.median(offline["epoch"] / disabled["epoch"] - 1 for offline, disabled in pairs)
    rows.append({"run": "tracking, fraction of the loop", "training (s)": f"{100 * share:.2f} %"})
    return rows


@click.command(cls=SettingsCommand, context_settings=CONTEXT)
@click.option("--repeats", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="One repetition of a tiny run.")
@click.option("--out", type=click.Path(path_type=Path))
@setting_options
def main(settings: dict[str, Any], repeats: int, quick: bool, out: Path | None) -> None:
    settings = {"recipe": "digits", **({"model_args": "width=4", "epochs": "1"} if quick else {}), **settings}
    for name in ("data_dir",):
        if name in settings:
            settings[name] = str(Path(settings[name]).resolve())
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    repeats = 1 if quick else repeats
    os.environ |= {
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    del os.environ["WANDB_MODE"]
    with tempfile.TemporaryDirectory() as folder:
        starts: dict[str, Callable[[], float]] = {
            "import torch, timm": lambda: seconds_until_printed(BARE, [], folder),
            "first update of a run": lambda: seconds_until_printed(
                TO_THE_FIRST_UPDATE, ["run", *arguments, "--resume=never", "--wandb=offline"], folder
            ),
            "harness --help": lambda: measure.seconds(
                lambda: subprocess.run([sys.executable, "-m", "harness", "--help"], capture_output=True, check=True)
            ),
            "harness run --help": lambda: measure.seconds(
                lambda: subprocess.run(
                    [sys.executable, "-m", "harness", "run", "--help"], capture_output=True, check=True
                )
            ),
        }
        start_times = measure.in_turns(starts, repeats)
        runs = measure.in_turns(
            {mode: lambda mode=mode: run(arguments, folder, mode) for mode in ("offline", "disabled")}, repeats
        )
    rows = rows_of_runs(runs)
    rows += [{"run": name, "whole process (s)": statistics.median(values)} for name, values in start_times.items()]
    beyond_imports = statistics.median(
        first - bare
        for first, bare in zip(start_times["first update of a run"], start_times["import torch, timm"], strict=True)
    )
    rows.append({"run": "start of a run beyond the imports", "whole process (s)": beyond_imports})
    measure.keep("overheads", build_components(make_config(settings)).learner.device, rows, out, repeats=repeats)


if __name__ == "__main__":
    main()
