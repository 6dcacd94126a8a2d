"""What a data set holds, before anything is trained on it: splits, classes, sizes, kinds, broken and repeated images."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any, TypeAlias

import numpy as np

from harness.config.automatic import IMBALANCE
from harness.config.names import REPORTED_SPLITS, SPLIT_LABELS, SPLIT_NAMES, SplitName
from harness.config.settings import Config
from harness.data.balance import MAKE_UP
from harness.data.dataset import Split, spread_indices
from harness.data.image_io import GREY, RGB, ImageFacts, inspect_image, is_grey, pixel_digest, read_image
from harness.data.listing import ListedSplit, grey_notes, pair_list, sample_files, short_list, unreadable_text
from harness.data.multilabel import class_counts
from harness.data.preprocess import MIN_CUT_SHARE
from harness.data.registry import list_files, read_stored
from harness.utils.environment import usable_cpus
from harness.utils.errors import DataError
from harness.utils.text import counted, escape_unprintable

CHUNK_IMAGES = 512  # read between two looks at the results, so that few are kept waiting
FEW_IMAGES = 10  # of a class to train on
IN_MEMORY = "decoded"  # the format of an image that is no file


@dataclass
class SplitOverview:
    """One split.

    Attributes:
        counts: int64 [C], images of each class.
        facts: position of each image that was read -> what it is.
    """

    name: SplitName
    source: ListedSplit | Split
    counts: np.ndarray
    facts: dict[int, ImageFacts] = field(default_factory=dict)

    @property
    def labels_per_image(self) -> tuple[float, int] | None:
        """The mean number of labels of an image, and the images without any; None where each image has one."""
        labels = self.source.labels
        if labels.ndim < 2:
            return None
        numbers = labels.sum(1, dtype=np.int64)
        return float(numbers.mean()) if len(numbers) else 0.0, int((numbers == 0).sum())

    def has_class(self, index: int, label: int) -> bool:
        """Return whether an image has a class."""
        own = self.source.labels[index]
        return bool(own[label]) if own.ndim else bool(own == label)

    def picture(self, index: int, grey_range: tuple[float, float] | None, channels: int = RGB) -> np.ndarray:
        """Return an image, uint8 [H, W, channels]."""
        if isinstance(self.source, Split):
            return self.source.picture(index)
        return read_image(self.source.files[index], "", grey_range, channels)


@dataclass
class DataOverview:
    """What a data set holds.

    Attributes:
        origin: where splits and classes come from.
        broken: id of an image -> why it cannot be read, of the images that were read.
        notes: sentences on files that are not used.
        advice: a sentence for each problem, with what helps.
    """

    classes: tuple[str, ...]
    splits: dict[SplitName, SplitOverview]
    origin: str
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def is_multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return any(split.labels_per_image is not None for split in self.splits.values())

    @property
    def num_images(self) -> int:
        """The images of all splits."""
        return sum(len(split.source) for split in self.splits.values())

    @property
    def facts(self) -> list[ImageFacts]:
        """What each image is that was read, and could be."""
        return [facts for split in self.splits.values() for facts in split.facts.values() if not facts.error]


_LabelledId: TypeAlias = tuple[str, tuple[str, ...]]  # the id of an image, and its classes


@dataclass(frozen=True)
class Repeats:
    """Images with the same pixels, among those that were read.

    Attributes:
        within: split -> (image, an earlier one of the split that it repeats), by their ids.
        between: two splits -> (image of the second, one of the first that it is too).
        conflicts: two equal images with different classes, each by its id and its class.
        contradicting: the pairs of `within` and `between` whose images have different classes.
    """

    within: Mapping[SplitName, Sequence[tuple[str, str]]]
    between: Mapping[tuple[SplitName, SplitName], Sequence[tuple[str, str]]]
    conflicts: Sequence[tuple[str, str]]
    contradicting: frozenset[tuple[str, str]]


def examine(config: Config, limit: int) -> DataOverview:
    """Return what a data set holds; problems that would refuse a run become advice, where anything can be listed.

    Args:
        limit: read at most this many images, evenly spread over each split; 0: all.

    Raises:
        DataError: there is no data, or it cannot be listed.
        UsageError: there is no such data set, or the settings do not fit it.
    """
    advice: list[str] = []
    try:
        listing = list_files(config)
    except DataError as error:  # a lenient look tells more than the reason alone
        try:
            listing = list_files(config, known_classes=())
        except DataError:
            raise error from None
        advice.append(f"a run refuses this data: {error}")
    if listing is None:
        stored = read_stored(config.replace(bad_images="skip"))
        sources: Mapping[SplitName, ListedSplit | Split] = {**stored.splits}
        classes, notes = tuple(stored.classes), list(stored.notes)
        overview = DataOverview(classes, {}, f"data set {config.data}", notes=notes)
        overview.broken = dict.fromkeys(stored.skipped, "unreadable")
    else:
        sources = {**listing.splits}
        notes = [*listing.notes, *([] if config.grey_range else grey_notes(sample_files(listing.splits.values())))]
        overview = DataOverview(listing.classes, {}, listing.origin, dict(listing.problems), notes)
    for name in SPLIT_NAMES:
        if name in sources:
            counts = class_counts(sources[name].labels, len(overview.classes))
            overview.splits[name] = SplitOverview(name, sources[name], counts)
    total = overview.num_images
    for split in overview.splits.values():
        share = len(split.source) if not limit else max(1, limit * len(split.source) // max(total, 1))
        _read_facts(split, min(share, len(split.source)), config, overview.broken)
    overview.advice = [*advice, *_advice(overview, config)]
    return overview


def _read_facts(split: SplitOverview, count: int, config: Config, broken: dict[str, str]) -> None:
    """Read images of a split, evenly spread, in threads: the decoders release the GIL."""
    source, grey_range, channels = split.source, config.grey_limits(), config.in_chans

    def inspect(index: int) -> ImageFacts:
        if isinstance(source, ListedSplit):
            return inspect_image(source.files[index], grey_range, channels)
        pixels = source.picture(index)
        height, width, found = pixels.shape
        mode = {RGB: "RGB", GREY: "L"}.get(found, f"{found} channels")
        return ImageFacts(IN_MEMORY, mode, width, height, is_grey=is_grey(pixels), digest=pixel_digest(pixels))

    rest = iter(spread_indices(len(source), count))
    with ThreadPoolExecutor(min(16, usable_cpus()), "inspect") as pool:
        while chunk := list(islice(rest, CHUNK_IMAGES)):
            for index, facts in zip(chunk, pool.map(inspect, chunk), strict=True):
                split.facts[index] = facts
                if facts.error:
                    broken[str(source.ids[index])] = facts.error


def repeats(overview: DataOverview) -> Repeats:
    """Return which of the images that were read have the same pixels."""
    places: dict[bytes, list[tuple[SplitName, int]]] = defaultdict(list)
    for name, split in overview.splits.items():
        for index, facts in split.facts.items():
            if facts.digest:
                places[facts.digest].append((name, index))
    within: dict[SplitName, list[tuple[str, str]]] = defaultdict(list)
    between: dict[tuple[SplitName, SplitName], list[tuple[str, str]]] = defaultdict(list)
    conflicts: list[tuple[str, str]] = []
    contradicting: set[tuple[str, str]] = set()
    for group in places.values():
        if len(group) < 2:
            continue
        equal = {
            name: [
                (str(split.source.ids[index]), _label_names(overview, (at, index))) for at, index in group if at == name
            ]
            for name, split in overview.splits.items()
        }
        for name, images in equal.items():
            for place, image in enumerate(images[1:], 1):
                within[name].append(_pair(image, images[:place], contradicting))
        for first, second in combinations([name for name in SPLIT_NAMES if equal.get(name)], 2):
            between[first, second] += [_pair(image, equal[first], contradicting) for image in equal[second]]
        labels = [_label_names(overview, place) for place in group]
        if len(set(labels)) > 1:
            other = next(place for place, names in zip(group, labels, strict=True) if names != labels[0])
            conflicts.append((_id(overview, group[0]), _id(overview, other)))
    return Repeats(dict(within), dict(between), conflicts, frozenset(contradicting))


def _pair(image: _LabelledId, others: Sequence[_LabelledId], contradicting: set[tuple[str, str]]) -> tuple[str, str]:
    """Return the ids of an image and of one of the images equal to it, which has its label where one of them does.

    Args:
        image, others: (id, classes).
        contradicting: gains the pair where none has.
    """
    same = next((other for other in others if other[1] == image[1]), others[0])
    pair = (image[0], same[0])
    if same[1] != image[1]:
        contradicting.add(pair)
    return pair


def _id(overview: DataOverview, place: tuple[SplitName, int]) -> str:
    source = overview.splits[place[0]].source
    return f"{escape_unprintable(str(source.ids[place[1]]))} ({', '.join(_label_names(overview, place)) or 'no label'})"


def _label_names(overview: DataOverview, place: tuple[SplitName, int]) -> tuple[str, ...]:
    """Return the classes of an image."""
    label = overview.splits[place[0]].source.labels[place[1]]
    indices = np.flatnonzero(label) if label.ndim else [label]
    return tuple(overview.classes[int(index)] for index in indices)


def _advice(overview: DataOverview, config: Config) -> Iterator[str]:
    """Yield a sentence for each problem, with what helps."""
    if overview.broken:
        read = sum(not facts.error for split in overview.splits.values() for facts in split.facts.values())
        yield unreadable_text(overview.broken, read + len(overview.broken))
    yield from _class_advice(overview)
    if not {"val", "test"} & overview.splits.keys():
        yield (
            f"there is no test split: a run holds out {config.test_fraction:.0%} of the images, the same ones for every seed (--test-fraction)"
        )
    yield from _repeat_advice(repeats(overview))
    yield from _image_advice(overview.facts, config)


def _class_advice(overview: DataOverview) -> Iterator[str]:
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in overview.classes:
        spellings[re.sub(r"[\s_-]+", " ", name.casefold()).strip()].append(name)
    for spelling, names in spellings.items():
        if spelling and len(names) > 1:
            yield (
                f"the classes {short_list(names)} differ only in case, spaces, dashes or underscores; give them one name if they are one class"
            )
    if (train := overview.splits.get("train")) is not None and len(overview.classes) > 1:
        smallest, largest = int(train.counts.argmin()), int(train.counts.argmax())
        few, many = int(train.counts[smallest]), int(train.counts[largest])
        if few * IMBALANCE <= many:
            remedy, figure = MAKE_UP, "recall"
            if overview.is_multilabel:
                remedy, figure = (
                    "--class-weights balanced weights the images that have a rare class",
                    "average precision",
                )
            yield (
                f"the classes are unbalanced: {overview.classes[largest]} has {many:,} training images and {overview.classes[smallest]} {few:,}; read the {figure} of each class (per_class.csv), not the {'mAP' if overview.is_multilabel else 'accuracy'} alone; {remedy}"
            )
        scarce = [name for name, count in zip(overview.classes, train.counts, strict=True) if count < FEW_IMAGES]
        if scarce:
            yield (
                f"{counted(len(scarce), 'class has', 'classes have')} fewer than {FEW_IMAGES} training images ({short_list(scarce)}); add images, or start from pretrained weights (--pretrained)"
            )
    for name in REPORTED_SPLITS:
        split = overview.splits.get(name)
        absent = (
            [label for label, count in zip(overview.classes, split.counts, strict=True) if not count] if split else []
        )
        if absent:
            yield f"{counted(len(absent), 'class has', 'classes have')} no {SPLIT_LABELS[name]} image ({short_list(absent)}); {'its' if len(absent) == 1 else 'their'} {'average precision' if overview.is_multilabel else 'accuracy'} stays unknown"


def _repeat_advice(repeated: Repeats) -> Iterator[str]:
    # A pair with two classes is reported once, below: after removing the wrong one no repeated image is left.
    for (first, second), pairs in repeated.between.items():
        if not (same := _agreeing(pairs, repeated)):
            continue
        count = len(same)
        yield (
            f"{counted(count, f'{SPLIT_LABELS[second]} image is a', f'{SPLIT_LABELS[second]} images are')} {SPLIT_LABELS[first]} image{'s' * (count != 1)} too ({pair_list(same)}); remove {'it' if count == 1 else 'them'} from one of the two, since the accuracy on {'it' if count == 1 else 'them'} says nothing"
        )
    for name, pairs in repeated.within.items():
        if same := _agreeing(pairs, repeated):
            yield f"{counted(len(same), f'{SPLIT_LABELS[name]} image repeats', f'{SPLIT_LABELS[name]} images repeat')} another one of the split ({pair_list(same)}); remove {'it, since it counts' if len(same) == 1 else 'them, since they count'} twice"
    if repeated.conflicts:
        named = pair_list(repeated.conflicts)
        yield (
            f"{counted(len(repeated.conflicts), 'image stands', 'images stand')} under two classes: {named}; remove the one with the wrong label"
        )


def _agreeing(pairs: Sequence[tuple[str, str]], repeated: Repeats) -> list[tuple[str, str]]:
    return [pair for pair in pairs if pair not in repeated.contradicting]


def _image_advice(facts: Sequence[ImageFacts], config: Config) -> Iterator[str]:
    deep = sum(one.is_deep for one in facts)
    if deep and not config.grey_range:
        yield (
            f"{counted(deep, 'image is', 'images are')} grey and deeper than 8 bits: the range that a file declares, 0 to 65535 for most, becomes black to white; --grey-range sets another"
        )
    if facts and config.in_chans == RGB and all(one.is_grey for one in facts):
        yield "all images that were read are grey: --in-chans 1 gives the network one channel (weights to start from are adapted); without it, with --recipe auto too, each image has three equal ones"
    if transparent := sum(one.is_transparent for one in facts):
        yield f"{counted(transparent, 'image has', 'images have')} transparent areas, which become white; paint them over where another colour is meant"
    if animated := sum(one.is_animated for one in facts):
        yield f"{counted(animated, 'image has', 'images have')} several frames, of which the first is used; save the frames as files to use them all"
    sides = [(one.width, one.height) for one in facts]
    cut = float(np.mean([1 - min(side) / max(side) for side in sides])) if sides else 0.0
    if cut >= MIN_CUT_SHARE and config.resize in ("auto", "crop"):
        yield (
            f"the images are not square: a centre crop cuts {cut:.0%} off their area (mean of the {len(sides):,} that were read, of all splits); --resize squash or letterbox keeps all of it"
        )


def size_summary(facts: Sequence[ImageFacts]) -> dict[str, Any]:
    """Return min, median and max of widths and heights in pixels, and the number of different sizes."""
    if not facts:
        return {}
    summary: dict[str, Any] = {"different": len({(one.width, one.height) for one in facts})}
    for side in ("width", "height"):
        values = [getattr(one, side) for one in facts]
        summary[side] = {"min": min(values), "median": int(np.median(values)), "max": max(values)}
    return summary
