"""Read recipe files and make the effective configuration: options over recipe over defaults."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from harness.config import yaml_io
from harness.config.automatic import peak_of
from harness.config.init_source import model_of
from harness.config.multilabel import multilabel_settings
from harness.config.names import FIXED_DATASETS, FROM_PYTHON, MAPPINGS, OTHER_WEIGHTS, data_of_path
from harness.config.settings import AUTO, Config, canonical_name, check_open_choices, coerce, setting_fields
from harness.config.stored import is_whole, with_former_defaults
from harness.config.words import settings_of
from harness.utils import plugins
from harness.utils.errors import UsageError, did_you_mean

AnyConfig: TypeAlias = Config | Mapping[str, Any] | str | Path | None  # what `as_config` takes
MODEL_SETTINGS = (
    "model_args",
    "lr_min",
    "lr_max",
    "lr_min_ratio",
    "head_lr_scale",
)  # of a recipe, for its own model only: an LR belongs to its model
CHOSEN_FOR_MODEL = (
    "optimizer",
    "weight_decay",
    "lr_min",
    "lr_max",
    "head_lr_scale",
)  # by recipes in which they are `auto`
# How many updates an epoch has depends on these.
STEP_SETTINGS = ("batch_size", "drop_last", "data", "data_dir", "val_fraction", "test_fraction")


def recipe_paths() -> dict[str, Path]:
    """Return the shipped recipes: name -> file."""
    folder = Path(str(resources.files("harness.config") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return the settings of a recipe: canonical name -> value.

    A recipe file may start from a shipped recipe, which its key `recipe` names. In the `config.yaml` of a run, which
    has every setting, that key only records which recipe the run was started with.

    Args:
        recipe: the name of a shipped recipe, or the path of a YAML file.

    Raises:
        UsageError: there is no such recipe, or one of its keys is not a setting.
    """
    path = recipe_paths().get(recipe)
    if path is None:
        path = Path(recipe).expanduser()
        if path.suffix in (".yaml", ".yml") and not os.path.lexists(path):
            raise UsageError(
                f"there is no recipe file {recipe} (in {Path.cwd()}); shipped recipes: {', '.join(recipe_paths())}"
            )
        if not os.path.lexists(path):
            raise UsageError(
                f"there is no recipe {recipe!r}{did_you_mean(recipe, recipe_paths())}; need {', '.join(recipe_paths())}, or the path of a YAML or JSON file"
            )
    values: dict[str, Any] = {}
    for key, value in yaml_io.read_yaml(path).items():
        try:
            name = canonical_name(key)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        if name in values:
            raise UsageError(f"{path}: {key!r} is given twice in different spellings; keep one of them")
        values[name] = value
    base = values.get("recipe")
    if base is None or is_whole(values):
        return {"recipe": recipe, **with_former_defaults(values)}
    if base not in recipe_paths():
        raise UsageError(f"{path}: recipe: {base!r} is not a shipped recipe{did_you_mean(str(base), recipe_paths())}")
    inherited = read_recipe(str(base))
    for name in replaced_weights(values):
        inherited.pop(name, None)
    return {**inherited, **values, "recipe": recipe}


def replaced_weights(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of weights that given ones replace, with the value for none: `pretrained` by `init`, and the reverse."""
    replaced = (OTHER_WEIGHTS[name] for name in OTHER_WEIGHTS if given.get(name))
    return {name: without for name, without in replaced if name not in given}


CIFAR_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")  # what torchvision unpacks into a data folder
CIFAR = ("cifar10", "cifar100")


def default_recipe(data: str) -> str:
    """Return the recipe where none is given: the default one for CIFAR, `auto` for other data."""
    return str(setting_fields()["recipe"].default) if data in CIFAR else AUTO


def data_of(data_dir: str, usual: str, is_named: bool = False) -> str:
    """Return the data set that `--data-dir` alone stands for.

    Args:
        usual: the data set that would be meant without `data_dir`.
        is_named: a recipe names it, so that a folder that is empty or missing is a place for a download.

    Returns:
        `table` or `folder` for a user's own images; `usual` where the folder has CIFAR's own files, or `usual` reads
        `data_dir` itself.
    """
    if data := data_of_path(data_dir):
        return data
    if usual not in FIXED_DATASETS and not usual.startswith(FROM_PYTHON):
        return usual
    path = Path(data_dir).expanduser()
    names = [name for name in os.listdir(path) if not name.startswith(".")] if path.is_dir() else []
    is_cifar = any(name.removesuffix(".tar.gz") in CIFAR_FOLDERS or name.startswith("cifar-10") for name in names)
    if is_cifar or (is_named and not names and not path.is_file()):
        return usual
    return "folder"


def _recipe_of_run(resume: str) -> str:
    """Return the settings of the run that `resume` names, as a recipe; empty where it names none.

    Raises:
        UsageError: there is no run of that name.
    """
    if resume in ("", "auto", "never"):
        return ""
    path = Path(resume).expanduser() / "config.yaml"
    if not os.path.lexists(path):
        if any(os.path.lexists(path.with_name(name)) for name in ("journal.jsonl", "status.json", "checkpoints")):
            raise UsageError(
                f"--resume {resume}: config.yaml cannot be read, so the settings of its run are not known; restore that file, or start a new run with --resume never"
            )
        raise UsageError(f"--resume {resume}: there is no run in that directory; `harness runs` lists the runs")
    return str(path)


def scaled_peak(peak_epoch: Any, epochs: Any, new_epochs: Any, name: str = "peak_epoch") -> Any:
    """Return an epoch at the same fraction of a run of another length; the same epoch where one of them is `auto`.

    Args:
        name: the setting that the epoch belongs to.
    """
    peak, former, present = (
        coerce(key, value) for key, value in ((name, peak_epoch), ("epochs", epochs), ("epochs", new_epochs))
    )
    return peak if AUTO in (peak, former, present) else float(peak * present / max(former, 1))


def scaled_schedule(values: Mapping[str, Any], given: Container[str], epochs: Any, new_epochs: Any) -> dict[str, Any]:
    """Return the settings of a schedule that count epochs, at the same fractions of a run of another length.

    Args:
        values: setting -> value; those that it lacks have their default.
        given: settings that are to stay as they are.
    """
    if coerce("epochs", new_epochs) == 0:  # nothing is trained
        return {}
    scaled: dict[str, Any] = {
        name: scaled_peak(_value_of(name, values), epochs, new_epochs, name)
        for name in ("peak_epoch", "warmup_epochs", "step_epochs")
        if name not in given and _value_of(name, values)
    }
    frozen, peak = _value_of("freeze_epochs", values), _value_of("peak_epoch", values)
    former, present = coerce("epochs", epochs), coerce("epochs", new_epochs)
    if "peak_epoch" in scaled and AUTO not in (peak, former, present) and 0 < frozen < min(peak, former, present):
        # The peak is at the same fraction of the epochs after those of the classifier alone, so that it stays behind them.
        scaled["peak_epoch"] = round(frozen + (peak - frozen) * (present - frozen) / (former - frozen), 4)
    if "milestones" not in given and (milestones := _value_of("milestones", values)):
        scaled["milestones"] = [f"{scaled_peak(item, epochs, new_epochs):g}" for item in milestones]
    return scaled


def first_comparison(config: Config) -> int:
    """Return the epoch before which no run is compared with others: half-way between the peak of the LR and the end.

    Around its peak a high learning rate looks worst, although it may end best.

    Raises:
        UsageError: the number of epochs is still to be chosen from the data.
    """
    if "epochs" in config.undecided:
        raise UsageError(
            "epochs=auto: runs are compared with each other from a certain epoch on; give a number of epochs"
        )
    is_peak = config.schedule == "one_cycle" or (config.schedule == "cosine" and not config.warmup_epochs)
    peak = config.peak_epoch if is_peak else config.warmup_epochs
    if is_peak and peak and "peak_epoch" in config.undecided:
        peak = peak_of(config.epochs, config.freeze_epochs)
    return max(1, math.ceil((peak + config.epochs) / 2))


def _model_of_weights(given: Mapping[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the model that the weights of `init` belong to; empty where a model is named.

    The weights that the options name replace those of the recipe.
    """
    for name in replaced_weights(given):
        values.pop(name, None)
    is_named = _value_of("model", values, AUTO) != AUTO
    init = given.get("init", "" if is_named else values.get("init", ""))
    if not init or "model" in given:
        return {}
    source = model_of(str(init))
    if "plugin" in source:
        source["plugin"] = tuple(dict.fromkeys([*coerce("plugin", values.get("plugin", ())), *source["plugin"]]))
    return source


def _value_of(name: str, values: Mapping[str, Any], default: Any = None) -> Any:
    """Return a setting of a recipe, converted to its type; its default, or another one, where the recipe does not have it."""
    return coerce(name, values.get(name, setting_fields()[name].default if default is None else default))


def _has_other_steps(given: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Return whether options change the updates of an epoch, in which the `extended` of a recipe counts.

    Another `data_dir` may have other images, unless the data set is one that is the same everywhere.
    """
    data = str(given.get("data", _value_of("data", values)))
    names = [name for name in STEP_SETTINGS if name != "data_dir" or data not in FIXED_DATASETS]
    return any(name in given and coerce(name, given[name]) != _value_of(name, values) for name in names)


def _for_another_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe without those that fit only its own model.

    In the `config.yaml` of a run whose recipe leaves some to the data (`auto`, `finetune`) they were chosen for that model, and
    are chosen anew for the other one.
    """
    kept = {name: value for name, value in values.items() if name not in MODEL_SETTINGS or str(value).lower() == AUTO}
    name = str(values.get("recipe", ""))
    base = read_recipe(name) if name in recipe_paths() else {}
    chosen = [setting for setting in CHOSEN_FOR_MODEL if base.get(setting) == AUTO]
    if "optimizer" in chosen:
        kept.pop("optimizer_args", None)
    return {**kept, **dict.fromkeys(chosen, AUTO)}


def with_implied(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe with those that images of several labels imply and neither it nor an option gives."""
    names = ("label_separator", "label_columns")
    if not any(coerce(name, given.get(name, values.get(name, ""))) for name in names):
        return dict(values)
    return {**values, **multilabel_settings({**values, **given})}


def make_config(options: Mapping[str, Any], recipe: str | None = None) -> Config:
    """Return the effective configuration: an option over the recipe over the default.

    If `epochs` is given without `peak_epoch`, the peak stays at the same fraction of the run, so that a recipe with
    fewer epochs keeps the shape of its schedule, and so do `warmup_epochs`, `step_epochs` and `milestones`; for a run that
    is resumed see `Schedule.extend`. Mappings such as `model_args` are added to those of the recipe. Without `model`, that of the
    weights of `init` is used, where they name it. The settings of a recipe that fit only its own model (`MODEL_SETTINGS`)
    are not used for another model. If `resume` is a run directory and there is
    no recipe, the settings of that run are used.

    Args:
        options: setting in any spelling -> value. The modules of `plugin` are imported when the model is made; those that
            only a recipe or the resumed run names are not.
        recipe: shipped name or path. If neither it nor `options["recipe"]` is given: `custom-resnet` for CIFAR, `auto` for other
            data, which a `data_dir` alone may name.

    Raises:
        UsageError: there is no such recipe or setting, or a value is not allowed.
    """
    given = settings_of(options)
    plugins.allow_plugins(coerce("plugin", given.get("plugin", ())))
    named = str(given.pop("recipe", None) or recipe or _recipe_of_run(str(given.get("resume", "auto"))))
    values = read_recipe(named) if named else {}
    if "data_dir" in given and "data" not in given:
        usual = str(values.get("data", setting_fields()["data"].default))
        given = {**given, "data": data_of(str(given["data_dir"]), usual, "data" in values)}
    values = values or read_recipe(default_recipe(str(given.get("data", setting_fields()["data"].default))))
    is_resumed = str(given.get("resume", "auto")) not in ("", "auto", "never")  # its schedule keeps what it has done
    extended: tuple[str, ...] = ()  # of the run whose settings the recipe is
    if not is_resumed and ("epochs" in given or (values.get("extended") and _has_other_steps(given, values))):
        extended = coerce("extended", values.pop("extended", ()))
    if ("epochs" in given or extended) and not is_resumed:
        epochs = _value_of("epochs", values)
        former = extended[0].partition(":")[2] if extended else epochs
        values |= scaled_schedule(values, given, former, given.get("epochs", epochs))
    source = _model_of_weights(given, values)
    usual_model = _value_of("model", values)
    model = given.get("model", source.get("model"))
    if model is not None and model != usual_model and usual_model != AUTO:
        values = _for_another_model(values)
    values |= source
    if "schedule" in given and given["schedule"] != values.get("schedule", setting_fields()["schedule"].default):
        values.pop("schedule_args", None)  # of another schedule
    if "optimizer" in given and given["optimizer"] != values.get("optimizer", setting_fields()["optimizer"].default):
        values.pop("optimizer_args", None)  # of another optimizer
    if "loss" in given and given["loss"] != values.get("loss", setting_fields()["loss"].default):
        values.pop("loss_args", None)  # of another loss
    if "transforms" in given and coerce("transforms", given["transforms"]) != coerce(
        "transforms", values.get("transforms", ())
    ):
        values.pop("transform_args", None)  # of other transforms
    for name in MAPPINGS:
        if values.get(name) and name in given:
            given[name] = {**coerce(name, values[name]), **coerce(name, given[name])}
    if "lr_min" in given and "lr_min_ratio" not in given:
        values.pop("lr_min_ratio", None)
    config = Config(**{**with_implied(values, given), **given})
    check_open_choices(config)
    if config.lr_min_ratio is not None and "lr_min" in given and config.lr_min != coerce("lr_min", given["lr_min"]):
        raise UsageError(
            f"lr_min={given['lr_min']} and lr_min_ratio={config.lr_min_ratio:g} both give LRMIN; keep one of them"
        )
    return config


def as_config(config: AnyConfig, settings: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration that a function of the Python API is called with.

    Args:
        config: a configuration, settings as `make_config` takes them, or a recipe by its name or path; None: no settings.
        settings: more settings, in any spelling; they win.

    Raises:
        UsageError: it is none of these, or `make_config` refuses it.
    """
    match config:
        case Config():
            return config.replace(**settings_of(settings or {})) if settings else config
        case None | Mapping():
            return make_config({**settings_of(config or {}), **settings_of(settings or {})})
        case str() | Path():
            return make_config(settings or {}, str(config))
    raise UsageError(
        f"need a Config, a dictionary of settings such as {{'epochs': 3}}, or the name or path of a recipe; got {type(config).__name__}"
    )
