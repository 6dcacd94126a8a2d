"""Compare the recipe `auto` with a random search on five small sets of real images: is it within a point of the best trial?

    python benchmarks/auto_recipe.py --data-dir cifar.tar.xz --minutes 8          on a GPU; --minutes limits the search
    python benchmarks/auto_recipe.py --data-dir cifar --sets digits-28 --width 16 --trials 10    a part of it on a CPU

Sets: 800, 5,000 and 20,000 training images of CIFAR-10 (JPEG copy, class folders), an unbalanced one of about 5,000 whose
largest class is 20 times the smallest, and scikit-learn's digits at 28 x 28 pixels (1,438 for training).

Both sides train the same network. The search draws, at random: `lr_max` (log-uniform, 0.01 to 2), `batch_size` (powers of two, up to
four times as many or as few as `auto` has, 16 to 512), `weight_decay` (log-uniform, 1e-5 to 1e-2), `epochs` (a half to one and a half
times those of `auto`), `label_smoothing` (0, 0.1, 0.2), `crop_padding`, `flip` and `cutout`. It has no
RandAugment, which `auto` gives small sets, unless `--option auto_augment=NAME` gives it to both. Each trial trains on 80 % of the set
and is scored on the other 20 %. The trial with the highest validation accuracy is then trained on the whole set. `auto` is trained on the
whole set at once. Both are scored on the test split, which neither has seen, as means over --seeds.

With --log FILE every result is kept, and the same command goes on where it was stopped. Begin a new file when the rules of `auto` change.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import click
import compare_settings
import measure
import numpy as np
import torch
from PIL import Image

from harness.config.augmentation import NO_POLICY
from harness.config.automatic import choose_settings, with_choices
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data.dataset import Dataset, Split, channel_statistics, fingerprint, hold_out, in_memory
from harness.data.registry import load_dataset, read_digits_table
from harness.runs.automatic import data_facts
from harness.training.device import pick_device
from harness.utils.errors import HarnessError
from harness.utils.stats import chance_probability

SETS = ("cifar-800", "cifar-5000", "cifar-20000", "cifar-unbalanced", "digits-28")
LARGEST_CLASS, IMBALANCE = (
    1250,
    20,
)  # images of the largest class of the unbalanced set, and how much smaller the smallest is
VAL_FRACTION = 0.2
WITHIN = 1.0  # percentage points
Task: TypeAlias = tuple[str, bool, dict[str, Any], float]  # set, whether of the search, settings, latest start (0: any)
_loaded: dict[str, Dataset] = {}


def arrays_of(data_dir: str, names: Sequence[str], quick: bool) -> dict[str, np.ndarray]:
    """Return pixels and labels of the training and test splits of CIFAR and of the digits, those that the sets need."""
    arrays: dict[str, np.ndarray] = {}
    if any(name.startswith("cifar") for name in names):
        data = load_dataset(make_config({"recipe": "custom-resnet", "data": "folder", "data_dir": data_dir}))
        for split in (data.train, data.test):
            assert split is not None and split.pixels is not None
            arrays |= {f"cifar {split.name} pixels": split.pixels, f"cifar {split.name} labels": split.labels}
        arrays["cifar classes"] = np.array(data.classes)
    if "digits-28" in names:
        values, labels = read_digits_table()
        small = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        if quick:
            small, labels = small[:300], labels[:300]
        large = [np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC)) for image in small]
        whole = in_memory(
            "train", np.repeat(np.stack(large)[..., None], 3, axis=3), labels, [str(n) for n in range(len(labels))]
        )
        for split in hold_out(whole, 0.2, "test", "test_fraction"):
            assert split.pixels is not None
            arrays |= {f"digits {split.name} pixels": split.pixels, f"digits {split.name} labels": split.labels}
        arrays["digits classes"] = np.array([str(digit) for digit in range(10)])
    return arrays


def subset_of(name: str, labels: np.ndarray) -> np.ndarray:
    """Return the sorted indices of the training images of a set: the same ones every time."""
    _, _, size = name.partition("-")
    kind = name.partition("-")[0]
    if kind == "digits":
        return np.arange(len(labels))
    random, classes = np.random.RandomState(20261127), np.unique(labels)
    if size == "unbalanced":
        wanted = [round(LARGEST_CLASS * IMBALANCE ** (-place / (len(classes) - 1))) for place in range(len(classes))]
    else:
        wanted = [int(size) // len(classes)] * len(classes)
    return np.sort(
        np.concatenate(
            [
                random.permutation(np.flatnonzero(labels == label))[:count]
                for label, count in zip(classes, wanted, strict=True)
            ]
        )
    )


def dataset_of(name: str, arrays: Mapping[str, np.ndarray], is_search: bool) -> Dataset:
    """Return a set with its test split; for the search, with a validation split in its place."""
    kind = name.partition("-")[0]

    def split(part: Any, indices: np.ndarray | slice) -> Split:
        pixels, labels = arrays[f"{kind} {part} pixels"][indices], arrays[f"{kind} {part} labels"][indices]
        return in_memory(part, pixels, labels, [f"{part}/{number}" for number in range(len(labels))])

    train = split("train", subset_of(name, arrays[f"{kind} train labels"]))
    val, test = None, split("test", slice(None))
    if is_search:
        train, val = hold_out(train, VAL_FRACTION, "val", "val_fraction")
    classes = tuple(arrays[f"{kind} classes"].tolist())
    mean, std = channel_statistics(train)
    splits = (train, val, None if is_search else test)
    return Dataset("folder", classes, *splits, mean, std, fingerprint(classes, splits))


def settle(options: Mapping[str, Any], dataset: Dataset) -> Config:
    """Return the settings of the recipe `auto` with some options, chosen for a data set."""
    config = make_config({"wandb": "disabled", "data": "folder", **options, "recipe": "auto"})
    return with_choices(config, choose_settings(config, data_facts(config, dataset)))


def draw(random: np.random.RandomState, auto: Config, images: int) -> dict[str, Any]:
    """Return the settings of one trial of the search."""
    size = auto.image_size
    batches = [
        size for size in (16, 32, 64, 128, 256, 512) if 1 / 4 <= size / auto.batch_size <= 4 and size <= images // 4
    ]
    return {
        "lr_max": float(f"{10 ** random.uniform(-2, np.log10(2)):.3g}"),
        "batch_size": int(random.choice(batches)),
        "weight_decay": float(f"{10 ** random.uniform(-5, -2):.3g}"),
        "epochs": max(1, round(auto.epochs * random.uniform(0.5, 1.5))),
        "label_smoothing": float(random.choice([0.0, 0.1, 0.2])),
        "crop_padding": int(random.choice([0, size // 16, size // 8])),
        "flip": bool(random.randint(2)),
        "cutout": int(random.choice([0, size // 4, size // 2])),
    }


def load_arrays(path: str, threads: int) -> None:
    """Read the images in a worker process."""
    torch.set_num_threads(threads)
    with np.load(path) as stored:
        _arrays.update({key: stored[key] for key in stored.files})


_arrays: dict[str, np.ndarray] = {}


def work(task: Task) -> dict[str, Any] | None:
    """Train one run; return its accuracy on the validation split of a search, else on the test split; None after its time."""
    name, is_search, options, ends = task
    if ends and time.time() > ends:
        return None
    key = f"{name} {is_search}"
    if key not in _loaded:
        _loaded[key] = dataset_of(name, _arrays, is_search)
    dataset = _loaded[key]
    began = time.monotonic()
    try:
        result = compare_settings.train(settle(options, dataset), dataset)
        acc, remark = result["acc"], ""
    except HarnessError as error:  # a trial that diverges is a result too
        acc, remark = 0.0, str(error)[:80]
    gc.collect()  # the images and the network on the device
    return {
        "set": name,
        "search": is_search,
        "acc": acc,
        "options": options,
        "remark": remark,
        "seconds": time.monotonic() - began,
    }


@click.command()
@click.option("--data-dir", default="", help="CIFAR-10 as class folders, or an archive of them.")
@click.option("--sets", default=",".join(SETS), show_default=True, help="Which sets, with commas.")
@click.option("--trials", default=30, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--width", default=64, show_default=True, help="Channels of the first convolution of the network.")
@click.option("--jobs", default=0, show_default=True, help="Processes at once; 0: 6 on a GPU, 1 on a CPU.")
@click.option("--minutes", default=0.0, help="Begin no trial of the search later than this; 0: no limit.")
@click.option("--auto-only", is_flag=True, help="Measure only the recipe, without a search.")
@click.option("--option", "fixed", multiple=True, help="NAME=VALUE: a setting of the recipe's runs and of the search.")
@click.option("--quick", is_flag=True, help="A tiny network, few digits, two trials.")
@click.option("--log", type=click.Path(path_type=Path), help="Keep each result here, and read those that it has.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    data_dir: str, sets: str, trials: int, seeds: int, width: int, jobs: int, minutes: float, auto_only: bool,
    fixed: tuple[str, ...], quick: bool, log: Path | None, out: Path | None,
) -> None:  # fmt: skip
    if quick:
        sets, trials, seeds, width, jobs = "digits-28", 2, 1, 4, jobs or 1
        fixed = (*fixed, "epochs=2")
    names = sets.split(",")
    if unknown := set(names) - set(SETS):
        raise click.UsageError(f"--sets {','.join(sorted(unknown))}: need some of {', '.join(SETS)}")
    device = pick_device("auto")
    jobs = jobs or (6 if device.type == "cuda" else 1)
    common = {"model_args": {"width": width}, **dict(item.split("=", 1) for item in fixed)}
    ends = time.time() + 60 * minutes if minutes else 0.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Runs(folder, data_dir, names, quick, jobs, log) as run_all:
        autos = {name: settle(common, dataset_of(name, _arrays, is_search=False)) for name in names}
        tasks: list[Task] = [(name, False, {**common, "seed": seed}, 0.0) for seed in range(seeds) for name in names]
        randoms = {name: np.random.RandomState(SETS.index(name)) for name in names}
        for _ in range(0 if auto_only else trials):  # in turns, so that a limit of time leaves as many to each set
            for name in names:
                drawn = draw(randoms[name], autos[name], len(subset(name)))
                tasks.append((name, True, {"auto_augment": NO_POLICY, **common, **drawn, "seed": 0}, ends))
        results = run_all(tasks)
        searched = [result for result in results if result["search"]]
        best = {name: best_of(searched, name) for name in names}
        finals = run_all(
            [
                (name, False, {**trial["options"], "seed": seed}, 0.0)
                for seed in range(seeds)
                for name, trial in best.items()
                if trial is not None
            ]
        )
        rows = [
            row_of(name, autos[name], accuracies(results, name), best[name], accuracies(finals, name))
            | {"trials": sum(trial["set"] == name for trial in searched)}
            for name in names
        ]
    spent = round((time.monotonic() - began) / 60, 2)
    measure.keep("auto-recipe", device, rows, out, minutes=spent, width=width, jobs=jobs, trials_of_search=searched)


def best_of(trials: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """Return the trial of a set with the highest validation accuracy; None without one."""
    return max((trial for trial in trials if trial["set"] == name), key=lambda trial: trial["acc"], default=None)


def accuracies(results: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return the test accuracies of a set."""
    return [result["acc"] for result in results if result["set"] == name and not result["search"]]


def subset(name: str) -> np.ndarray:
    """Return the indices of a set's training images."""
    return subset_of(name, _arrays[f"{name.partition('-')[0]} train labels"])


def row_of(
    name: str, auto: Config, mine: Sequence[float], best: Mapping[str, Any] | None, searched: Sequence[float]
) -> dict[str, Any]:
    """Return the row of a set: both accuracies on the test split in percent, and their difference in points."""
    labels = _arrays[f"{name.partition('-')[0]} test labels"]
    chance = float(np.bincount(labels).max()) / len(labels)
    mean = 100 * statistics.fmean(mine)
    shown = (
        "model",
        "batch_size",
        "epochs",
        "lr_max",
        "weight_decay",
        "label_smoothing",
        "crop_padding",
        "flip",
        "cutout",
        "auto_augment",
    )
    row: dict[str, Any] = {
        "set": name,
        "images": len(subset(name)),
        "auto %": round(mean, 2),
        "auto sd": round(100 * statistics.stdev(mine), 2) if len(mine) > 1 else 0.0,
        "at chance": sum(chance_probability(round(acc * len(labels)), len(labels), chance) > 0.05 for acc in mine),
    }
    if best is not None:
        found = 100 * statistics.fmean(searched)
        row |= {
            "search %": round(found, 2),
            "search sd": round(100 * statistics.stdev(searched), 2) if len(searched) > 1 else 0.0,
            "search, validation %": round(100 * best["acc"], 2),
            "auto is behind, points": round(found - mean, 2),
            "within a point": "yes" if found - mean <= WITHIN else "NO",
        }
    row["auto settings"] = " ".join(f"{key}={getattr(auto, key)}" for key in shown)
    if best is not None:
        row["best trial"] = " ".join(f"{key}={value}" for key, value in best["options"].items() if key in shown)
    return row


class Runs:
    """A context that gives `run_all(tasks) -> results`, in worker processes where there are several jobs."""

    def __init__(
        self, folder: str, data_dir: str, names: Sequence[str], quick: bool, jobs: int, log: Path | None
    ) -> None:
        self.log = log
        lines = log.read_text("utf-8").splitlines() if log is not None and log.exists() else []
        self.logged = {self._key(result): result for result in map(json.loads, lines)}
        _arrays.update(arrays_of(data_dir, names, quick))
        self.pool: ProcessPoolExecutor | None = None
        if jobs > 1:
            path = str(Path(folder) / "images.npz")
            np.savez(path, **dict[str, Any](_arrays))
            self.pool = ProcessPoolExecutor(jobs, get_context("spawn"), load_arrays, (path, 1))

    def __enter__(self) -> Any:
        return self.run_all

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def run_all(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """Run the tasks in their order, and return the results of those that were begun in time, in that order."""
        keys = [
            self._key({"set": name, "search": is_search, "options": options}) for name, is_search, options, _ in tasks
        ]
        rest = [task for key, task in zip(keys, tasks, strict=True) if key not in self.logged]
        for result in filter(None, self._results(rest)):
            self.logged[self._key(result)] = result
            if self.log is not None:
                with self.log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
            click.echo(
                json.dumps({**result, "acc": round(result["acc"], 4), "seconds": round(result["seconds"], 1)}), err=True
            )
        return [self.logged[key] for key in keys if key in self.logged]

    @staticmethod
    def _key(result: Mapping[str, Any]) -> str:
        return json.dumps([result["set"], result["search"], result["options"]], sort_keys=True)

    def _results(self, tasks: Sequence[Task]) -> Iterator[dict[str, Any] | None]:
        return iter(map(work, tasks)) if self.pool is None else self.pool.map(work, tasks)


if __name__ == "__main__":
    main()
