"""What stands around training: tracking, checkpoints, explaining, the start of a run, the answer of --help.

    python benchmarks/overheads.py                       # digits
    python benchmarks/overheads.py --data folder --data-dir cifar --model-args width=16 --epochs 2

Whole runs as processes, in turns: offline W&B against none; and fresh processes that only import torch and timm against
ones that come to the first update of a run.
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

from harness.cli.options import CONTEXT, SettingsCommand, config_from_options, setting_options
from harness.runs.components import build_components

# Ends a run at its first update and says when it began.
TO_THE_FIRST_UPDATE = """
import os, sys, time
from harness.cli.main import main
import harness.training.loop as loop
def first(*words, **more):
    print("began", time.time()); sys.stdout.flush(); os._exit(0)
loop._step = first
sys.argv = ["harness", *sys.argv[1:]]
main()
"""
BARE = "import time, torch, timm; print('began', time.time())"


def started(code: str, words: list[str], folder: str) -> float:
    """Seconds from the start of a Python process to the moment that it tells."""
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words], cwd=folder, capture_output=True, text=True
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("began ")]
    assert told, done.stderr
    return float(told[-1].split()[1]) - began


def run(words: list[str], folder: str, mode: str) -> dict[str, Any]:
    """The seconds of one run by part, from its summary, and those of the whole process."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        began = time.perf_counter()
        line = [sys.executable, "-m", "harness", "run", *words, "--wandb", mode, "--output", "runs", "--name", "r"]
        done = subprocess.run(line, cwd=place, capture_output=True, text=True)
        whole = time.perf_counter() - began
        assert done.returncode == 0, done.stderr
        summary = json.loads((Path(place) / "runs/r/summary.json").read_text())
        stages = [json.loads(text) for text in (Path(place) / "runs/r/journal.jsonl").read_text().splitlines()]
    epochs = [line for line in stages if line.get("kind") == "epoch"]
    return {**summary["seconds"], "process": whole, "epochs": len(epochs)}


def rows_of_runs(told: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    middle = lambda mode, key: statistics.median(row[key] for row in told[mode])  # noqa: E731
    rows = []
    for mode in told:
        rows.append({
            "run": f"wandb={mode}", "training (s)": middle(mode, "train"), "evaluating (s)": middle(mode, "eval"),
            "explaining (s)": middle(mode, "explain"), "whole process (s)": middle(mode, "process"),
        })  # fmt: skip
    pairs = list(zip(told["offline"], told["disabled"], strict=True))
    share = statistics.median(a["epoch"] / b["epoch"] - 1 for a, b in pairs)
    rows.append({"run": "tracking, share of the loop", "training (s)": f"{100 * share:.2f} %"})
    return rows


@click.command(cls=SettingsCommand, context_settings=CONTEXT)
@click.option("--repeats", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="One turn of a tiny run.")
@click.option("--out", type=click.Path(path_type=Path))
@setting_options
def main(settings: dict[str, Any], repeats: int, quick: bool, out: Path | None) -> None:
    settings = {"recipe": "digits", **({"model_args": "width=4", "epochs": "1"} if quick else {}), **settings}
    for name in ("data_dir",):
        if name in settings:
            settings[name] = str(Path(settings[name]).resolve())
    words = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    repeats = 1 if quick else repeats
    os.environ |= {
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    del os.environ["WANDB_MODE"]
    with tempfile.TemporaryDirectory() as folder:
        starts: dict[str, Callable[[], float]] = {
            "import torch, timm": lambda: started(BARE, [], folder),
            "first update of a run": lambda: started(
                TO_THE_FIRST_UPDATE, ["run", *words, "--resume=never", "--wandb=offline"], folder
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
        begun = measure.in_turns(starts, repeats)
        runs = measure.in_turns(
            {mode: lambda mode=mode: run(words, folder, mode) for mode in ("offline", "disabled")}, repeats
        )
    rows = rows_of_runs(runs)
    rows += [{"run": name, "whole process (s)": statistics.median(values)} for name, values in begun.items()]
    own = statistics.median(
        first - bare for first, bare in zip(begun["first update of a run"], begun["import torch, timm"], strict=True)
    )
    rows.append({"run": "start of a run beyond the imports", "whole process (s)": own})
    measure.keep(
        "overheads", build_components(config_from_options(settings)).learner.device, rows, out, repeats=repeats
    )


if __name__ == "__main__":
    main()
