"""A model card: what a model is, how it was trained, what it reached, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OURS = ("custom_resnet", "resnet18_cifar")


def model_card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        facts: what stands beside the weights in `model.json`: config, classes, preprocess, epoch, result.
    """
    config, result, takes = facts["config"], facts.get("result", {}), facts["preprocess"]
    figures = [f"| {key} | {_figure(key, value)} |" for key, value in result.items() if isinstance(value, float)]
    size = takes["size"]
    use = ["import timm"]
    if config["model"] in OURS:
        use += ["import harness.models.cifar_resnet  # registers the model with timm"]
    use += [
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
        f"logits = model(images)  # float [B, 3, {size}, {size}], normalised -> [B, {len(facts['classes'])}]",
    ]
    lines = [
        "---", "library_name: timm", "tags: [image-classification]", "---", "",
        f"# {config['model']} on {_plain(config['data'])}", "",
        f"{config['epochs']} epochs, batch {config['batch_size']}, {config['schedule']} between {config['lr_min']} and {config['lr_max']}, seed {config['seed']}.",
        f"The weights are those of epoch {facts.get('epoch', '?')} ({result.get('chosen', 'not judged yet')}).", "",
        *(["| figure | value |", "| --- | --- |", *figures, ""] if figures else []),
        f"Input: RGB, {size} x {size} pixels, values 0..1, less the mean {takes['mean']}, over the deviation {takes['std']}.", "",
        f"Classes, in the order of the logits: {', '.join(map(_plain, facts['classes']))}.", "",
        "```python", *use, "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _plain(name: object) -> str:
    """A name that may be anybody's, with nothing in it that Markdown or HTML would act on."""
    return "".join(
        f"&#{ord(letter)};" if letter in "<>&`*_[]|!\\" or not letter.isprintable() else letter for letter in str(name)
    )


def _figure(key: str, value: float) -> str:
    return f"{100 * value:.2f} %" if "/acc" in key else f"{value:.4f}"
