"""The text and numbers of a run's page: results, configuration, time by phase, environment, commands to reproduce it."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.augmentation import NO_POLICY
from harness.config.names import REPORTED_SPLITS, SELECTION_TEXTS, SPLIT_LABELS
from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config, setting_fields
from harness.reporting.html.run_data import RunData
from harness.tracking.chosen_settings import read_choices
from harness.tracking.metric_names import is_unbalanced
from harness.tracking.run_dir import RunState, resume_command
from harness.tracking.run_list import has_diverged
from harness.utils.errors import HarnessError
from harness.utils.plain import number, setting_text, sub_mapping
from harness.utils.stats import share_interval
from harness.utils.text import counted, duration, percent, printable

FINISHED = RunState.FINISHED
STATE_SENTENCES: dict[str, str] = {
    RunState.FINISHED: "The run finished.",
    RunState.RUNNING: "The run is still running: this page shows what was logged when it was generated.",
    RunState.FAILED: "The run failed.",
    RunState.UNREADABLE: "The settings of the run, config.yaml, are gone.",
    RunState.CRASHED: "The run crashed: its process ended without recording why.",
    RunState.PREEMPTED: "The run was preempted; its state is saved.",
    RunState.INTERRUPTED: "The run was interrupted; its state is saved.",
}


@dataclass(frozen=True)
class Fact:
    """One headline number: its name, the formatted value, and how it was obtained."""

    name: str
    value: str
    note: str = ""


MACRO_NOTES = {
    "balanced_acc": "mean recall of the classes, each counted the same",
    "f1_macro": "mean F1 of the classes, each counted the same",
}


@dataclass(frozen=True)
class Setting:
    """A setting of the run; `recipe_value` is its recipe's value where that differs."""

    name: str
    value: str
    recipe_value: str = ""
    changed: bool = False


@dataclass(frozen=True)
class ChosenSetting:
    """A setting that was `auto`, the value that was chosen for it, and why."""

    name: str
    value: str
    reason: str


def headline(run: RunData) -> list[Fact]:
    """Return the headline numbers of a run, each with how it was chosen."""
    facts = _multilabel_facts(run) if run.is_multilabel else []
    for split in REPORTED_SPLITS:
        name = SPLIT_LABELS[split].capitalize()
        if run.is_multilabel:
            break
        if math.isfinite(acc := run.figure(f"{split}/acc")):
            facts.append(Fact(f"{name} accuracy", f"{100 * acc:.2f} %", _chosen(run) + _interval(run, split)))
        for key, variant in (("acc_plain", "without EMA"), ("acc_tta", "with TTA"), ("acc5", "top-5")):
            if math.isfinite(acc := run.figure(f"{split}/{key}")):
                facts.append(Fact(f"{name} accuracy, {variant}", f"{100 * acc:.2f} %"))
        shows_macro = is_unbalanced(run.figure(f"{split}/acc"), run.figure(f"{split}/balanced_acc"))
        for key, note in MACRO_NOTES.items():
            if shows_macro and math.isfinite(value := run.figure(f"{split}/{key}")):
                facts.append(Fact(f"{name} {SELECTION_TEXTS[key]}", f"{100 * value:.2f} %", note))
    name = SPLIT_LABELS[run.split].capitalize()
    if math.isfinite(loss := run.figure(f"{run.split}/loss")):
        kind = "binary cross entropy, sum over the classes" if run.is_multilabel else "cross entropy"
        facts.append(Fact(f"{name} loss", f"{loss:.4f}", f"{kind} (nats)"))
    if math.isfinite(error := run.figure(f"{run.split}/ece")):
        note = "expected calibration error: mean gap between confidence and accuracy"
        facts.append(Fact(f"{name} ECE", f"{100 * error:.2f} %", note))
    facts += _plugin_facts(run)
    facts += _best_epoch(run) if run.result else _so_far(run)
    if not run.epochs and run.finder.get("lr_max"):
        facts += [
            Fact("LRMAX", f"{number(run.finder['lr_max']):.3g}", run.finder_confidence),
            Fact("LRMIN", f"{number(run.finder.get('lr_min')):.3g}"),
        ]
    if parameters := run.summary.get("parameters") or run.header.get("parameters"):
        facts.append(Fact("Parameters", f"{number(parameters):,.0f}"))
    if seconds := sum(times(run).values()):
        facts.append(
            Fact(
                "Duration",
                duration(seconds),
                f"{counted(len(run.epochs), 'epoch', 'epochs')}, {counted(_steps(run), 'step', 'steps')}",
            )
        )
    return facts


def _plugin_facts(run: RunData) -> list[Fact]:
    """Return the metrics of plug-ins on the reported split."""
    names = run.config.get("metrics")
    split = SPLIT_LABELS[run.split].capitalize()
    return [
        Fact(f"{split} {name}", f"{value:.4g}", "metric of a plug-in")
        for name in (names if isinstance(names, list | tuple) else ())
        if math.isfinite(value := run.figure(f"{run.split}/{name}"))
    ]


def _multilabel_facts(run: RunData) -> list[Fact]:
    """Return the headline numbers of images with several labels, on each split that the result has them of."""
    thresholds = str(sub_mapping(run.summary, "thresholds").get("chosen", "0.5"))
    notes = {
        "map": _chosen(run),
        "map_plain": "of the weights without their moving average",
        "map_tta": "with test-time augmentation",
        "f1_macro": f"mean F1 of the classes; thresholds: {thresholds}",
        "exact_match": "images of which every class is predicted correctly",
    }
    variants = {"map_plain": "mAP, without EMA", "map_tta": "mAP, with TTA"}
    return [
        Fact(
            f"{SPLIT_LABELS[split].capitalize()} {SELECTION_TEXTS.get(key) or variants[key]}",
            f"{100 * value:.2f} %",
            note,
        )
        for split in REPORTED_SPLITS
        for key, note in notes.items()
        if math.isfinite(value := run.figure(f"{split}/{key}"))
    ]


def _chosen(run: RunData) -> str:
    epoch, rule = run.result.get("epoch", "?"), run.result.get("chosen", "?")
    return f"epoch {epoch} of {run.config.get('epochs', '?')} ({rule})"


def accuracy_interval(run: RunData, split: str) -> tuple[float, float, int] | None:
    """Return the 95 % interval of the result's accuracy on a split, and its number of images; None where it is not known."""
    images, accuracy = sub_mapping(run.dataset, "images").get(split), run.figure(f"{split}/acc")
    if not isinstance(images, int) or images < 1 or not 0 <= accuracy <= 1:
        return None
    return *share_interval(accuracy, images), images


def _interval(run: RunData, split: str) -> str:
    if (interval := accuracy_interval(run, split)) is None:
        return ""
    low, high, images = interval
    return f"; 95 % interval {100 * low:.1f} to {100 * high:.1f} % for {images:,} images"


def _best_epoch(run: RunData) -> list[Fact]:
    best = sub_mapping(run.summary, "best")
    key = next((key for key in best if key.endswith(f"/{run.main}")), "")
    is_choice_on_test = key.startswith("test/")  # which a headline would make look like a result
    if not key or is_choice_on_test or best.get("epoch") == run.result.get("epoch"):
        return []
    note = f"epoch {best.get('epoch')}: {best.get('chosen')}"
    return [Fact("Best epoch", f"{100 * number(best[key]):.2f} %", note)]


def _so_far(run: RunData) -> list[Fact]:
    epochs, values = run.line(f"{run.watched}/{run.main}")
    if not values:
        return []
    best = max(range(len(values)), key=lambda index: values[index])
    note = (
        f"epoch {epochs[-1]} of {run.config.get('epochs', '?')}, not a final result; "
        f"best so far {percent(values[best])} in epoch {epochs[best]}"
    )
    return [
        Fact(
            f"{SPLIT_LABELS[run.watched].capitalize()} {SELECTION_TEXTS[run.main]} so far",
            f"{100 * values[-1]:.2f} %",
            note,
        )
    ]


def _steps(run: RunData) -> int:
    return max((record.step for record in run.records), default=0)


def configuration(run: RunData) -> list[tuple[str, str]]:
    """Return (name, value) of what was trained, on what data and how."""
    config, data, classes = run.config, run.dataset, run.classes
    images = ", ".join(
        f"{count:,} {split}" for split, count in sub_mapping(data, "images").items() if isinstance(count, int)
    )
    class_names = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
    arguments = sub_mapping(config, "model_args")
    rates = run.finder if run.is_range_test else run.summary if run.result else config
    batches = f"batch size {config.get('batch_size')}, seed {config.get('seed')}"
    length = f"{config.get('epochs')} epoch{'s' * (config.get('epochs') != 1)}"
    rows = [
        ("Recipe", config.get("recipe")),
        ("Model", f"{config.get('model')}{f' ({setting_text(arguments)})' if arguments else ''}"),
        ("Data", f"{run.data}: {images} images" if images else run.data),
        ("Classes", f"{len(classes)}: {class_names}" if classes else ""),
        ("Labels", _labels(run)),
        ("Range test", f"{batches}, for a training of {length}") if run.is_range_test else ("Training", f"{length}, {batches}"),
        ("Optimizer", f"{config.get('optimizer')}, momentum {setting_text(config.get('momentum'))}, weight decay {setting_text(config.get('weight_decay'))}{_average(config)}"),
        ("Learning rate", f"{config.get('schedule')}, {setting_text(rates.get('lr_min'))} to {setting_text(rates.get('lr_max'))}{_warmup(config)}{_found_by_range_test(config)}"),
        ("Augmentation", _augmentation(config)),
        ("Tags", ", ".join(map(str, config.get("tags") or []))),
        ("Notes", config.get("notes")),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in rows if value and "None" not in str(value)]


def _average(config: Mapping[str, Any]) -> str:
    """Return the decay of the moving average of the weights; empty without one."""
    decay = number(config.get("ema"))
    return f", moving average of the weights (EMA) {decay:g}" if decay > 0 else ""


def _labels(run: RunData) -> str:
    """Return how many labels an image has; empty where each has one."""
    counts = sub_mapping(run.dataset, "labels_per_image")
    mean, without = number(counts.get("mean")), number(counts.get("without"))
    if not run.is_multilabel or not math.isfinite(mean + without):
        return "several per image (multi-label)" if run.is_multilabel else ""
    return f"several per image (multi-label): {mean:.2f} in the mean, {without:,.0f} training images without any"


def data_notes(run: RunData) -> list[str]:
    """Return sentences on the data that limit what a result is worth: images left out, cut off or in two splits."""
    notes, skipped = run.dataset.get("notes"), run.dataset.get("skipped")
    sentences = [str(note) for note in notes] if isinstance(notes, list) else []
    if isinstance(skipped, int) and skipped > 0:
        names = run.dataset.get("skipped_images")
        count = counted(skipped, "unreadable image was", "unreadable images were")
        sentences.append(f"{count} left out{f': {names}' if isinstance(names, str) and names else ''}")
    return sentences


def _warmup(config: Mapping[str, Any]) -> str:
    for name, unit in (("warmup_steps", "update"), ("warmup_epochs", "epoch")):
        if (count := number(config.get(name))) > 0:
            return f", after a warm-up of {count:g} {unit}{'s' * (count != 1)}"
    return ""


def _found_by_range_test(config: Mapping[str, Any]) -> str:
    names = [key for key in ("lr_min", "lr_max") if config.get(key) == "find"]
    return f" ({' and '.join(names)} from an LR range test)" if names else ""


def _augmentation(config: Mapping[str, Any]) -> str:
    if config.get("augment") == "none":
        return "none"
    fixed = [f"crop {config.get('crop')}", "flip" if config.get("flip") else "", _named(config, "cutout")]
    policy = config.get("auto_augment", NO_POLICY)
    parts = [
        *(["a pipeline of one's own"] if config.get("augment_pipeline") else fixed),
        str(policy) if policy != NO_POLICY else "",
        *(
            _named(config, name)
            for name in ("vflip", "color_jitter", "grayscale", "blur", "erasing", "mixup", "cutmix")
        ),
        _named(config, "aug_repeats") if number(config.get("aug_repeats")) > 1 else "",
    ]
    return f"{', '.join(text for text in parts if text)} ({config.get('augment')})"


def _named(config: Mapping[str, Any], name: str) -> str:
    """Return a setting with its value; empty where it is off."""
    return f"{name} {setting_text(config[name])}" if config.get(name) else ""


def setting_cell(value: Any) -> str:
    """Return the value of a setting for a cell of a table, where nothing at all would look like a mistake."""
    return setting_text(value) or "none"


def all_settings(run: RunData) -> list[Setting]:
    """Return every setting; one that differs from its recipe has the recipe's value too."""
    recipe_values: Mapping[str, Any] = {}
    recipe = str(run.config.get("recipe", ""))
    with contextlib.suppress(HarnessError):  # a damaged recipe: nothing to compare with
        recipe_values = make_config({}, recipe if recipe in recipe_paths() else Config().recipe).to_dict()
    settings = []
    for name, value in run.config.items():
        comparable = name in recipe_values and name in setting_fields() and name != "recipe"
        changed = comparable and recipe_values[name] != value
        former = setting_cell(recipe_values[name]) if changed else ""
        settings.append(Setting(name, setting_cell(value), former, changed))
    return settings


def chosen_settings(run: RunData) -> list[ChosenSetting]:
    """Return the settings that were chosen from the data, each with its reason; without those that were changed since."""
    return [
        ChosenSetting(name, setting_cell(choice.value), choice.reason + _of_former_length(name, choice.reason, run))
        for name, choice in read_choices(run.path).items()
        if choice.value == run.config.get(name)
    ]


def _of_former_length(name: str, reason: str, run: RunData) -> str:
    """Return what the page adds to a choice by the number of epochs of a run, where that was changed later."""
    extended = run.config.get("extended")
    changes = list(extended) if isinstance(extended, list | tuple) else str(extended or "").split(",")
    epochs = str(changes[0]).partition(":")[2] if changes else ""
    is_by_length = name == "peak_epoch" or (name == "auto_augment" and reason.endswith((" epochs", " updates")))
    if not is_by_length or not epochs:
        return ""
    curve = ": the chart has the curve that this gave" if name == "peak_epoch" else ""
    return f"; chosen for {epochs} epochs, and the run has {run.config.get('epochs')} now{curve}"


def times(run: RunData) -> dict[str, float]:
    """Return the seconds of each phase; for a run that has not finished, of the epochs so far."""
    totals = sub_mapping(run.summary, "seconds")

    def total(key: str) -> float:
        values = [number(value) for value in run.line(f"time/{key}_s")[1]]
        return number(totals[key]) if key in totals else sum(value for value in values if math.isfinite(value))

    train, evaluate, epoch = total("train"), total("eval"), total("epoch")
    phases = {
        "startup": number(run.environment.get("seconds_before")),
        "training": train,
        "evaluation": evaluate,
        "rest of the epochs": epoch - train - evaluate,
        "final evaluation and figures": number(totals.get("explain")),
    }
    return {name: seconds for name, seconds in phases.items() if math.isfinite(seconds) and seconds > 0.05}


def environment_facts(run: RunData) -> list[tuple[str, str]]:
    """Return (name, value) of the machine, the software versions and the code."""
    about, git = run.environment, sub_mapping(run.environment, "git")
    packages = ", ".join(f"{name} {version}" for name, version in sub_mapping(about, "packages").items())
    commit = f"{git.get('commit')}{', with uncommitted changes' if git.get('changed') else ''}"
    rows = [
        ("Device", about.get("device")),
        ("Threads", f"{about.get('threads')} of {about.get('cores')} cores" if about.get("cores") else ""),
        ("System", about.get("platform")),
        ("Python", about.get("python")),
        ("Packages", packages),
        ("Git", commit if git else "not run in a Git checkout"),
        ("Data fingerprint", str(run.dataset.get("fingerprint") or "")[:16]),
        ("Run directory", run.path.name),
        ("Host", run.status.get("host")),
    ]
    return [(name, str(value)) for name, value in rows if value]


def is_resumable(run: RunData) -> bool:
    """Return whether a run has not finished and may be resumed as it is: one that diverged would diverge again."""
    return run.state not in (FINISHED, RunState.RUNNING) and not has_diverged(run.state, run.status)


def reproduce_commands(run: RunData) -> list[tuple[str, str]]:
    """Return (title, command) of the ways to repeat or to resume the run."""
    commands = []
    if is_resumable(run) and (command := resume_command(run.path, run.status)):
        commands.append(("Resume", command))
    if original := _quoted(run.environment.get("command")):
        commands.append(("Original command", original))
    config = shlex.quote(str(run.path / "config.yaml"))
    if run.epochs or not run.finder:
        commands.append(("As a new run with the same settings", f"harness run --recipe {config} --resume never"))
    if suggested := _quoted(run.finder.get("command")):
        commands.append(("Train with the suggested learning rates", suggested))
    return commands


def _quoted(command: Any) -> str:
    """Return a recorded command as one of harness in which no character means anything to a shell; empty for none."""
    try:
        words = shlex.split(printable(command)) if isinstance(command, str) else []
    except ValueError:  # a quote without its end
        return ""
    return shlex.join(["harness", *words[1:]]) if words else ""
