"""The model card: what a model is, how it was trained, its results, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.config.names import data_name
from harness.config.settings import Config
from harness.data.preprocess import Preprocess
from harness.models.factory import module_of
from harness.tracking.metric_names import is_share
from harness.utils.plain import number, sub_mapping
from harness.utils.text import counted, markdown


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the model card as Markdown.

    Args:
        facts: the contents of `model.json` beside the weights: config, classes, preprocess, epoch, result.
    """
    config, preprocess = Config(**facts["config"]), Preprocess(**facts["preprocess"])
    result, size = sub_mapping(facts, "result"), preprocess.size
    figures = [
        f"| {markdown(key)} | {_figure(key, value)} |" for key, value in result.items() if isinstance(value, float)
    ]
    usage = ["import timm"]
    if module := module_of(facts):
        usage += [f"import {module}  # registers the model with timm"]
    usage += ['model = timm.create_model("local-dir:.", pretrained=True).eval()  # in this folder']
    usage += _GREY_USAGE if preprocess.channels == 1 else []
    usage += [
        f"logits = model(images)  # float [B, {preprocess.channels}, {size}, {size}], normalised -> [B, {len(facts['classes'])}]"
    ]
    lines = [
        "---", "library_name: timm", f"tags: [image-classification{', multi-label' * config.is_multilabel}]", "---", "",
        f"# {markdown(config.model)} on {markdown(data_name(config.data, config.data_dir))}", "",
        f"{counted(config.epochs, 'epoch', 'epochs')}, batch {config.batch_size}, {config.schedule} between {config.lr_min} and {config.lr_max}, seed {config.seed}.",
        f"The weights are those of epoch {markdown(facts.get('epoch', '?'))} ({markdown(result.get('chosen', 'not evaluated yet'))}).", "",
        *(["| metric | value |", "| --- | --- |", *figures, ""] if figures else []),
        f"Input: {_channels(preprocess.channels)}, {_RESIZING[preprocess.crop_mode]}, {size} x {size} pixels, values 0..1, normalised with mean {_triple(preprocess.mean)} and standard deviation {_triple(preprocess.std)}.", "",
        f"Classes, in the order of the logits: {', '.join(map(markdown, facts['classes']))}.", "",
        *_multilabel_lines(facts, config),
        "```python", *usage, "```", "",
        "timm's own scripts sort class folders in another order; with `--class-map class_map.txt` they use this one.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _multilabel_lines(facts: Mapping[str, Any], config: Config) -> list[str]:
    """Return how the logits of a model that predicts several labels per image become labels; empty for other models."""
    if not config.is_multilabel:
        return []
    values = facts.get("thresholds")
    thresholds = (
        values if isinstance(values, list) and len(values) == len(facts["classes"]) else [0.5] * len(facts["classes"])
    )
    rows = [
        f"| {markdown(name)} | {number(value):.6g} |" for name, value in zip(facts["classes"], thresholds, strict=True)
    ]
    text = "The model is multi-label: an image has each class whose probability, `logits.sigmoid()`, is at least its threshold."
    return [text, "", "| class | threshold |", "| --- | --- |", *rows, ""]


_RESIZING = {
    "center": "the centre of the resized image",
    "squash": "both sides resized, each by its own factor",
    "border": "the longer side resized, with borders of the mean colour",
}


# timm's transform leaves an image its channels: that of a colour image would not fit the model.
_GREY_USAGE = [
    "from PIL import Image",
    "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    'images = transform(Image.open("image.png").convert("L"))[None]  # of an image of 8 bits per channel',
]


def _channels(channels: int) -> str:
    """Return what the channels of the images are."""
    return {3: "RGB", 1: "grey (one channel; of colour images the luma, ITU-R 601)"}.get(
        channels, f"{channels} channels, each resized by itself"
    )


def _figure(key: str, value: float) -> str:
    return f"{100 * value:.2f} %" if is_share(key) else f"{value:.4f}"


def _triple(values: Sequence[float]) -> str:
    """Return the value of each channel with four significant digits."""
    return ", ".join(f"{value:.4g}" for value in values)
