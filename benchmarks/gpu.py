"""Check one GPU for correct results and measure its speed, in under ten minutes and without a network.

    python benchmarks/gpu.py --data-dir cifar10.tar.xz          # images as train/CLASS/*.jpg and test/CLASS/*.jpg
    python benchmarks/gpu.py --device cpu --quick               # the same stages on a CPU, shrunk: what CI runs

Stages, the most important first: measured peak rates; whether augmentation, CUDA graph and resuming give the right numbers and
whether an epoch waits for the device; each part of an update against the peak rates; the whole command from start to exit,
with and without a CUDA graph; a profile; other ways to run the same update; other libraries in turns; accuracy and time of
several seeds. A stage that does not fit into --minutes is skipped and listed. The JSON file is rewritten after every stage.
Works with torch 2.10 and newer.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import statistics
import subprocess
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
import timeline
import torch
from torch import Tensor
from torch.nn import functional as F

import harness.runs.components
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.loaders import make_loaders
from harness.runs.components import Components, build_components
from harness.training import checkpoint
from harness.training.checkpoint import CheckpointWriter
from harness.training.cuda_graph import GraphedStep
from harness.training.device import autocast
from harness.training.loop import StepInfo, TrainerState, evaluate_batches, fit

# FLOP per image of the custom ResNet at 32 x 32, two per multiply-add, convolutions and the last layer.
FORWARD, UPDATE = 758.524e6, 2272.033e6
# Kernel names -> what they belong to, the first that matches.
KERNELS = {
    "pooling": r"pool|adaptivemax",
    "batch normalisation": r"batch_norm|bn_|_(sum|statistics|normalise|gradient|total)_kernel",
    "convolution and matrix product": r"cudnn|cutlass|xmma|gemm|conv|wgrad|dgrad|nvjet|sm\d\d_",
    "optimizer and moving average": r"multi_tensor|fused|lerp",
    "augmentation: gather and flip": r"index|flip|gather",
    "copies and casts": r"copy|Memcpy|Memset|cast",
    "elementwise": r"elementwise|vectorized",
    "reductions, softmax and loss": r"reduce|softmax|nll",
}


class Bench:
    """The measurements of one device, and how much time is left.

    Attributes:
        data_dir: where a command that runs in a process of its own reads the images.
        curves: recipe -> figures of every epoch, a list for each seed.
    """

    def __init__(self, settings: dict[str, Any], device: str, quick: bool, minutes: float, out: Path | None) -> None:
        self.ends = time.monotonic() + 60 * minutes
        self.peers = ""
        self.settings, self.quick, self.out = {**settings, "device": device, "wandb": "offline"}, quick, out
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.profile: list[str] = []
        self.curves: dict[str, Any] = {}
        self.timelines: dict[str, Any] = {}
        self.stage_seconds: dict[str, float] = {}
        self.components = build_components(self.config())
        dataset, load_dataset = self.components.dataset, harness.runs.components.load_dataset
        # Decode the images once: most stages build the same components again.
        harness.runs.components.load_dataset = lambda config: load_dataset(config) if config.val_fraction else dataset
        self.device = self.components.learner.device
        self.on_gpu = self.device.type == "cuda"
        self.matmul = self.copy = float("nan")

    def config(self, **more: Any) -> Config:
        """Return the settings of this benchmark with some changed."""
        return make_config({**self.settings, **more})

    def fresh(self, **more: Any) -> Components:
        """Return the components of a new run, with some settings changed."""
        return build_components(self.config(**more))

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def add(self, what: str, value: Any, unit: str = "", remark: str = "", good: bool | None = None) -> None:
        """Add a row and print it."""
        right = {True: "yes", False: "NO", None: ""}[good]
        self.rows.append({"what": what, "value": value, "unit": unit, "remark": remark, "right": right})
        click.echo(measure.table(self.rows[-1:]).splitlines()[-1], err=True)

    def stage(self, name: str, work: Callable[[Bench], None], seconds: float) -> None:
        """Run a stage if its usual time is left; a stage that fails becomes a row, and the next one runs."""
        if not self.quick and self.left < seconds:
            self.left_out.append(f"{name}: no time left")
            return
        started_at = time.monotonic()
        try:
            work(self)
        except Exception as error:
            traceback.print_exc()
            self.add(name, "failed", remark=f"{type(error).__name__}: {str(error)[:300]}", good=False)
        self.stage_seconds[name] = round(time.monotonic() - started_at, 2)
        click.echo(f"--- {name}: {self.stage_seconds[name]} s, {self.left:.0f} s left", err=True)
        if self.out is not None:
            self.out.write_text(json.dumps({"partial": True, "rows": self.rows, **self.more()}, indent=1))

    def more(self) -> dict[str, Any]:
        """Return what the JSON file holds beside the rows."""
        return {
            "left_out": self.left_out,
            "stage_seconds": self.stage_seconds,
            "curves": self.curves,
            "timelines": self.timelines,
            "profile": self.profile,
        }

    def minimum(self, epochs: int) -> float:
        """Return the theoretical minimum of so many epochs with evaluations in seconds: FLOPs at the measured matmul rate."""
        train, test = self.components.loaders.train, len(self.components.dataset.test or ())
        return epochs * (train.steps * self.components.config.batch_size * UPDATE + test * FORWARD) / self.matmul

    def is_full(self, config: Config) -> bool:
        """Return whether the FLOP counts above are those of this network."""
        return config.model == "custom_resnet" and "width" not in config.model_args


def ceilings(bench: Bench) -> None:
    """Measure what the device can do at best: bf16 products of large matrices, and copies in its memory."""
    side, size = (8192, 2**30) if bench.on_gpu else (512, 2**24)
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any]) -> float:
        return min(measure.seconds(lambda: [work() for _ in range(5)], bench.device) / 5 for _ in range(4))

    bench.matmul = 2 * side**3 / best(lambda: a @ b)
    bench.copy = 2 * size / best(lambda: target.copy_(source))
    bench.add(f"matmul {side} bf16", bench.matmul / 1e12, "TFLOP/s")
    bench.add("copy, read and write", bench.copy / 1e9, "GB/s")


def check_augmentation(bench: Bench) -> None:
    """Compare the augmented batches of the device with those of the CPU: crops, flips and cutouts, pixels up to rounding."""
    config, components = bench.config(loader="resident"), bench.components
    on_device, on_cpu = (
        make_loaders(config, components.dataset, components.preprocess, device).train
        for device in (bench.device, "cpu")
    )
    worst = 0.0
    for (images, labels), (expected, classes), _ in zip(on_device.epoch(1), on_cpu.epoch(1), range(3), strict=False):
        assert torch.equal(labels.cpu(), classes)
        worst = max(worst, float((images.cpu() - expected).abs().max()))
    bench.add("augmentation against the CPU's", worst, "greatest difference", good=worst < 1e-5)


def check_waits(bench: Bench) -> None:
    """Run two epochs of updates while torch raises wherever the CPU waits for the device (CUDA only)."""
    if not bench.on_gpu:
        bench.left_out.append("host synchronisation: needs CUDA")
        return
    for name, settings in (
        ("plain", {"cuda_graph": False, "fused": False}),
        ("default", {}),
        ("moving average and clipping", {"ema": 0.99, "clip_grad": 1.0}),
        ("mixup", {"mixup": 0.2}),
        ("focal loss with class weights", {"loss": "focal", "class_weights": "balanced"}),
        ("erasing", {"erasing": 0.5}),
    ):
        parts = bench.fresh(**settings)
        steps = _stream(parts)
        for step in range(6):
            parts.learner.train_step(*next(steps), step, 0.001, 0.9)
        torch.cuda.set_sync_debug_mode("error")
        where = ""
        try:
            for step in range(6, 6 + 2 * parts.loaders.train.steps):  # over the end of an epoch
                parts.learner.train_step(*next(steps), step, 0.001, 0.9)
        except RuntimeError as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "harness" in frame.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        bench.add(f"updates wait for the device, {name}", "yes" if where else "no", remark=where, good=not where)
    _check_waits_of_live_steps(bench)


def _check_waits_of_live_steps(bench: Bench) -> None:
    """Train three epochs whose steps are read while they are computed, and raise where that waits for the device."""
    parts = bench.fresh()

    def forbid_waiting(info: StepInfo) -> None:  # not in the warm-up and the capture, nor at the end of an epoch
        torch.cuda.set_sync_debug_mode("error" if 8 <= info.batch < info.batches else "default")

    where, records = "", []
    try:
        training = dict(epochs=3, on_step=forbid_waiting, live_seconds=0.0)
        records = list(fit(parts.learner, parts.loaders.train, parts.schedule, **training))  # type: ignore[arg-type]
    except RuntimeError as error:
        where = str(error)[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    live = [step for record in records if record.kind == "steps" for step in record.steps.x]
    whole = [step for record in records if record.kind == "epoch" for step in list(record.steps.x)[:-1]]
    bench.add("steps read during an epoch wait for the device", "yes" if where else "no", remark=where, good=not where)
    bench.add("steps read during an epoch", len(live), "steps", f"of {len(whole)}, in order", good=live == whole)


def check_fused(bench: Bench) -> None:
    """Compare the gradients of the fused training pass and of torch's with those of float64, in the run's precision."""
    if not bench.on_gpu:
        bench.left_out.append("fused kernels: need CUDA; tests/models/test_fused.py has Triton interpret them")
        return
    from harness.models.fused import FusedForward

    for name, args in (("custom-resnet", {}), ("dawnbench", {"order": "conv-bn-relu-pool", "logit_scale": 0.125})):
        parts = bench.fresh(model_args=args, cuda_graph=False, fused=False)
        images, labels = next(_stream(parts))
        errors, exact = {}, copy.deepcopy(parts.learner.model).double()
        F.cross_entropy(exact(images.double()), labels).backward()
        for kernels in ("torch", "fused"):
            model = copy.deepcopy(parts.learner.model).train()
            with autocast(bench.device, parts.learner.precision):
                logits = (FusedForward(model) if kernels == "fused" else model)(images)  # type: ignore[arg-type]
            F.cross_entropy(logits.float(), labels).backward()
            pairs = list(zip(model.parameters(), exact.parameters(), strict=True))
            wrong = sum(float((a.grad - b.grad).square().sum()) for a, b in pairs)  # type: ignore[operator,union-attr]
            errors[kernels] = (wrong / sum(float(b.grad.square().sum()) for _, b in pairs)) ** 0.5  # type: ignore[union-attr]
        remark = f"torch's kernels {errors['torch']:.3g}"
        good = errors["fused"] < 1.2 * errors["torch"]
        bench.add(f"fused kernels, {name}", errors["fused"], "relative error of the gradient", remark, good=good)


def check_resuming(bench: Bench) -> None:
    """Compare two epochs with one epoch that is saved, loaded and followed by another."""
    losses = []
    for stopped in (False, True):
        parts, state = bench.fresh(), TrainerState()
        evaluated = {parts.eval_split: getattr(parts.loaders, parts.eval_split)}
        more = dict(epochs=2, evaluations=evaluated, seed=0)
        if stopped:
            next(fit(parts.learner, parts.loaders.train, parts.schedule, state=state, **more))
            with tempfile.TemporaryDirectory() as folder:
                writer = CheckpointWriter(bench.device)
                whole = {"learner": parts.learner.state_dict(), "progress": state.state_dict()}
                writer.save(whole, lambda whole: checkpoint.save_checkpoint(Path(folder), whole, {"step": 1}))
                for tensor in parts.learner.model.parameters():  # later changes must not reach the snapshot
                    tensor.data.add_(1.0)
                writer.flush()
                stored = checkpoint.load_checkpoint(Path(folder) / "last.pt")
            parts, state = bench.fresh(), TrainerState()
            parts.learner.load_state_dict(stored["learner"])
            state.load_state_dict(stored["progress"], bench.device)
        records = list(fit(parts.learner, parts.loaders.train, parts.schedule, state=state, **more))
        losses.append(records[-1].steps.lines["train/step_loss"])
    worst = max(abs(a - b) / max(abs(a), 1e-3) for a, b in zip(*losses, strict=True))
    bench.add("resumed run", worst, "greatest relative difference of a step's loss", good=worst < 0.05)


def check_graph(bench: Bench) -> None:
    """Compare the captured update with the plain one from the same weights on the same batches, and time both."""
    if not bench.on_gpu:
        bench.left_out.append(
            "CUDA graph: needs CUDA; all but the capture is tested in tests/training/test_cuda_graph.py"
        )
        return
    speeds = []
    size, floor = bench.components.config.batch_size, 1000 * bench.components.config.batch_size * UPDATE / bench.matmul
    all_parts, worst = _plain_and_captured(bench)
    for cuda_graph, parts in zip((False, True), all_parts, strict=True):
        steps = _stream(parts)
        host, whole = _host_and_whole(
            lambda parts=parts, steps=steps: parts.learner.train_step(*next(steps), 0, 0.001, 0.9), bench
        )
        speeds.append(size / whole)
        name = "captured" if cuda_graph else "plain"
        remark = f"{1000 * host:.2f} ms of the CPU to launch it; {1000 * whole / floor:.2f} x the theoretical minimum"
        bench.add(f"{name} update with its batch", 1000 * whole, "ms", remark)
        if cuda_graph:
            assert parts.learner.graph is not None
            _, alone = _host_and_whole(parts.learner.graph.replay, bench)
            bench.add("replay alone", 1000 * alone, "ms", f"{1000 * alone / floor:.2f} x the theoretical minimum")
    bench.add("CUDA graph against plain", worst, "greatest relative difference in 20 updates", good=worst < 0.02)
    bench.add("plain updates", speeds[0], "images/s")
    bench.add("captured updates", speeds[1], "images/s", f"{speeds[1] / speeds[0]:.2f} x plain")


def _plain_and_captured(bench: Bench, **settings: Any) -> tuple[list[Components], float]:
    """Train 20 updates plainly and captured, with the same kernels; return both runs and the greatest relative difference."""
    both, losses = [], []
    for cuda_graph in (False, True):
        parts = bench.fresh(cuda_graph=cuda_graph, **settings)
        steps = _stream(parts)
        losses.append([float(parts.learner.train_step(*next(steps), step, 0.001, 0.9).loss) for step in range(20)])
        both.append(parts)
    return both, max(abs(a - b) / max(abs(a), 1e-3) for a, b in zip(*losses, strict=True))


def check_losses(bench: Bench) -> None:
    """Compare the captured update with the plain one for every loss, with class weights and with soft labels."""
    if not bench.on_gpu:
        bench.left_out.append("losses in a CUDA graph: need CUDA; tests/training/test_losses.py has their values")
        return
    variants: dict[str, dict[str, Any]] = {
        "bce": {"loss": "bce"},
        "bce of all classes, threshold, mixup": {
            "loss": "bce",
            "loss_args": {"sum_classes": True, "target_threshold": 0.2},
            "mixup": 0.2,
        },
        "focal": {"loss": "focal", "loss_args": {"gamma": 3.0}},
        "class weights": {"class_weights": ",".join(str(1 + label % 3) for label in range(10)), "label_smoothing": 0.1},
        "focal, class weights, mixup": {"loss": "focal", "class_weights": "balanced", "mixup": 0.2},
    }
    for name, settings in variants.items():
        both, worst = _plain_and_captured(bench, **settings)
        remark = "captured" if both[1].learner.graph is not None else "NOT captured"
        good = worst < 0.02 and both[1].learner.graph is not None
        bench.add(
            f"loss {name}", worst, "greatest relative difference in 20 updates, captured against plain", remark, good
        )


def check_erasing(bench: Bench) -> None:
    """Check random erasing on the device: drawn again alike, no other generator moved, as large an area as is asked for."""
    for mode in ("const", "rand", "pixel"):
        settings = dict(erasing=1.0, erasing_mode=mode, erasing_area=(0.2, 0.25), cutout=0, loader="resident")
        first, second = (bench.fresh(**settings).loaders.train for _ in range(2))
        plain = bench.fresh(cutout=0, loader="resident").loaders.train
        before = torch.cuda.get_rng_state(bench.device) if bench.on_gpu else torch.get_rng_state()
        same, erased = True, []
        for (images, _), (again, _), (whole, _), _ in zip(
            first.epoch(1), second.epoch(1), plain.epoch(1), range(3), strict=False
        ):
            same = same and torch.equal(images, again)
            erased.append(float((images != whole).any(dim=1).float().mean()))
        after = torch.cuda.get_rng_state(bench.device) if bench.on_gpu else torch.get_rng_state()
        area, kept = statistics.fmean(erased), torch.equal(before, after)
        remark = f"drawn again alike: {same}; the global generator is as before: {kept}"
        bench.add(
            f"erasing, {mode}",
            area,
            "of the area of an image (0.20 to 0.25)",
            remark,
            same and kept and 0.18 < area < 0.26,
        )


def _host_and_whole(work: Callable[[], Any], bench: Bench, count: int = 50) -> tuple[float, float]:
    """Return the seconds of one call until the CPU is free, and until the device is done: medians of five rounds."""
    hosts, wholes = [], []
    for _ in range(5):
        torch.cuda.synchronize(bench.device)
        started_at = time.perf_counter()
        for _ in range(count):
            work()
        hosts.append((time.perf_counter() - started_at) / count)
        torch.cuda.synchronize(bench.device)
        wholes.append((time.perf_counter() - started_at) / count)
    return statistics.median(hosts), statistics.median(wholes)


def time_parts(bench: Bench) -> None:
    """Time each part of an update alone, relative to its FLOPs at the matmul rate."""
    parts = bench.components
    learner, size, device = parts.learner, parts.config.batch_size, bench.device
    steps = _stream(parts)
    images, labels = next(steps)
    model = copy.deepcopy(learner.model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.001, 0.9, nesterov=True, weight_decay=5e-4, fused=True)

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
        ("forward and backward", both, UPDATE),
        ("optimizer", optimizer.step, 0.0),
    ):
        both()
        took = statistics.median(
            measure.seconds(lambda work=work: [work() for _ in range(count)], device) / count for _ in range(3)
        )  # type: ignore[misc]
        share = flop * size / took / bench.matmul
        remark = f"{100 * share:.0f} % of the matmul rate" if flop and bench.is_full(parts.config) else ""
        bench.add(name, 1000 * took, "ms a batch", remark)
    tests = getattr(parts.loaders, parts.eval_split)

    def score() -> None:
        evaluate_batches(learner.model, tests, device, learner.precision)

    score()
    took = statistics.median(measure.seconds(score, device) for _ in range(5 if bench.on_gpu else 1))
    least = 1000 * tests.num_images * FORWARD / bench.matmul
    remark = f"{tests.num_images} images" + (
        f", {1000 * took / least:.2f} x the theoretical minimum" if bench.on_gpu else ""
    )
    bench.add("evaluation", 1000 * took, "ms", remark)
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(device)

        def save() -> None:
            writer.save(
                learner.state_dict(), lambda state: checkpoint.save_checkpoint(Path(folder), state, {"step": 0})
            )

        save()
        writer.flush()
        bench.add("checkpoint, as the loop sees it", 1000 * measure.seconds(save, device), "ms")
        bench.add("checkpoint, until it is on the disk", 1000 * measure.seconds(writer.flush), "ms more")


def whole_command(name: str, *options: str) -> Callable[[Bench], None]:
    """Return a stage that times `harness run` from start to exit in a process of its own, W&B offline."""

    def work(bench: Bench) -> None:
        shrunk = {"epochs": 1, "batch_size": 64, "model_args": "width=4"} if bench.quick else {"epochs": 24}
        settings = {**bench.settings, **shrunk, "resume": "never"}
        with tempfile.TemporaryDirectory() as folder:
            words = [f"--{key.replace('_', '-')}={value}" for key, value in (settings | {"output": folder}).items()]
            result = timeline.timeline(["run", *words, *options])
        bench.timelines[name] = result
        click.echo(measure.table(timeline.rows_of(result)), err=True)
        click.echo("\n".join(result["output"][-4:]), err=True)
        spans, stages = result["spans"], result["stages"]

        def total(span: str) -> float:
            return float(spans.get(span, {}).get("total", 0.0))

        training = total("training and evaluation")
        rows = {
            "start and imports": sum(took for stage, took in stages.items() if "import" in stage or "start" in stage),
            "data and components": total("components, data included"),
            "training and evaluation": training,
            "explaining": total("explaining"),
            "page": total("page"),
            "W&B finish": total("W&B finish"),
            "exit": stages["exit"],
            "start to exit": result["whole"],
        }
        for row, took in rows.items():
            is_training = row == "training and evaluation" and not bench.quick
            remark = f"{took / bench.minimum(24):.2f} x the theoretical minimum" if is_training else ""
            bench.add(f"{name}: {row}", took, "s", remark)
        for row in ("tracker records", "checkpoint, as the loop sees it"):
            took = result["within"].get(f"end of an epoch > {row}", 0.0)
            bench.add(f"{name}: {row}, every epoch's", 100 * took / max(training, 1e-9), "% of training and evaluation")

    return work


def profiled(bench: Bench) -> None:
    """Profile twenty plain updates: device time by kind of kernel and by kernel."""
    from torch.profiler import ProfilerActivity, profile

    count = 20 if bench.on_gpu else 2
    parts = bench.fresh(cuda_graph=False)  # a replay's kernels have no names of their own
    steps = _stream(parts)
    for step in range(5):
        parts.learner.train_step(*next(steps), step, 0.001, 0.9)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    with profile(activities=kinds) as seen:
        for step in range(count):
            parts.learner.train_step(*next(steps), step, 0.001, 0.9)
        if bench.on_gpu:
            torch.cuda.synchronize(bench.device)
    by = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
    events = seen.key_averages()
    if bench.on_gpu:
        kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
        groups: dict[str, float] = {}
        for event in kernels:
            group = next((name for name, sign in KERNELS.items() if re.search(sign, event.key)), "other")
            groups[group] = groups.get(group, 0.0) + event.self_device_time_total / count / 1000
        whole = sum(groups.values())
        bench.add("device time of an update", whole, "ms", f"{sum(e.count for e in kernels) / count:.0f} kernels")
        for name, took in sorted(groups.items(), key=lambda pair: -pair[1]):
            bench.add(f"of which {name}", took, "ms", f"{100 * took / whole:.0f} %")
        for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:40]:
            took = event.self_device_time_total / count
            bench.profile.append(f"{took:9.1f} us  {event.count / count:5.1f} calls  {event.key[:150]}")
    else:
        bench.profile = events.table(sort_by=by, row_limit=12, max_name_column_width=60).splitlines()
    click.echo("\n".join(bench.profile[:30]), err=True)


def variants(compiled: bool) -> Callable[[Bench], None]:
    """Return a stage that times other ways to run the same captured update."""

    def work(bench: Bench) -> None:
        if not bench.on_gpu:
            if not compiled:
                bench.left_out.append("variants of the update: need CUDA")
            return
        names = [
            "torch's kernels",
            "fused kernels",
            "fused kernels, every cuDNN algorithm tried",
            "fused kernels, fp16",
        ]
        for name in ["torch.compile"] if compiled else names:
            parts = bench.fresh(cuda_graph=False, fused=None if "fused" in name else False)
            learner = parts.learner
            limit, torch.backends.cudnn.benchmark_limit = torch.backends.cudnn.benchmark_limit, 10
            if "every cuDNN" in name:
                torch.backends.cudnn.benchmark_limit = 0
            if "fp16" in name:
                learner.precision = torch.float16
            if name == "torch.compile":
                learner.forward = torch.compile(learner.model)
            learner.graph = GraphedStep(learner.update, learner.optimizer, bench.device)
            steps = _stream(parts)

            def start(learner: Any = learner, steps: Any = steps) -> None:
                for step in range(6):
                    learner.train_step(*next(steps), step, 0.001, 0.9)

            started = measure.seconds(start, bench.device)
            _, took = _host_and_whole(learner.graph.replay, bench)
            torch.backends.cudnn.benchmark_limit = limit
            bench.add(f"replay, {name}", 1000 * took, "ms", f"first six updates {started:.1f} s")

    return work


def peers(bench: Bench) -> None:
    """Run the loops of `throughput.py`: the same model and batches in other libraries, in turns."""
    steps, repeats = (20, 2) if bench.on_gpu else (2, 1)
    only = "reference" if bench.quick else bench.peers
    rows, left = throughput.compare(
        bench.components, warm=4 if bench.on_gpu else 1, steps=steps, repeats=repeats, only=only
    )
    bench.left_out += left
    for row in rows:
        remark = f"ours is {row['ours is, training']:.2f} x, the epoch {row['ours is, whole epoch']:.2f} x"
        bench.add(f"loop: {row['contender']}", row["train images/s"], "images/s", remark)


def seeds(count: int, *recipes: str) -> Callable[[Bench], None]:
    """Return a stage that trains recipes over several seeds, in turns, with the figures of every epoch."""

    def work(bench: Bench) -> None:
        longest = 0.0
        for seed, recipe in ((seed, recipe) for seed in range(count) for recipe in recipes):
            if not bench.quick and bench.left < 1.1 * longest:
                bench.left_out.append(f"{recipe}, seed {seed}: no time left")
                continue
            started_at = time.monotonic()
            shrunk = {"model_args": "width=4", "epochs": 1, "batch_size": 64} if bench.quick else {}
            settings = {key: value for key, value in bench.settings.items() if key not in ("model_args", "epochs")}
            config = make_config({**settings, **shrunk, "recipe": recipe, "seed": seed})
            parts = build_components(config)
            evaluated = {parts.eval_split: getattr(parts.loaders, parts.eval_split)}
            records = list(
                fit(
                    parts.learner,
                    parts.loaders.train,
                    parts.schedule,
                    epochs=config.epochs,
                    evaluations=evaluated,
                    seed=seed,
                )
            )
            curves = bench.curves.setdefault(recipe, {"epochs": config.epochs, "seeds": []})
            curves["seeds"].append(seed)
            for key in (
                "train/loss",
                "train/acc",
                "test/loss",
                "test/acc",
                "time/train_s",
                "time/eval_s",
                "time/epoch_s",
            ):
                curves.setdefault(key, []).append([round(float(record.values[key]), 5) for record in records])
            longest = max(longest, time.monotonic() - started_at)
            click.echo(f"{recipe}, seed {seed}: {100 * curves['test/acc'][-1][-1]:.2f} %", err=True)
        for recipe, curves in bench.curves.items():
            _add_seeds(bench, recipe, curves)

    return work


def _add_seeds(bench: Bench, recipe: str, curves: dict[str, Any]) -> None:
    """Add the rows of one recipe's seeds."""
    columns = [[100 * value for value in column] for column in zip(*curves["test/acc"], strict=True)]
    curves["mean test accuracy, %"] = [round(statistics.mean(column), 2) for column in columns]
    last, count, name = columns[-1], len(curves["seeds"]), f"{recipe}, {curves['epochs']} epochs"
    spread = statistics.stdev(last) if count > 1 else 0.0
    bench.add(
        f"{name}: test accuracy", statistics.mean(last), "%", f"{count} seeds, standard deviation {spread:.2f} points"
    )
    whole = statistics.median(sum(row) for row in curves["time/epoch_s"])
    trained = statistics.median(sum(row) for row in curves["time/train_s"])
    ratio = f"{whole / bench.minimum(curves['epochs']):.2f} x the theoretical minimum" if not bench.quick else ""
    bench.add(f"{name}: training", trained, "s")
    bench.add(f"{name}: training and evaluation", whole, "s", ratio)


def _stream(parts: Components) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from parts.loaders.train.epoch(epoch)
        epoch += 1


def _card() -> str:
    """Return the clocks, power and temperature of the card; empty without nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=name,clocks.sm,clocks.mem,power.draw,temperature.gpu", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="A folder or archive of images. [generated ones]")
@click.option("--device", default="cuda", show_default=True)
@click.option("--minutes", default=9.0, show_default=True, help="Stages that do not fit are skipped.")
@click.option("--seeds", "count", default=5, show_default=True, help="Seeds of each recipe.")
@click.option("--only", default="", help="Words of the names of other libraries' loops to run. [all]")
@click.option("--skip", default="", help="Names of stages to skip, separated by semicolons.")
@click.option("--stages", default="", help="Names of the only stages to run, separated by semicolons. [all]")
@click.option("--quick", is_flag=True, help="Everything shrunk, to see that it works.")
@click.option("--out", type=click.Path(path_type=Path), help="The JSON file. [results/gpu-DATE.json]")
def main(
    data_dir: Path | None,
    device: str,
    minutes: float,
    count: int,
    only: str,
    skip: str,
    stages: str,
    quick: bool,
    out: Path | None,
) -> None:
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = stack.enter_context(measure.pictures(512 if quick else 20_480, 128 if quick else 4096))
        settings: dict[str, Any] = {"recipe": "custom-resnet", "data": "folder", "data_dir": str(data_dir.resolve())}
        if quick:
            settings |= {"model_args": "width=4", "batch_size": 64, "epochs": 2}
        started_at = time.monotonic()
        bench = Bench(settings, device, quick, minutes, out)
        bench.peers = only
        bench.add("components, first time", time.monotonic() - started_at, "s")
        bench.add("parameters", sum(parameter.numel() for parameter in bench.components.learner.model.parameters()))
        bench.add("precision", bench.components.config.precision, remark=f"{bench.components.loaders.kind} batches")
        plan: list[tuple[str, Callable[[Bench], None], float]] = [
            ("ceilings", ceilings, 5),
            ("augmentation", check_augmentation, 10),
            ("host synchronisation", check_waits, 10),
            ("CUDA graph", check_graph, 15),
            ("losses", check_losses, 20),
            ("erasing", check_erasing, 10),
            ("fused kernels", check_fused, 10),
            ("parts of an update", time_parts, 15),
            ("resuming", check_resuming, 20),
        ]
        if bench.on_gpu:
            plain = whole_command("custom-resnet, plain", "--cuda-graph=False", "--fused=False")
            plan.append(("whole command, plain", plain, 60))
        plan.append(("whole command", whole_command("custom-resnet"), 45))
        plan += [
            ("profile", profiled, 10),
            ("variants", variants(compiled=False), 20),
            ("peers", peers, 15 if only else 60),
            ("seeds", seeds(2 if quick else count, "custom-resnet", "dawnbench"), 15),
            ("torch.compile", variants(compiled=True), 60),
        ]
        for name, work, seconds in plan:
            if stages and name not in stages.split(";"):
                continue
            if name in skip.split(";"):
                bench.left_out.append(f"{name}: skipped by --skip")
            else:
                bench.stage(name, work, seconds)
    for line in bench.left_out:
        click.echo(f"left out: {line}")
    if card := _card():
        bench.add("card, at the end", card)
    measure.keep("gpu", bench.device, bench.rows, out, **bench.more())
    sys.exit(1 if any(row["right"] == "NO" for row in bench.rows) else 0)


if __name__ == "__main__":
    main()
