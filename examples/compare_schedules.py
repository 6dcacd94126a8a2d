"""Four schedules on digits over several seeds: a table and `schedules.png`, offline, about two minutes on two cores.

    python compare_schedules.py [--seeds 3] [--epochs 4] [--width 8]

Every run is the same but for its schedule and seed. All look at a validation split; the test set is left unread.
"""

import argparse
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import harness

SCHEDULES = ("one_cycle", "cyclic", "cosine", "constant")


def accuracies(schedule: str, seed: int, epochs: int, width: int) -> list[float]:
    """The validation accuracy (a share) after each epoch of one run."""
    settings = {"recipe": "digits", "model_args": {"width": width}, "epochs": epochs, "seed": seed}
    choices = {"schedule": schedule, "cycles": 2, "val_fraction": 0.2, "test": False, "select": "last"}
    quick = {"gallery": 0, "wandb": "offline", "precision": "fp32", "group": "schedules", "name": f"{schedule}-s{seed}"}
    if epochs == 1:
        quick["peak_epoch"] = 0.25
    config = harness.make_config({**settings, **choices, **quick})
    return [row["val/acc"] for row in harness.run(config).history]


def picture(found: dict[str, list[list[float]]], path: Path) -> None:
    """Mean accuracy by epoch of each schedule, with the range of its seeds."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for schedule, runs in found.items():
        epochs = range(1, len(runs[0]) + 1)
        columns = list(zip(*runs, strict=True))
        (line,) = axes.plot(epochs, [100 * statistics.fmean(column) for column in columns], "o-", label=schedule)
        low, high = ([100 * end(column) for column in columns] for end in (min, max))
        axes.fill_between(epochs, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", title=f"digits, {len(runs)} seeds: mean and range")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--epochs", type=int, default=4)
    asked.add_argument("--width", type=int, default=8)
    asked.add_argument("--schedules", nargs="+", default=SCHEDULES, choices=SCHEDULES)
    ask = asked.parse_args()
    found = {
        schedule: [accuracies(schedule, seed, ask.epochs, ask.width) for seed in range(ask.seeds)]
        for schedule in ask.schedules
    }
    print(f"{'schedule':<12} {'mean':>8} {'lowest':>8} {'highest':>8}   validation accuracy after epoch {ask.epochs}")
    for schedule, runs in found.items():
        last = [100 * run[-1] for run in runs]
        print(f"{schedule:<12} {statistics.fmean(last):7.2f} % {min(last):7.2f} % {max(last):7.2f} %")
    picture(found, Path("schedules.png"))
    print("picture: schedules.png; the runs are in runs/, each with its own offline W&B run")


if __name__ == "__main__":
    main()
