"""Check a suggested learning rate by short one-cycle runs at it, below it and above it.

    python benchmarks/around.py --recipe digits --lr-max 0.01 --try-factors 0.333,1,3 --try-steps 60

All runs have the same initial weights, batches and length, and are evaluated on held-out training images. Prints one line
per run and writes a dated JSON file under results/.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from harness.cli.commands import CONTEXT, SettingsCommand
from harness.cli.options import setting_options
from harness.config.recipe import make_config
from harness.lr_finder.finder import LRFinder, LRFinderOptions
from harness.lr_finder.range_test import short_run
from harness.runs.components import build_components
from harness.runs.lr_find import finder_inputs
from harness.runs.progress import LineReporter
from harness.training.device import describe_environment
from harness.training.schedule import Schedule


@click.command(cls=SettingsCommand, context_settings=CONTEXT)
@click.option(
    "--try-factors", default="0.3333,1,3", show_default=True, help="Factors of --lr-max; lr_min is a tenth of each."
)
@click.option("--try-steps", default=60, show_default=True)
@setting_options
def main(settings: dict[str, Any], try_factors: str, try_steps: int) -> None:
    config = make_config(settings)
    components = build_components(config)
    inputs = finder_inputs(components.config, components)
    finder = LRFinder(inputs, LRFinderOptions(seeds=1), report=LineReporter(sys.stderr).message)
    assert finder.val_loader is not None, "too few images to hold any out"
    rows = []
    for factor in map(float, try_factors.split(",")):
        lr_max = config.rates()[1] * factor
        peak = try_steps * config.peak_epoch / max(config.epochs, 1)
        schedule = Schedule("one_cycle", try_steps, lr_max / 10, lr_max, peak=peak, momentum=config.momentum)
        began = time.monotonic()
        trial = short_run(finder.learner_factory, finder.loader_factory, finder.val_loader, schedule, seed=config.seed)
        rows.append({"lr_max": lr_max, "steps": try_steps, "held-out acc": trial.acc, "held-out loss": trial.loss})
        click.echo(
            f"lr_max {lr_max:.4g}: {100 * trial.acc:.1f} % held-out, loss {trial.loss:.3f}, {time.monotonic() - began:.0f} s"
        )
    facts = {
        "date": f"{datetime.date.today()}",
        "model": config.model,
        "data": config.data,
        **describe_environment(components.learner.device),
    }
    out = Path(__file__).parent / "results" / f"around-{config.data}-{facts['date']}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
