"""All that is to be known of one GPU, in under ten minutes and with no network: is it right there, and how fast.

    python benchmarks/gpu.py --data-dir cifar10.tar.xz          # pictures as train/CLASS/*.jpg and test/CLASS/*.jpg
    python benchmarks/gpu.py --device cpu --quick               # the same lines on a CPU, shrunk: what CI runs

Stages: versions and ceilings; whether augmentation, resuming, background saves and the CUDA graph give what they should, and
whether an epoch ever waits for the device; each part of a step against the ceilings; whole runs of the default recipe and of
Page's over several seeds; where the time goes; the peers side by side. A stage that no longer fits into --minutes is left out,
and said to be. Works with torch 2.10 and newer.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import measure
import throughput
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.loaders import make_loaders
from harness.runs import run
from harness.runs.components import Components, build_components
from harness.runs.progress import LineReporter
from harness.training import checkpoint
from harness.training.checkpoint_writer import CheckpointWriter
from harness.training.device import autocast
from harness.training.loop import TrainerState, evaluate, fit

# Of the custom ResNet at 32 x 32, counted: 2 FLOP a multiply-add, convolutions and the last layer.
FORWARD, STEP = 758.524e6, 2272.033e6


class Bench:
    """One session on one device: what was measured, and how much time is left."""

    def __init__(self, settings: dict[str, Any], device: str, quick: bool, minutes: float) -> None:
        self.settings, self.quick = {**settings, "device": device, "wandb": "offline"}, quick
        self.ends = time.monotonic() + 60 * minutes
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.profile = ""
        self.parts = build_components(self.config())
        self.device = self.parts.learner.device
        self.on_gpu = self.device.type == "cuda"
        self.matmul = self.copy = float("nan")

    def config(self, **more: Any) -> Config:
        return make_config({**self.settings, **more})

    def fresh(self, **more: Any) -> Components:
        """The parts of a run anew, with some settings changed."""
        return build_components(self.config(**more))

    def tell(self, what: str, value: Any, unit: str = "", remark: str = "", good: bool | None = None) -> None:
        row = {
            "what": what,
            "value": value,
            "unit": unit,
            "remark": remark,
            "right": {True: "yes", False: "NO", None: ""}[good],
        }
        self.rows.append(row)
        click.echo(measure.table([row]).splitlines()[-1], err=True)

    def stage(self, name: str, work: Callable[[Bench], None], seconds: float) -> None:
        """Do a stage when there is time for it; one that fails is a row, and the others go on."""
        if not self.quick and time.monotonic() + seconds > self.ends:
            self.left_out.append(f"{name}: no time left")
            return
        try:
            work(self)
        except Exception as error:
            traceback.print_exc()
            self.tell(name, "failed", remark=f"{type(error).__name__}: {str(error)[:200]}", good=False)


def ceilings(bench: Bench) -> None:
    """What the device can do at best: bf16 products of large matrices, and copies in its memory."""
    side, size = (8192, 2**30) if bench.on_gpu else (512, 2**24)
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    best = lambda work: min(measure.seconds(lambda: [work() for _ in range(5)], bench.device) / 5 for _ in range(4))  # noqa: E731
    bench.matmul = 2 * side**3 / best(lambda: a @ b)
    bench.copy = 2 * size / best(lambda: target.copy_(source))
    bench.tell(f"matmul {side} bf16", bench.matmul / 1e12, "TFLOP/s")
    bench.tell("copy, read and write", bench.copy / 1e9, "GB/s")


def augmentation_is_the_cpus(bench: Bench) -> None:
    """The same crops, flips and holes on both devices, and pixels equal to rounding."""
    config, parts = bench.config(loader="resident"), bench.parts
    here, there = (make_loaders(config, parts.data, parts.preprocess, device).train for device in (bench.device, "cpu"))
    worst = 0.0
    for (images, labels), (others, truths), _ in zip(here.epoch(1), there.epoch(1), range(3), strict=False):
        assert torch.equal(labels.cpu(), truths)
        worst = max(worst, float((images.cpu() - others).abs().max()))
    bench.tell("augmentation against the CPU's", worst, "greatest difference", good=worst < 1e-5)


def nothing_waits(bench: Bench) -> None:
    """Updates and an evaluation with torch told to raise where the CPU waits for the device (CUDA only)."""
    parts = bench.fresh()
    steps = _stream(parts)
    for step in range(3):
        parts.learner.train_step(*next(steps), step, 0.001, 0.9)
    if not bench.on_gpu:
        bench.left_out.append("host synchronisation: needs CUDA")
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 3 + 2 * parts.batches.train.steps):  # over an epoch's end
            parts.learner.train_step(*next(steps), step, 0.001, 0.9)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    bench.tell("updates that wait for the device", 0, "in two epochs", good=True)


def resuming(bench: Bench) -> None:
    """Two epochs, against one epoch, saved, loaded and one more."""
    told = []
    for stopped in (False, True):
        parts, progress = bench.fresh(), TrainerState()
        evaluated = {parts.watched: getattr(parts.batches, parts.watched)}
        more = dict(epochs=2, evaluations=evaluated, seed=0)
        if stopped:
            next(fit(parts.learner, parts.batches.train, parts.schedule, progress=progress, **more))
            with tempfile.TemporaryDirectory() as folder:
                saver = CheckpointWriter(bench.device)
                state = {"learner": parts.learner.state_dict(), "progress": progress.state_dict()}
                saver.save(state, lambda state: checkpoint.save_checkpoint(Path(folder), state, {"step": 1}))
                for tensor in parts.learner.model.parameters():  # what follows must not reach the snapshot
                    tensor.data.add_(1.0)
                saver.flush()
                kept = checkpoint.load_checkpoint(Path(folder) / "last.pt")
            parts, progress = bench.fresh(), TrainerState()
            parts.learner.load_state_dict(kept["learner"])
            progress.load_state_dict(kept["progress"], bench.device)
        records = list(fit(parts.learner, parts.batches.train, parts.schedule, progress=progress, **more))
        told.append(records[-1].steps.lines["train/step_loss"])
    worst = max(abs(a - b) / max(abs(a), 1e-3) for a, b in zip(*told, strict=True))
    bench.tell("resumed run", worst, "greatest relative difference of a step's loss", good=worst < 0.05)


def graphs(bench: Bench) -> None:
    """The recorded update against the plain one, from the same weights on the same batches, and its speed."""
    if not bench.on_gpu:
        bench.left_out.append("CUDA graph: needs CUDA; its other half is tested in tests/test_graph.py")
        return
    told, speeds = [], []
    for cuda_graph in (False, True):
        parts = bench.fresh(cuda_graph=cuda_graph)
        steps = _stream(parts)
        told.append([float(parts.learner.train_step(*next(steps), step, 0.001, 0.9).loss) for step in range(20)])
        work = lambda parts=parts, steps=steps: [
            parts.learner.train_step(*next(steps), 0, 0.001, 0.9) for _ in range(50)
        ]
        took = statistics.median(measure.seconds(work, bench.device) for _ in range(5))
        speeds.append(50 * parts.config.batch_size / took)
    worst = max(abs(a - b) / max(abs(a), 1e-3) for a, b in zip(*told, strict=True))
    bench.tell("CUDA graph against plain", worst, "greatest relative difference in 20 updates", good=worst < 0.02)
    bench.tell("plain updates", speeds[0], "images/s")
    bench.tell("recorded updates", speeds[1], "images/s", f"{speeds[1] / speeds[0]:.2f} x plain")


def stages(bench: Bench) -> None:
    """Each part of a step alone, against what its arithmetic needs at the rate of the matmul."""
    parts = bench.parts
    learner, size, device = parts.learner, parts.config.batch_size, bench.device
    steps = _stream(parts)
    images, labels = next(steps)
    model = copy.deepcopy(learner.model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.001, 0.9, nesterov=True, weight_decay=5e-4, fused=True)
    full = parts.config.model == "custom_resnet" and not parts.config.model_args

    def forward() -> Tensor:
        with autocast(device, learner.precision):
            return F.cross_entropy(model(images).float(), labels)

    def both() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward().backward()

    def only_forward() -> None:
        with torch.no_grad():
            forward()

    count = 20 if bench.on_gpu else 2
    for name, work, flop in (
        ("augmentation of a batch", lambda: next(steps), 0.0),
        ("forward", only_forward, FORWARD),
        ("forward and backward", both, STEP),
        ("optimizer", optimizer.step, 0.0),
    ):
        both()
        took = statistics.median(
            measure.seconds(lambda work=work: [work() for _ in range(count)], device) / count for _ in range(3)
        )  # type: ignore[misc]
        share = flop * size / took / bench.matmul
        remark = f"{100 * share:.0f} % of the matmul rate" if flop and full else ""
        bench.tell(name, 1000 * took, "ms a batch", remark)
    tests = getattr(parts.batches, parts.watched)
    work = lambda: evaluate(learner.model, tests, device, learner.precision)  # noqa: E731
    work()
    bench.tell("evaluation", 1000 * measure.seconds(work, device), "ms", f"{tests.num_images} images")
    with tempfile.TemporaryDirectory() as folder:
        saver = CheckpointWriter(device)
        save = lambda: saver.save(
            learner.state_dict(), lambda state: checkpoint.save_checkpoint(Path(folder), state, {"step": 0})
        )
        bench.tell("checkpoint, as the loop sees it", 1000 * measure.seconds(save, device), "ms")
        bench.tell("checkpoint, until it is on the disk", 1000 * measure.seconds(saver.flush), "ms more")


def runs(recipe: str, seeds: int, **more: Any) -> Callable[[Bench], None]:
    """Whole runs as `harness run` does them, W&B offline."""

    def work(bench: Bench) -> None:
        told, count = [], 2 if bench.quick else seeds
        for seed in range(count):
            if not bench.quick and time.monotonic() > bench.ends:
                break
            with tempfile.TemporaryDirectory() as folder:
                own = {"model_args": "width=4", "epochs": 1, "batch_size": 64} if bench.quick else {}
                config = make_config(
                    {
                        **bench.settings,
                        **own,
                        **more,
                        "recipe": recipe,
                        "seed": seed,
                        "output": folder,
                        "resume": "never",
                    }
                )
                began = time.perf_counter()
                result = run.run(config, LineReporter(sys.stderr))
                told.append({**result.summary["result"], **result.summary["seconds"], "whole": time.perf_counter() - began,
                             "images/s": statistics.median(row["throughput/images_per_s"] for row in result.history)})  # fmt: skip
        name = f"{recipe}{' with a CUDA graph' if more.get('cuda_graph') else ''}, {config.epochs} epochs"
        middle = lambda key: statistics.median(row[key] for row in told)  # noqa: E731
        accuracy = [100 * row["test/acc"] for row in told]
        steps = bench.parts.batches.train.steps * config.batch_size
        floor = (config.epochs * (steps * STEP + 10_000 * FORWARD)) / bench.matmul
        full = not bench.quick and config.model == "custom_resnet" and not config.model_args
        bench.tell(f"{name}: training", middle("train"), "s", f"{middle('images/s'):,.0f} images/s")
        bench.tell(
            f"{name}: training and evaluating",
            middle("epoch"),
            "s",
            f"{middle('epoch') / floor:.2f} x the arithmetic" if full else "",
        )
        bench.tell(f"{name}: explaining", middle("explain"), "s")
        bench.tell(f"{name}: in all, data included", middle("whole"), "s")
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        bench.tell(
            f"{name}: test accuracy",
            statistics.mean(accuracy),
            "%",
            f"{len(told)} seeds, standard deviation {spread:.2f} points",
        )

    return work


def where_the_time_goes(bench: Bench) -> None:
    """The ten dearest kernels of twenty updates."""
    from torch.profiler import ProfilerActivity, profile

    parts = bench.parts
    steps = _stream(parts)
    for step in range(3):
        parts.learner.train_step(*next(steps), step, 0.001, 0.9)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    with profile(activities=kinds) as seen:
        for step in range(20 if bench.on_gpu else 2):
            parts.learner.train_step(*next(steps), step, 0.001, 0.9)
        if bench.on_gpu:
            torch.cuda.synchronize(bench.device)
    by = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
    bench.profile = seen.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=60)
    click.echo(bench.profile)


def peers(bench: Bench) -> None:
    """The loops of `throughput.py`, the same model and batches."""
    steps, repeats = (30, 5) if bench.on_gpu else (2, 1)
    only = "hand" if bench.quick else ""
    rows, left = throughput.compare(bench.parts, warm=3 if bench.on_gpu else 1, steps=steps, repeats=repeats, only=only)
    bench.left_out += left
    for row in rows:
        remark = f"ours is {row['ours is, training']:.2f} x, the epoch {row['ours is, whole epoch']:.2f} x"
        bench.tell(f"loop: {row['contender']}", row["train images/s"], "images/s", remark)


def _stream(parts: Components) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from parts.batches.train.epoch(epoch)
        epoch += 1


def _model_is_whole(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="A folder or archive of pictures. [made ones]")
@click.option("--device", default="cuda", show_default=True)
@click.option("--minutes", default=9.0, show_default=True, help="Stages that no longer fit are left out.")
@click.option("--seeds", default=5, show_default=True, help="Runs of each recipe.")
@click.option("--quick", is_flag=True, help="Everything shrunk, to see that it works.")
@click.option("--out", type=click.Path(path_type=Path), help="The JSON file. [results/gpu-DATE.json]")
def main(data_dir: Path | None, device: str, minutes: float, seeds: int, quick: bool, out: Path | None) -> None:
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = stack.enter_context(measure.pictures(512 if quick else 20_480, 128 if quick else 4096))
        settings: dict[str, Any] = {"data": "folder", "data_dir": str(data_dir)}
        if quick:
            settings |= {"model_args": "width=4", "batch_size": 64, "epochs": 2}
        bench = Bench(settings, device, quick, minutes)
        bench.tell("parameters", _model_is_whole(bench.parts.learner.model))
        bench.tell("precision", bench.parts.config.precision, remark=f"{bench.parts.batches.kind} batches")
        bench.stage("ceilings", ceilings, 5)
        bench.stage("augmentation", augmentation_is_the_cpus, 10)
        bench.stage("host synchronisation", nothing_waits, 10)
        bench.stage("CUDA graph", graphs, 20)
        bench.stage("stages", stages, 15)
        bench.stage("resuming", resuming, 20)
        bench.stage("default recipe, one seed", runs("custom-resnet", 1), 30)
        bench.stage("profile", where_the_time_goes, 20)
        bench.stage(
            "CUDA graph, default recipe", runs("custom-resnet", 1, cuda_graph=True), 30
        ) if bench.on_gpu else None
        bench.stage("peers", peers, 90)
        bench.stage("default recipe", runs("custom-resnet", seeds), 25 * seeds)
        bench.stage("dawnbench recipe", runs("dawnbench", seeds), 25 * seeds)
    for line in bench.left_out:
        click.echo(f"left out: {line}")
    more = {"left_out": bench.left_out, "profile": bench.profile.splitlines()}
    measure.keep("gpu", bench.device, bench.rows, out, **more)
    sys.exit(1 if any(row["right"] == "NO" for row in bench.rows) else 0)


if __name__ == "__main__":
    main()
