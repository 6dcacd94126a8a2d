"""Draws the pictures of architecture.md, docs/images/rooms.svg and paths.svg: `python docs/draw.py`."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

IMAGES = Path(__file__).with_name("images")
INK, ROOF, ROOM, LEAF = "#1f2933", "#fde8c8", "#d6e6f5", "#e3f1dc"
MIDDLE = (0.0, -0.35)
ROOMS = {
    "training": "learns\nloop, learner, schedule, optimizer,\nfinder, checkpoint, saving, graph, distributed",
    "vision": "the task\nmodels, data, loaders, augmentation,\npredictions, galleries, Grad-CAM",
    "tracking": "writes\ntracker, tee, journal, wandb_*",
    "search": "many runs\nsweepfile, axes, Optuna, Hyperband,\nprocesses, results",
    "report": "pages\none HTML file of a run or a sweep, from its journal",
}
BATCH = (
    "file or array\nuint8 [H, W, 3]",
    "resident store\nor timm loader\ncrop, flip, cutout",
    "normalised\nfloat [B, 3, H, W]\non the device",
    "timm model\n→ logits\n[B, classes]",
    "loss (nats)\nLearner.update\nnothing is read back",
    "one Record\nan epoch\nread once",
    "journal.jsonl,\nW&B, figures",
)
RATE = (
    "--lr-max 0.05,\nrecipe, agent,\nor a range test",
    "Config.lr_max\nchecked:\nlr_min ≤ lr_max",
    "Schedule.lr(step)\na pure function",
    "set_rates\ninto the\noptimizer",
    "rate: read back\nfrom the optimizer",
    "Record: lr\nof every step",
    "figures/lr.png,\nW&B's history",
)


def box(axes: Axes, x: float, y: float, words: str, colour: str, width: float, height: float, size: float = 9) -> None:
    """A rounded box around (x, y) with its first line bold where there are more."""
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.08", fc=colour, ec=INK, lw=1.1))
    axes.text(x, y, words, ha="center", va="center", fontsize=size, color=INK, linespacing=1.35)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0})


def rooms() -> plt.Figure:
    """The star: leaves in the middle, rooms around them that import only leaves, the roof around all."""
    figure, axes = _paper(10.5, 8.2)
    axes.add_patch(FancyBboxPatch((-5.1, -3.95), 10.2, 7.9, "round,pad=0,rounding_size=0.3", fc=ROOF, ec=INK, lw=1.1))
    axes.text(0, 3.68, "the roof knows every room", ha="center", va="center", weight="bold", fontsize=11, color=INK)
    roof = "commands/ (the command line), runner, story, find, see, judge, exchange, sync, seeds, verify, doctor"
    axes.text(0, 3.36, roof, ha="center", va="center", fontsize=9, color=INK)
    for number, (name, about) in enumerate(ROOMS.items()):
        angle = math.radians(90 + 72 * number)
        x, y = 3.35 * math.cos(angle), 2.75 * math.sin(angle) - 0.35
        arrow(axes, _edge((x, y), MIDDLE, 1.55, 0.58), _edge(MIDDLE, (x, y), 1.28, 0.63))
        box(axes, x, y, "", ROOM, 3.1, 1.15)
        axes.text(x, y + 0.36, f"{name}/", ha="center", va="center", weight="bold", fontsize=10.5, color=INK)
        axes.text(x, y - 0.15, about, ha="center", va="center", fontsize=8.5, color=INK, linespacing=1.3)
    box(axes, *MIDDLE, "", LEAF, 2.56, 1.25)
    axes.text(0, MIDDLE[1] + 0.38, "leaves", ha="center", va="center", weight="bold", fontsize=10.5, color=INK)
    leaves = "config, values, errors, randomness,\nfiles, runfolder, interrupts,\nenvironment, style, faults"
    axes.text(0, MIDDLE[1] - 0.15, leaves, ha="center", va="center", fontsize=8.5, color=INK, linespacing=1.3)
    axes.annotate("", (-0.4, -2.57), (0.4, -2.57), arrowprops={"arrowstyle": "-|>", "color": INK, "linestyle": "--"})
    axes.text(0, -2.4, "the journal", fontsize=8, ha="center", color=INK)
    axes.text(
        0,
        -3.62,
        "→ imports. Rooms do not import each other, but for the journal; a test parses every import.",
        **_note(),
    )
    axes.set(xlim=(-5.2, 5.2), ylim=(-4.05, 4.05))
    return figure


def paths() -> plt.Figure:
    """Two strips: what becomes of a batch of images, and of LRMAX."""
    figure, axes = _paper(13, 4.0)
    for y, name, steps, colour in ((1.25, "a batch of images", BATCH, ROOM), (-1.0, "LRMAX", RATE, LEAF)):
        axes.text(-0.92, y + 0.78, f"The path of {name}", weight="bold", fontsize=11, color=INK)
        for place, words in enumerate(steps):
            box(axes, 2.2 * place, y, words, colour, 1.84, 1.15)
            if place:
                arrow(axes, (2.2 * place - 1.28, y), (2.2 * place - 0.92, y))
    axes.set(xlim=(-1.05, 14.25), ylim=(-1.75, 2.4))
    return figure


def _edge(
    centre: tuple[float, float], to: tuple[float, float], half_width: float, half_height: float
) -> tuple[float, float]:
    """Where the line from a box's centre to a point leaves the box."""
    across, up = to[0] - centre[0], to[1] - centre[1]
    share = min(half_width / max(abs(across), 1e-9), half_height / max(abs(up), 1e-9))
    return centre[0] + share * across, centre[1] + share * up


def _paper(width: float, height: float) -> tuple[plt.Figure, Axes]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_axis_off()
    return figure, axes


def _note() -> dict[str, object]:
    return {"ha": "center", "va": "center", "fontsize": 9, "color": INK, "style": "italic"}


if __name__ == "__main__":
    with plt.rc_context({"svg.hashsalt": "harness", "svg.fonttype": "path"}):
        for name, draw in (("rooms", rooms), ("paths", paths)):
            picture = draw()
            picture.savefig(IMAGES / f"{name}.svg", metadata={"Date": None}, facecolor="white")
            plt.close(picture)
