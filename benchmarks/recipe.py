"""Train a recipe over several seeds: accuracy, and seconds by phase.

python benchmarks/recipe.py --recipe digits --runs 3
python benchmarks/recipe.py --data folder --data-dir cifar --runs 5
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import measure

from harness.cli.commands import CONTEXT, SettingsCommand
from harness.cli.options import setting_options
from harness.config.recipe import make_config
from harness.runs.progress import LineReporter
from harness.runs.run import run
from harness.training.device import pick_device


@click.command(cls=SettingsCommand, context_settings=CONTEXT)
@click.option("--runs", default=3, show_default=True, help="Seeds, from --seed on.")
@click.option("--quick", is_flag=True, help="Two seeds of one epoch of a tiny network.")
@click.option("--out", type=click.Path(path_type=Path))
@setting_options
def main(settings: dict[str, Any], runs: int, quick: bool, out: Path | None) -> None:
    if quick:
        settings, runs = {"recipe": "digits", "model_args": "width=4", "epochs": 1, "gallery": 0, **settings}, 2
    config = make_config({"wandb": "offline", **settings})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(config.seed, config.seed + runs):
            result = run(config.replace(seed=seed, output=folder, resume="never"), LineReporter(sys.stderr))
            scores, seconds = result.summary["result"], result.summary["seconds"]
            images = result.history[-1]["throughput/images_per_s"]
            acc = {key: scores[key] for key in ("test/acc", "val/acc", "test/acc_tta") if key in scores}
            rows.append(
                {"seed": seed, **acc, **{f"{key} (s)": value for key, value in seconds.items()}, "images/s": images}
            )
    for name, aggregate in (
        ("mean", statistics.mean),
        ("standard deviation", statistics.stdev if runs > 1 else lambda _: 0.0),
    ):
        rows.append(
            {"seed": name, **{key: aggregate([row[key] for row in rows[:runs]]) for key in rows[0] if key != "seed"}}
        )
    facts = {"recipe": config.recipe, "settings": config.affecting_results(), "seeds": runs}
    measure.keep(f"recipe-{Path(config.recipe).stem}", pick_device(config.device), rows, out, **facts)


if __name__ == "__main__":
    main()
