"""Recipe files, and the configuration that an option, a recipe and the defaults make together."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from harness.config import yaml_io
from harness.config.settings import Config, canonical_name, coerce, setting_fields
from harness.utils.errors import UsageError, did_you_mean


def recipe_paths() -> dict[str, Path]:
    """The shipped recipes: name -> file."""
    folder = Path(str(resources.files("harness.config") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(recipe: str) -> dict[str, Any]:
    """The settings in a recipe, a shipped name or the path of a YAML file, under their proper names.

    A YAML file may name a shipped `recipe` of its own to start from. A run's `config.yaml`, which has every setting,
    keeps the name of the recipe that it came from.

    Raises:
        UsageError: there is no such recipe, or it has a key that is no setting.
    """
    path = recipe_paths().get(recipe)
    if path is None:
        path = Path(recipe).expanduser()
        if path.suffix in (".yaml", ".yml") and not path.is_file():
            raise UsageError(
                f"there is no recipe file {recipe} (in {Path.cwd()}); shipped: {', '.join(recipe_paths())}"
            )
        if not path.is_file():
            raise UsageError(
                f"no recipe {recipe!r}{did_you_mean(recipe, recipe_paths())}; shipped: {', '.join(recipe_paths())}, or the path of a YAML file"
            )
    values: dict[str, Any] = {}
    for key, value in yaml_io.read_yaml(path).items():
        try:
            name = canonical_name(key)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        if name in values:
            raise UsageError(f"{path}: {key!r} is given twice, in two spellings; keep one of them")
        values[name] = value
    base = values.get("recipe")
    if base is None or len(values) >= len(setting_fields()) // 2:
        return {"recipe": recipe, **values}
    if base not in recipe_paths():
        raise UsageError(f"{path}: recipe: {base!r} is no shipped recipe{did_you_mean(str(base), recipe_paths())}")
    return {**read_recipe(str(base)), **values, "recipe": recipe}


def make_config(options: Mapping[str, Any], recipe: str | None = None) -> Config:
    """The effective configuration: an option over the recipe over the default.

    When `epochs` is given without `peak_epoch`, the peak keeps its share of the run: a recipe compressed to fewer
    epochs keeps its shape. `resume` with a run folder and no recipe takes that run's settings.

    Args:
        options: settings given by hand, under any spelling of their names.
        recipe: shipped name or path; `custom-resnet` when neither it nor `options["recipe"]` is given.
    """
    given = {canonical_name(key): value for key, value in options.items()}
    resumed = Path(str(given.get("resume", ""))).expanduser() / "config.yaml"
    recipe = str(
        given.pop("recipe", None) or recipe or (resumed if resumed.is_file() else setting_fields()["recipe"].default)
    )
    values = read_recipe(recipe)
    if "epochs" in given and "peak_epoch" not in given:
        usual = {
            name: coerce(name, values.get(name, setting_fields()[name].default)) for name in ("epochs", "peak_epoch")
        }
        values["peak_epoch"] = usual["peak_epoch"] * coerce("epochs", given["epochs"]) / max(usual["epochs"], 1)
    return Config(**{**values, **given})
