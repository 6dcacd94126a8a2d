"""Count empty class-activation maps of a trained model by method and layer, and measure their time.

    python benchmarks/cam_maps.py runs/my-run [--count 25]

Uses the most confident errors on the run's evaluation split, each mapped for its predicted and its true class. Prints a
table and writes a dated JSON file under results/.
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path

import click
import torch

from harness.data.loaders import make_eval_loader
from harness.data.registry import load_dataset
from harness.evaluation import gradcam, metrics
from harness.evaluation.predict import predict_batches
from harness.evaluation.selection import choose_images
from harness.evaluation.trained_model import load_trained_model
from harness.training.device import autocast_dtype, describe_environment

QUICK = [name for name, method in gradcam.METHODS.items() if not method.is_slow]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--count", default=25, show_default=True, help="Misclassified images.")
@click.option("--layers", default="layer1,layer2,layer3", show_default=True)
@click.option("--data-dir", default="", help="Where the data is now.")
def main(run: Path, count: int, layers: str, data_dir: str) -> None:
    trained = load_trained_model(run, {"data_dir": data_dir} if data_dir else {})
    data = load_dataset(trained.config)
    split = data.test or data.val
    assert split is not None
    predictions = predict_batches(
        trained.model,
        make_eval_loader(split, trained.preprocess, trained.config, trained.device),
        trained.device,
        autocast=autocast_dtype(trained.config.precision),
    )
    selected = choose_images(predictions, wrong=True, count=count)
    images = torch.stack([trained.preprocess.image(split.picture(int(index))) for index in selected])
    rows = []
    for layer in layers.split(","):
        for method in QUICK:
            began = time.monotonic()
            maps = [
                gradcam.compute_maps(trained.model, images, classes, method=method, layer=layer)
                for classes in (predictions.predicted[selected], predictions.labels[selected])
            ]
            rows.append(
                {
                    "method": method,
                    "layer": layer,
                    "empty predicted": int(maps[0].empty.sum()),
                    "empty true": int(maps[1].empty.sum()),
                    "of": len(selected),
                    "share of positive evidence": round(float(maps[0].share.mean()), 3),
                    "seconds": round(time.monotonic() - began, 2),
                }
            )
            click.echo("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    facts = {
        "date": f"{datetime.date.today()}",
        "accuracy": metrics.accuracy(predictions),
        **describe_environment(trained.device),
    }
    out = Path(__file__).parent / "results" / f"cam_maps-{facts['date']}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
