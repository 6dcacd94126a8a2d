"""Draw the pictures of architecture.md, docs/images/packages.svg and paths.svg: `python docs/draw.py`."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

IMAGES = Path(__file__).with_name("images")
INK, MUTED, PAPER = "#1f2933", "#52606d", "#ffffff"
ORANGE, YELLOW, BLUE, GREEN, GREY = "#fde8c8", "#fdf3c8", "#d6e6f5", "#e3f1dc", "#e8ebef"

# From the top to the bottom: a package imports only packages of the same list that stand further down.
PACKAGES = (
    ("cli", "commands, options, exit statuses", ORANGE),
    ("checks", "verify and doctor", ORANGE),
    ("sweep", "W&B sweep files on Optuna", ORANGE),
    ("runs", "one run from the configuration to the summary", ORANGE),
    ("reporting", "figures, HTML pages, evaluation report", YELLOW),
    ("lr_finder", "range test and suggestion", BLUE),
    ("evaluation", "predictions, metrics, Grad-CAM", BLUE),
    ("training", "loop, learner, schedule, checkpoint, distributed", BLUE),
    ("models", "timm registry, factory, model card", BLUE),
    ("data", "data sets, augmentation, loaders", BLUE),
    ("tracking", "records, journal, run directory, W&B", GREEN),
    ("config", "settings, recipes, strict YAML", GREEN),
    ("utils", "errors, files, seeding, signals, text", GREY),
)
BATCH = (
    ("data/registry.py", "load_dataset", "uint8 [N, H, W, 3]"),
    ("data/device_loader.py", "or worker_loader.py", "crop, flip, cutout"),
    ("training/loop.py", "fit", "float [B, 3, H, W]"),
    ("training/learner.py", "Learner.train_step", "logits [B, classes]"),
    ("training/loop.py", "yields a Record", "once an epoch"),
)
LR_MAX = (
    ("cli/options.py", "--lr-max 0.05", "or a recipe, a sweep"),
    ("config/", "make_config", "Config.lr_max"),
    ("training/schedule.py", "Schedule.lr(step)", "a pure function"),
    ("training/learner.py", "Learner.train_step", "sets it, reads it back"),
    ("training/loop.py", "Record: lr", "one value per step"),
)
RECORD = (
    ("training/loop.py", "fit yields it", "plain values"),
    ("runs/trainer.py", "Trainer", "adds best/val_acc"),
    ("tracking/tracker.py", "MultiTracker", "journal first, then W&B"),
    ("tracking/journal.py", "Journal.record", "one line on disk"),
    ("tracking/wandb/", "WandbTracker.record", "one row per step"),
)


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{colour}" stroke="{INK}"/>'


def text(
    x: float, y: float, content: str, size: int = 13, colour: str = INK, bold: bool = False, centre: bool = True
) -> str:
    anchor, weight = "middle" if centre else "start", "bold" if bold else "normal"
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}">'
        f"{escape(content)}</text>"
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.3" marker-end="url(#head)"/>'


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Return an SVG picture on white paper, readable on a dark page too."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'font-family="Helvetica, Arial, sans-serif">',
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *parts,
        "</svg>\n",
    ])  # fmt: skip


def packages() -> str:
    """Return the stack of packages: each imports only packages below it."""
    parts, top, row = [], 20, 38
    for index, (name, about, colour) in enumerate(PACKAGES):
        y = top + index * row
        parts += [box(60, y, 580, row - 6, colour), text(76, y + 21, f"{name}/", 14, bold=True, centre=False)]
        parts.append(text(190, y + 21, about, 13, MUTED, centre=False))
    bottom = top + len(PACKAGES) * row
    parts += [arrow(34, top + 8, 34, bottom - 14), f'<g transform="rotate(-90 22 {(top + bottom) / 2})">']
    parts += [text(22, (top + bottom) / 2, "imports", 12, MUTED), "</g>"]
    return svg(660, bottom + 14, "The thirteen packages of harness; each imports only packages below it", parts)


def paths() -> str:
    """Return three strips: the files that a batch, `lr_max` and a Record pass through."""
    parts, width, gap = [], 186, 26
    strips = (("A batch of images", BATCH, BLUE), ("lr_max", LR_MAX, YELLOW), ("A Record", RECORD, GREEN))
    for number, (name, steps, colour) in enumerate(strips):
        y = 20 + number * 130
        parts.append(text(20, y + 14, name, 15, bold=True, centre=False))
        for index, (file, symbol, about) in enumerate(steps):
            x = 20 + index * (width + gap)
            parts += [box(x, y + 26, width, 78, colour), text(x + width / 2, y + 48, file, 13, bold=True)]
            parts += [text(x + width / 2, y + 69, symbol), text(x + width / 2, y + 90, about, 12, MUTED)]
            if index:
                parts.append(arrow(x - gap, y + 65, x, y + 65))
    return svg(20 + 5 * width + 4 * gap + 20, 20 + 3 * 130, "The paths of a batch, of lr_max and of a Record", parts)


if __name__ == "__main__":
    for name, draw in (("packages", packages), ("paths", paths)):
        (IMAGES / f"{name}.svg").write_text(draw(), encoding="utf-8")
