"""Compare four learning-rate schedules on digits over several seeds: a table and `schedules.png`.

    python compare_schedules.py [--seeds 3] [--epochs 4] [--width 8]

Takes about two minutes on two CPU cores, without a network. The runs differ only in schedule and seed. They are compared on
a validation split; the test set is not read.
"""

import argparse
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import harness

SCHEDULES = ("one_cycle", "cyclic", "cosine", "constant")


def train(schedule: str, seed: int, epochs: int, width: int) -> list[float]:
    """Train one run and return its validation accuracy, 0..1, after each epoch."""
    settings = {
        "recipe": "digits",
        "model_args": {"width": width},
        "epochs": epochs,
        "seed": seed,
        "schedule": schedule,
        "cycles": 2,
        "val_fraction": 0.2,
        "test": False,
        "select": "last",
        "gallery": 0,
        "precision": "fp32",
        "wandb": "offline",
        "group": "schedules",
        "name": f"{schedule}-s{seed}",
    }
    if epochs == 1:
        settings["peak_epoch"] = 0.25
    result = harness.run(harness.make_config(settings))
    return [epoch["val/acc"] for epoch in result.history]


def draw(accuracies: dict[str, list[list[float]]], path: Path) -> None:
    """Draw the mean accuracy of each schedule by epoch, with the range over its seeds."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for schedule, runs in accuracies.items():
        epochs = range(1, len(runs[0]) + 1)
        by_epoch = list(zip(*runs, strict=True))
        (line,) = axes.plot(epochs, [100 * statistics.fmean(values) for values in by_epoch], "o-", label=schedule)
        low = [100 * min(values) for values in by_epoch]
        high = [100 * max(values) for values in by_epoch]
        axes.fill_between(epochs, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", title=f"digits, {len(runs)} seeds: mean and range")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train every schedule with every seed, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES, choices=SCHEDULES)
    options = parser.parse_args()
    accuracies = {
        schedule: [train(schedule, seed, options.epochs, options.width) for seed in range(options.seeds)]
        for schedule in options.schedules
    }
    print(
        f"{'schedule':<12} {'mean':>8} {'lowest':>8} {'highest':>8}   validation accuracy after epoch {options.epochs}"
    )
    for schedule, runs in accuracies.items():
        last = [100 * run[-1] for run in runs]
        print(f"{schedule:<12} {statistics.fmean(last):7.2f} % {min(last):7.2f} % {max(last):7.2f} %")
    draw(accuracies, Path("schedules.png"))
    print("figure: schedules.png; the runs are in runs/, each with its own offline W&B run")


if __name__ == "__main__":
    main()
