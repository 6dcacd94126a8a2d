"""Where the wall time of one command goes, from the start of its process to its exit.

    python benchmarks/timeline.py --out timeline.json -- run --recipe digits --wandb offline

The command runs in a process of its own, with the functions of `SPANS` timed on the main thread. The time of a span includes
the spans that it calls; `self` is without them. The rows of an epoch (updates, evaluation, tracking, checkpoint) are sums
over all epochs. `cpu` is the time that processors worked for the process, all threads of it: on a busy machine it can be
compared where seconds cannot. Both processes use the system's monotonic clock, so the start and the exit of the interpreter
are included.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

GC_THRESHOLD = (200_000, 10, 10)  # as `harness.cli.main` sets it
STARTED_AT = "HARNESS_TIMELINE_STARTED_AT"
# Name of a row -> module, and the attribute in it or in one of its classes that is timed. Missing ones are left out.
SPANS = {
    "data": ("harness.runs.components", "load_dataset"),
    "components, data included": ("harness.runs.run", "build_components"),
    "facts of the machine": ("harness.runs.run", "describe_environment"),
    "opening the trackers": ("harness.runs.tracked_run", "_open"),
    "training and evaluation": ("harness.runs.trainer", "Trainer.train"),
    "figures of an epoch read": ("harness.training.loop", "_epoch_values"),
    "order and augmentation drawn": ("harness.data.device_loader", "DeviceTrainLoader._prepare"),
    "evaluation": ("harness.training.loop", "evaluate"),
    "end of an epoch": ("harness.runs.trainer", "Trainer._on_epoch"),
    "tracker records": ("harness.tracking.tracker", "MultiTracker.record"),
    "checkpoint, as the loop sees it": ("harness.training.checkpoint", "CheckpointWriter.save"),
    "checkpoints, waited for at the end": ("harness.training.checkpoint", "CheckpointWriter.flush"),
    "explaining": ("harness.runs.trainer", "Trainer._evaluate_result"),
    "predictions": ("harness.reporting.evaluation_report", "predict_batches"),
    "predictions.csv": ("harness.evaluation.metrics", "write_predictions_csv"),
    "confusion figure": ("harness.reporting.figures.confusion", "confusion_figure"),
    "reliability figure": ("harness.reporting.figures.confusion", "reliability_figure"),
    "galleries": ("harness.reporting.evaluation_report", "Evaluator._galleries"),
    "Grad-CAM, figure and table": ("harness.reporting.evaluation_report", "Evaluator._maps"),
    "Grad-CAM, figure": ("harness.reporting.figures.gradcam", "gradcam_figure"),
    "Grad-CAM, table": ("harness.reporting.evaluation_report", "Evaluator._cam_table"),
    "Grad-CAM, maps": ("harness.evaluation.gradcam", "compute_maps"),
    "figures": ("harness.runs.trainer", "Trainer._draw_curves"),
    "weights": ("harness.runs.trainer", "Trainer._keep_weights"),
    "artifact": ("harness.tracking.tracker", "MultiTracker.artifact"),
    "W&B finish": ("harness.tracking.tracker", "MultiTracker.finish"),
    "page": ("harness.runs.tracked_run", "write_run_page"),
}


class Clock:
    """Seconds, CPU seconds of the process (all threads) and calls of each span."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.inner: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.within: dict[str, float] = {}  # seconds of a span within the one that called it
        self.stack: list[str] = []

    def timed(self, name: str, function: Any) -> Any:
        """Return `function`; its calls are added to the span."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started_at, cpu_before = time.monotonic(), time.process_time()
            self.stack.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.stack.pop()
                seconds = time.monotonic() - started_at
                self.total[name] = self.total.get(name, 0.0) + seconds
                self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu_before
                self.calls[name] = self.calls.get(name, 0) + 1
                if self.stack:
                    outer = self.stack[-1]
                    self.inner[outer] = self.inner.get(outer, 0.0) + seconds
                    pair = f"{outer} > {name}"
                    self.within[pair] = self.within.get(pair, 0.0) + seconds

        return wrapper

    def watch(self, name: str, module: str, attribute: str) -> None:
        """Time the calls of `module.attribute` from now on, if it exists."""
        try:
            owner: Any = importlib.import_module(module)
            *path, last = attribute.split(".")
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, last, self.timed(name, getattr(owner, last)))
        except (ImportError, AttributeError):
            print(f"not timed: {module}.{attribute}", file=sys.stderr)


def child(out: str, arguments: list[str]) -> None:
    """Run one command of `harness` in this process and write the times as JSON to `out`."""
    stages, cpu = {"interpreter start": time.monotonic() - float(os.environ[STARTED_AT])}, {}
    stage_start, cpu_start = time.monotonic(), time.process_time()
    cpu["interpreter start"] = cpu_start
    gc.set_threshold(*GC_THRESHOLD)  # these imports are in the order of `harness run`
    for stage, names in (
        ("import the command line", ("harness.cli.main",)),
        ("import wandb", ("wandb.apis.public", "wandb.sdk.launch")),
        ("import torch", ("torch",)),
        ("import timm and torchvision", ("timm", "torchvision")),
        ("import harness", ("harness.runs.run",)),
        ("import matplotlib", ("matplotlib.backends.backend_agg",)),
    ):
        for name in names:
            importlib.import_module(name)
        stages[stage], cpu[stage] = time.monotonic() - stage_start, time.process_time() - cpu_start
        stage_start, cpu_start = time.monotonic(), time.process_time()
    clock = Clock()
    for name, (module, attribute) in SPANS.items():
        clock.watch(name, module, attribute)
    from harness.cli.main import main as command

    sys.argv = ["harness", *arguments]
    status: Any = 0
    try:
        command()
    except SystemExit as exit_:
        status = exit_.code
    ended = time.monotonic()
    stages["command"], cpu["command"] = ended - stage_start, time.process_time() - cpu_start
    spans = {
        name: {
            "total": total,
            "self": total - clock.inner.get(name, 0.0),
            "cpu": clock.cpu[name],
            "calls": clock.calls[name],
        }
        for name, total in clock.total.items()
    }
    result = {"stages": stages, "cpu": cpu, "spans": spans, "within": clock.within, "ended": ended, "status": status}
    Path(out).write_text(json.dumps(result))
    sys.exit(status)


def timeline(arguments: list[str], timeout: float = 300.0) -> dict[str, Any]:
    """Return the seconds of each stage and span of one command, from start to exit.

    Raises:
        RuntimeError: the command failed; its last lines are in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "timeline.json"
        environment = {**os.environ, STARTED_AT: str(time.monotonic())}
        command = [sys.executable, __file__, "--child", str(out), "--", *arguments]
        started_at, cpu_before = time.monotonic(), _cpu_seconds_of_children()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        ended = time.monotonic()
        if done.returncode or not out.is_file():
            raise RuntimeError(
                f"{' '.join(arguments[:3])} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
            )
        result: dict[str, Any] = json.loads(out.read_text())
        result["stages"]["exit"] = ended - result.pop("ended")
        result["whole"] = ended - started_at
        result["cpu"]["whole"] = _cpu_seconds_of_children() - cpu_before  # with the processes that it started
        result["output"] = done.stderr.splitlines()[-40:]
    return result


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each stage and span."""
    whole, cpu = result["whole"], result["cpu"]
    rows: list[dict[str, Any]] = [
        {
            "what": name,
            "seconds": seconds,
            "self": seconds,
            "cpu": cpu.get(name, ""),
            "calls": 1,
            "share": f"{100 * seconds / whole:.1f} %",
        }
        for name, seconds in result["stages"].items()
    ]
    rows += [
        {
            "what": f"  {name}",
            "seconds": span["total"],
            "self": span["self"],
            "cpu": span["cpu"],
            "calls": span["calls"],
            "share": f"{100 * span['total'] / whole:.1f} %",
        }
        for name, span in sorted(result["spans"].items(), key=lambda pair: -pair[1]["total"])
    ]
    last = {"what": "start to exit", "seconds": whole, "self": whole, "cpu": cpu["whole"], "calls": 1, "share": "100 %"}
    return [*rows, last]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--child", "child_out", hidden=True, help="Run the command in this process.")
@click.option("--out", type=click.Path(path_type=Path), help="The JSON file. [results/timeline-DATE.json]")
@click.argument("arguments", nargs=-1, required=True)
def main(child_out: str | None, out: Path | None, arguments: tuple[str, ...]) -> None:
    if child_out:
        child(child_out, list(arguments))
    import measure
    import torch

    result = timeline(list(arguments))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measure.keep("timeline", device, rows_of(result), out)


if __name__ == "__main__":
    main()
