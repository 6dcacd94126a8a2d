"""`harness data`: what a data set holds, as text, as plain values, and as a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.automatic import DataFacts, choose_settings, with_choices
from harness.config.names import SPLIT_LABELS, data_name
from harness.config.settings import Config
from harness.data.dataset import ArrayImages, Dataset, Split, channel_statistics, in_memory, spread_indices
from harness.data.image_io import shown_as_rgb
from harness.data.overview import DataOverview, SplitOverview, repeats, size_summary
from harness.data.preprocess import Preprocess, make_preprocess
from harness.models import factory
from harness.reporting.evaluation_report import shrink, table_text
from harness.reporting.figures.contact_sheet import ClassRow, contact_sheet
from harness.tracking.records import Table
from harness.utils.errors import DataError
from harness.utils.text import counted, escape_unprintable, percent

MAX_LISTED_CLASSES = 20
SHEET_CLASSES, SHEET_IMAGES = 40, 6


def overview_text(overview: DataOverview) -> str:
    """Return what a data set holds for a terminal: facts first, then a line of advice for each problem."""
    facts = overview.facts
    read = sum(len(split.facts) for split in overview.splits.values())
    lines = [
        f"{overview.num_images:,} images in {counted(len(overview.classes), 'class', 'classes')}: {overview.origin}"
    ]
    if read < overview.num_images:
        lines.append(
            f"{read:,} of them were read, evenly spread: what follows on sizes, kinds and repeats is of these; --limit 0 reads all"
        )
    lines += ["", *_class_table(overview)]
    for split in overview.splits.values():
        if split.labels_per_image is not None:
            mean, without = split.labels_per_image
            lines.append(
                f"{SPLIT_LABELS[split.name]} images have {mean:.2f} labels in the mean (multi-label), and {without:,} have none"
            )
    if sizes := size_summary(facts):
        sides = (f"{side} {values['min']} / {values['median']} / {values['max']}" for side, values in _sides(sizes))
        lines += ["", f"sizes, min / median / max: {', '.join(sides)} pixels; {sizes['different']:,} different"]
        for name, values in (("formats", [one.format for one in facts]), ("modes", [one.mode for one in facts])):
            lines.append(f"{name}: " + ", ".join(f"{key} {count:,}" for key, count in Counter(values).most_common()))
        if turned := sum(one.is_turned for one in facts):
            lines.append(f"{turned:,} images are turned upright by their EXIF orientation")
    lines += [f"note: {note}" for note in overview.notes]
    lines += ["", *(f"- {advice}" for advice in overview.advice)] if overview.advice else ["", "no problem found"]
    return "\n".join(lines)


def overview_values(config: Config, overview: DataOverview) -> dict[str, Any]:
    """Return what a data set holds as plain values for JSON."""
    facts, repeated = overview.facts, repeats(overview)
    return {
        "data": config.data,
        "data_dir": config.data_dir,
        "origin": overview.origin,
        "classes": list(overview.classes),
        "splits": {
            name: {
                "images": len(split.source),
                "read": len(split.facts),
                "per_class": dict(zip(overview.classes, split.counts.tolist(), strict=True)),
                **_labels_per_image(split),
            }
            for name, split in overview.splits.items()
        },
        "sizes": size_summary(facts),
        "formats": dict(Counter(one.format for one in facts)),
        "modes": dict(Counter(one.mode for one in facts)),
        "broken": {escape_unprintable(id): reason for id, reason in sorted(overview.broken.items())},
        "repeats": {
            "within": {name: len(pairs) for name, pairs in repeated.within.items()},
            "between": {f"{first}/{second}": len(pairs) for (first, second), pairs in repeated.between.items()},
            "images": {
                name: [[escape_unprintable(image), escape_unprintable(same)] for image, same in pairs]
                for name, pairs in (
                    *repeated.within.items(),
                    *((f"{first}/{second}", pairs) for (first, second), pairs in repeated.between.items()),
                )
            },
            "conflicts": [list(pair) for pair in repeated.conflicts],
        },
        "notes": overview.notes,
        "advice": overview.advice,
    }


def _labels_per_image(split: SplitOverview) -> dict[str, Any]:
    if split.labels_per_image is None:
        return {}
    mean, without = split.labels_per_image
    return {"labels_per_image": {"mean": mean, "without": without}}


def draw_contact_sheet(config: Config, overview: DataOverview, path: Path) -> Path:
    """Draw some images of each class as they are stored, and as the model of the settings would see them.

    Settings that are `auto` are those that a run would choose for this data.

    Raises:
        DataError: there is no readable image. UsageError: there is no such model.
    """
    config = _decided(config, overview)
    rows: list[ClassRow] = []
    preprocess: Preprocess | None = None
    for label in spread_indices(len(overview.classes), SHEET_CLASSES):
        pictures = _pictures_of(overview, label, config)
        if not pictures:
            continue
        preprocess = preprocess or _preprocess(config, overview, pictures)
        about = ", ".join(f"{SPLIT_LABELS[name]} {split.counts[label]:,}" for name, split in overview.splits.items())
        shown = [(shrink(shown_as_rgb(picture)), _as_seen(preprocess, picture)) for picture in pictures]
        rows.append(ClassRow(overview.classes[label], about, shown))
    if preprocess is None:
        raise DataError("no image can be read, so there is none to draw")
    left_out = f", {len(rows)} of {len(overview.classes):,} classes" if len(rows) < len(overview.classes) else ""
    title = f"{data_name(config.data, config.data_dir)}: {overview.num_images:,} images{left_out}"
    model = config.model.partition(".")[0]  # a line of few images has no room for timm's names of weights
    subtitle = (
        f"as stored, and below as {model} sees it: {preprocess.size} x {preprocess.size} pixels, without augmentation"
    )
    return contact_sheet(rows, path, title=title, subtitle=subtitle)


def _decided(config: Config, overview: DataOverview) -> Config:
    """Return the settings with the model and the image size that a run would choose, where they are `auto`."""
    split = overview.splits.get("train") or next(iter(overview.splits.values()), None)
    if split is None or not config.undecided:
        return config
    sizes = [(one.width, one.height) for one in split.facts.values() if not one.error]
    side = int(np.median([min(size) for size in sizes])) if sizes else 32
    facts = DataFacts(
        data=config.data,
        images=len(split.source),
        classes=overview.classes,
        side=side,
        is_uniform=set(sizes) == {(side, side)},
        memory=0,
        why_no_weights=lambda name: "not asked",  # which would need the network
        is_ours=lambda name: name in factory.HARNESS_MODELS,
    )
    return with_choices(config, choose_settings(config, facts))


def _pictures_of(overview: DataOverview, label: int, config: Config) -> list[np.ndarray]:
    """Return some images of a class among those that were read, from the training images where there are such."""
    for split in overview.splits.values():
        readable = [index for index, facts in split.facts.items() if split.has_class(index, label) and not facts.error]
        if readable:
            chosen = [readable[position] for position in spread_indices(len(readable), SHEET_IMAGES)]
            return [split.picture(index, config.grey_limits(), config.in_chans) for index in chosen]
    return []


def _as_seen(preprocess: Preprocess, picture: np.ndarray) -> np.ndarray:
    """Return an image as the model sees it, for a figure, uint8 [size, size, 3]."""
    return shown_as_rgb(preprocess.pixels(picture).permute(1, 2, 0).numpy())


def _preprocess(config: Config, overview: DataOverview, pictures: Sequence[np.ndarray]) -> Preprocess:
    """Return the preprocessing that a run with these settings would have."""
    labels, ids = np.zeros(len(pictures), np.int64), [str(index) for index in range(len(pictures))]
    # A turned image has another shape than its file.
    if size_summary(overview.facts)["different"] == 1 and len({picture.shape for picture in pictures}) == 1:
        sample = in_memory("train", np.stack(pictures), labels, ids)
    else:
        sample = Split("train", labels, ids, None, ArrayImages(pictures, labels))
    mean, std = channel_statistics(sample, config.in_chans)
    data = Dataset(config.data, overview.classes, sample, None, None, mean, std, "")
    # Its weights do not matter here, and are not downloaded.
    model = factory.create_model(config.replace(pretrained=False), max(2, len(overview.classes)))
    return make_preprocess(config, model, data)


def _sides(sizes: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    return [(side, sizes[side]) for side in ("width", "height")]


def _class_table(overview: DataOverview) -> list[str]:
    """Return a row for each class; of many, those with the most and with the fewest images."""
    names = list(overview.splits)
    counts = np.stack([split.counts for split in overview.splits.values()], 1) if names else np.zeros((0, 0), int)
    totals = [len(split.source) for split in overview.splits.values()] if len(counts) else []
    columns = ("class", *names, "")
    rows = [["all", *(f"{total:,}" for total in totals)]]
    order = list(range(len(overview.classes)))
    skipped = 0
    if len(order) > MAX_LISTED_CLASSES:
        order = np.argsort(-counts[:, 0], kind="stable").tolist()
        skipped = len(order) - MAX_LISTED_CLASSES
        order = [*order[: MAX_LISTED_CLASSES // 2], *order[-(MAX_LISTED_CLASSES // 2) :]]
    for position, label in enumerate(order):
        if skipped and position == MAX_LISTED_CLASSES // 2:
            rows.append([f"... {skipped:,} more", *([""] * len(names))])
        shares = percent(counts[label, 0] / totals[0]) if len(totals) and totals[0] else ""
        rows.append([overview.classes[label], *(f"{count:,}" for count in counts[label]), shares])
    table = Table(columns, [(*row, *[""] * (len(columns) - len(row))) for row in rows])
    return [line.rstrip() for line in table_text(table).split("\n")]
