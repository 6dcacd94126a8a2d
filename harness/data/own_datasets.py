"""Data sets of a user's own: registered by a plug-in under a name, or given to a Python function as objects.

A data set is any object with a length whose items are an image and a label: a torch `Dataset`, one of torchvision, one of
Hugging Face's `datasets`. Its images are taken as they are before augmentation and normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.config.names import BUILT_IN_DATASETS, FROM_PYTHON, SPLIT_WORDS, SplitName
from harness.config.recipe import AnyConfig, as_config
from harness.config.settings import Config
from harness.data.dataset import Split, in_memory, spread_indices, with_classes
from harness.data.image_io import GREY, RGB, Picture, to_channels
from harness.data.listing import StoredData
from harness.data.timm_datasets import decode_all
from harness.utils.errors import DataError, HarnessError, UsageError, first_line
from harness.utils.registry import find_registered, register
from harness.utils.text import escape_unprintable

IMAGE_KEYS, LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "target", "fine_label")
_given: dict[str, Any] = {}  # name -> the object, while the function that got it runs


def register_dataset(maker: Any = None, *, name: str = "") -> Any:
    """Register a function that returns a data set: `--data NAME --plugin MODULE` trains on it.

    The function gets the path of `data_dir`. It returns a data set, of which a test set is held out, or a mapping of
    `train`, `val` and `test` to data sets. Their items are (image, label) or a mapping with both; an image is PIL, uint8
    [H, W, 3] or [3, H, W], or floats 0..1 (with `in_chans` another number of channels); a label is a whole number. `classes`, where a data set has them, names them.

    Args:
        name: by default that of the function.

    Raises:
        UsageError: the name is one of a data set of `harness`, or another module has registered it.
    """
    return register("dataset", maker, name=name, taken=BUILT_IN_DATASETS)


@contextmanager
def named_data(data: Any) -> Iterator[str]:
    """Return the name under which `data`, an object or a mapping of splits to objects, is read within the context.

    It is `python/` and the name of the object's class, as it stands in the settings of a run.
    """
    name = object_name(data)
    _given[name] = data
    try:
        yield name
    finally:
        _given.pop(name, None)


@contextmanager
def config_of_call(config: AnyConfig, settings: Mapping[str, Any]) -> Iterator[Config]:
    """Yield the configuration that a function of the Python API is called with, whose data may be an object.

    Args:
        config, settings: as for `as_config`; `data` in one of them, or a mapping of `train`, `val` and `test` in place of
            `config`, may be a data set as an object, which is read within the context.

    Raises:
        UsageError: they are no settings.
    """
    if isinstance(config, Mapping) and "train" in config and "data" not in settings:
        config, settings = None, {**settings, "data": config}
    data = settings.get("data", config.get("data") if isinstance(config, Mapping) else None)
    if data is None or isinstance(data, str):
        yield as_config(config, settings)
    else:
        with named_data(data) as name:
            yield as_config(config, {**settings, "data": name})


def object_name(data: Any) -> str:
    """Return what `data` is called in settings: `python/` and the name of its class."""
    if isinstance(data, Mapping):
        data = next(iter(data.values()), None)
    while hasattr(data, "dataset"):  # a `Subset`
        data = data.dataset
    return FROM_PYTHON + re.sub(r"\W", "", type(data).__name__, flags=re.ASCII)


def read_own_dataset(config: Config, needs_train: bool = True) -> StoredData | None:
    """Return the data set that a plug-in has registered or that a Python function was given; None for any other name.

    Args:
        needs_train: whether data without training images is refused.

    Raises:
        UsageError: the object is not at hand, or the items make no sense.
        DataError: the plug-in's function fails, or there are no images.
    """
    name = config.data
    if name.startswith(FROM_PYTHON) and name not in _given:
        raise UsageError(
            f"data={name} was an object that a Python program gave to harness; give it again (harness.run(config, data=...)), or set --data and --data-dir to where its images are"
        )
    if name in _given:
        return _read(_given[name], config, needs_train)
    if "/" in name:
        return None
    if (maker := find_registered("dataset", name, config.plugin)) is None:
        return None
    try:
        return _read(maker(Path(config.data_dir).expanduser()), config, needs_train)
    except HarnessError:
        raise
    except Exception as error:
        raise DataError(
            f"data={name}: the plug-in's function raised {type(error).__name__}: {escape_unprintable(first_line(error))}"
        ) from error


def _read(data: Any, config: Config, needs_train: bool) -> StoredData:
    objects: dict[SplitName, Any] = {}
    for key, value in data.items() if isinstance(data, Mapping) else [("train", data)]:
        split = SPLIT_WORDS.get(str(key).lower())
        if split is None or split in objects:
            raise UsageError(f"data={config.data}: {key!r} is none of train, val and test, or one of them twice")
        if value is not None:
            objects[split] = value
    if not objects or (needs_train and "train" not in objects):
        raise UsageError(
            f"data={config.data} has {' and '.join(objects) or 'nothing'}; need train, and val or test where there are such"
        )
    splits = {name: _read_split(name, dataset, config) for name, dataset in objects.items()}
    names = {name: _class_names(dataset) for name, dataset in objects.items()}
    classes = names.get("train") or next(filter(None, names.values()), None)
    if classes is None:
        highest = max(int(split.labels.max(initial=0)) for split in splits.values())
        classes = [str(label) for label in range(highest + 1)]
    return StoredData(
        classes, {name: with_classes(split, names[name], classes, config.data) for name, split in splits.items()}
    )


class OwnImages:
    """The images of a user's data set as a source of a `Split`, each converted when it is accessed."""

    def __init__(
        self,
        dataset: Any,
        name: SplitName,
        labels: np.ndarray,
        grey_range: tuple[float, float] | None,
        channels: int = RGB,
    ) -> None:
        self.dataset, self.name, self.labels, self.grey_range = dataset, name, labels, grey_range
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        image, _ = _item(self.dataset, index, self.name)
        picture = item_picture(image, f"{self.name}/{index}", self.grey_range, self.channels)
        return picture, int(self.labels[index])


def item_picture(image: Any, name: str, grey_range: tuple[float, float] | None = None, channels: int = RGB) -> Picture:
    """Return the image of an item of a user's data set with `channels` channels: RGB by default, else by the rules of `to_channels`.

    Args:
        image: PIL; or an array or tensor [H, W], [H, W, C] or [C, H, W] of uint8, of uint16 (grey), or of floats 0..1.
        name: that messages use.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(image, Image.Image):
        try:
            return to_channels(image, channels, grey_range)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from None
    if not isinstance(image, Tensor | np.ndarray):
        raise DataError(
            f"{name} is a {type(image).__name__}; need a PIL image, or an array or tensor of uint8 or of floats 0..1"
        )
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    is_converted = channels in (RGB, GREY)
    known = (1, 3, 4) if is_converted else (channels,)  # of an array
    if pixels.ndim == 3 and pixels.shape[0] in known and (isinstance(image, Tensor) or pixels.shape[2] not in known):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    has_channels = pixels.ndim == 3 and pixels.shape[2] in known
    if not (has_channels or (pixels.ndim == 2 and is_converted)) or not pixels.size:
        need = f"[H, W, {channels}] or [{channels}, H, W]"
        need = "[H, W], [H, W, 3] or [3, H, W]" if is_converted else f"{need}, since in_chans={channels}"
        raise DataError(f"{name} has the shape {list(image.shape)}; need {need}")
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"{name} has values {low:.3g} to {high:.3g}; return images without normalisation (uint8, or floats 0..1), harness normalises them"
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8 and not (pixels.dtype == np.uint16 and pixels.ndim == 2):
        raise DataError(f"{name} is of {pixels.dtype}; need uint8, floats 0..1, or uint16 for grey images")
    pixels = np.ascontiguousarray(pixels)
    return item_picture(Image.fromarray(pixels), name, grey_range, channels) if is_converted else pixels


def _item(dataset: Any, index: int, name: SplitName) -> tuple[Any, Any]:
    """Return image and label of an item.

    Raises:
        UsageError: it is no pair of both.
    """
    item = dataset[index]
    if isinstance(item, Mapping):
        image, label = (next((item[key] for key in keys if key in item), None) for keys in (IMAGE_KEYS, LABEL_KEYS))
        if image is None or label is None:
            raise UsageError(f"{name}/{index} has {', '.join(map(str, item))}; need an image and a label")
        return image, label
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise UsageError(f"{name}/{index} is a {type(item).__name__}; need (image, label) or a mapping with both")
    return item[0], item[1]


def _read_split(name: SplitName, dataset: Any, config: Config) -> Split:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UsageError(
            f"the {name} data set is a {type(dataset).__name__} without a length or items; need a torch Dataset with both"
        )
    if not len(dataset):
        raise DataError(f"the {name} data set holds no images")
    labels = _labels(dataset, name)
    source = OwnImages(dataset, name, labels, config.grey_limits(), config.in_chans)
    for index in spread_indices(len(labels), 3):
        if not np.array_equal(np.asarray(source[index][0]), np.asarray(source[index][0])):
            raise UsageError(
                f"{name}/{index} is another image each time it is read; leave random transforms out, harness augments the training images (--augment)"
            )
    ids = getattr(dataset, "ids", None)
    ids = [escape_unprintable(str(id)) for id in ids] if isinstance(ids, Sequence) and len(ids) == len(labels) else None
    ids = ids or [f"{name}/{index}" for index in range(len(labels))]
    pixels = decode_all(source)
    return Split(name, labels, ids, None, source) if pixels is None else in_memory(name, pixels, labels, ids)


def _labels(dataset: Any, name: SplitName) -> np.ndarray:
    """Return the labels, int64 [N], from a list of them where the items agree with it, else from every item.

    Raises:
        UsageError: one is no whole number from 0 on.
    """
    listed = _listed_labels(dataset)
    if listed is not None and len(listed) == len(dataset):
        sample = spread_indices(len(dataset))
        labels = [_label(listed[index], f"{name}/{index}") for index in range(len(listed))]
        if all(_label(_item(dataset, index, name)[1], f"{name}/{index}") == labels[index] for index in sample):
            return np.array(labels, dtype=np.int64)
    return np.array(
        [_label(_item(dataset, index, name)[1], f"{name}/{index}") for index in range(len(dataset))], dtype=np.int64
    )


def _listed_labels(dataset: Any) -> Any:
    """Return the list of labels that a data set has; None without one."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):  # of Hugging Face
        key = next((key for key in LABEL_KEYS if key in features), None)
        return None if key is None else list(dataset[key])
    inner = getattr(dataset, "dataset", None)
    if isinstance(dataset, torch.utils.data.Subset) and (listed := _listed_labels(inner)) is not None:
        return [listed[index] for index in dataset.indices]
    listed = getattr(dataset, "targets", None)
    if listed is None:
        listed = getattr(dataset, "labels", None)
    return listed if isinstance(listed, Sequence | np.ndarray | Tensor) else None


def _label(value: Any, name: str) -> int:
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise UsageError(
            f"{name} has the label {str(value)[:40]!r}; need a whole number from 0 on, an index of its classes"
        )
    return int(value)


def _class_names(dataset: Any) -> list[str] | None:
    """Return the names of the classes in the order of the labels; None where the data set has none."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        names = next((getattr(features[key], "names", None) for key in LABEL_KEYS if key in features), None)
    else:
        names = getattr(dataset, "classes", None)
    if names is None and hasattr(dataset, "dataset"):
        return _class_names(dataset.dataset)
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        return None
    return [escape_unprintable(str(name)) for name in names]
