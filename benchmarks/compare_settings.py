"""Train variants of recipes in one process, in turns over seeds, and list their accuracy: the evidence behind a recipe.

    python benchmarks/compare_settings.py plan.yaml --minutes 5

The plan is a YAML file with a list of `variants` in order of importance. Each has a `name`, and may have `seeds` (a number, 1)
and `settings`; an entry without a name holds settings for all that follow it. With `val_fraction` the accuracy is that of the validation
split, else that of the test set; nothing is selected by it, since the weights of the last epoch count. Data are read once, and
variants that no longer fit into --minutes are listed.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import measure
import torch

import harness.runs.components
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.config.yaml_io import parse_yaml
from harness.data.registry import Dataset, load_dataset
from harness.evaluation.metrics import Predictions
from harness.evaluation.predict import predict_batches
from harness.runs.components import build_components
from harness.training.device import pick_device
from harness.training.loop import fit
from harness.utils.errors import HarnessError


def read_plan(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a plan, each with its name, seeds and settings."""
    common: dict[str, Any] = {}
    entries = []
    for entry in parse_yaml(path.read_text(encoding="utf-8"), str(path))["variants"]:
        if "name" not in entry:
            common = entry["settings"]
            continue
        settings = {**common, **entry.get("settings", {})}
        entries.append({"name": entry["name"], "seeds": int(entry.get("seeds", 1)), "settings": settings})
    return entries


def train(config: Config, dataset: Dataset | None = None) -> dict[str, float]:
    """Train one variant to its end; return the accuracy of its last epoch and the seconds of its parts.

    Args:
        dataset: the data, where they are not to be read as the settings say.
    """
    started_at = time.monotonic()
    components = build_components(config, dataset=dataset)
    learner = components.learner
    built_at = time.monotonic()
    records = list(fit(learner, components.loaders.train, components.schedule, epochs=config.epochs, seed=config.seed))
    trained_at = time.monotonic()
    batches = getattr(components.loaders, components.eval_split)
    predictions: Predictions = predict_batches(
        learner.eval_model, batches, learner.device, autocast=learner.precision, tta=config.tta
    )
    result = {
        "acc": _accuracy(predictions.probabilities, predictions),
        "loss": float(predictions.losses.mean()),
        "train loss": float(records[-1].values["train/loss"]),  # type: ignore[arg-type]
    }
    if predictions.tta_probabilities is not None:
        result["acc_tta"] = _accuracy(predictions.tta_probabilities, predictions)
    times = {"building": built_at - started_at, "training": trained_at - built_at}
    return result | {f"{key} (s)": value for key, value in times.items()}


def _accuracy(probabilities: Any, predictions: Predictions) -> float:
    return float((probabilities.argmax(1) == predictions.labels).mean())


@click.command()
@click.argument("plan", type=click.Path(path_type=Path, exists=True))
@click.option("--data-dir", default="", help="A folder or archive of images, in place of the plan's.")
@click.option("--minutes", default=5.0, show_default=True, help="Variants that do not fit are listed.")
@click.option("--quick", is_flag=True, help="One epoch of a tiny network for each variant.")
@click.option("--out", type=click.Path(path_type=Path))
def main(plan: Path, data_dir: str, minutes: float, quick: bool, out: Path | None) -> None:
    ends = time.monotonic() + 60 * minutes
    harness.runs.components.load_dataset = _load_once
    device, rows, left_out, longest = torch.device("cpu"), [], [], 0.0
    for entry in read_plan(plan):
        settings = {**entry["settings"], "wandb": "disabled"}
        settings |= {"recipe": "custom-resnet", **settings, "data": "folder", "data_dir": data_dir} if data_dir else {}
        if quick:
            small = {key: value for key, value in settings.get("model_args", {}).items() if key != "width"}
            settings |= {"model_args": {**small, "width": 4}, "epochs": 1, "batch_size": 64}
        results: list[dict[str, float]] = []
        for seed in range(1 if quick else entry["seeds"]):
            if time.monotonic() + longest > ends:
                left_out.append(f"{entry['name']}, seed {seed}")
                continue
            started_at = time.monotonic()
            config = make_config({**settings, "seed": seed})
            device = pick_device(config.device)
            try:
                results.append(train(config))
            except HarnessError as error:  # a diverged variant is a result too
                click.echo(f"{entry['name']}, seed {seed}: {error}", err=True)
                rows.append({"variant": entry["name"], "seeds": 0, "acc %": 0.0, "remark": str(error)[:80]})
                break
            gc.collect()
            longest = max(longest, time.monotonic() - started_at)
            shown = ", ".join(f"{key} {value:.4f}" for key, value in results[-1].items())
            click.echo(f"{entry['name']}, seed {seed}: {shown}", err=True)
        if results:
            rows.append(
                {
                    "variant": entry["name"],
                    **_summary(results),
                    "settings": " ".join(f"{key}={value}" for key, value in entry["settings"].items()),
                }
            )
        if out is not None:
            out.write_text(json.dumps({"partial": True, "rows": rows, "left_out": left_out}, indent=1))
    for name in left_out:
        click.echo(f"left out: {name}")
    kept = measure.keep("compare-settings", device, rows, out, left_out=left_out)
    click.echo(f"{len(rows)} variants in {kept.name}", err=True)
    sys.exit(0 if rows else 1)


def _summary(results: list[dict[str, float]]) -> dict[str, Any]:
    """Return mean and standard deviation of the accuracies in percent, and medians of the rest."""
    row: dict[str, Any] = {"seeds": len(results)}
    for key in results[0]:
        values = [result[key] for result in results]
        if key.startswith("acc"):
            percent = [100 * value for value in values]
            row[f"{key} %"] = round(statistics.mean(percent), 2)
            row[f"{key} sd"] = round(statistics.stdev(percent), 2) if len(percent) > 1 else 0.0
            row[f"{key} of each"] = [round(value, 2) for value in percent]
        else:
            row[key] = round(statistics.median(values), 3)
    return row


_datasets: dict[tuple[str, str, float], Any] = {}


def _load_once(config: Config) -> Any:
    """Return the data set of a configuration, read only once."""
    key = (config.data, config.data_dir, config.val_fraction)
    if key not in _datasets:
        _datasets[key] = load_dataset(config)
    return _datasets[key]


if __name__ == "__main__":
    main()
