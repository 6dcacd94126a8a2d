"""What stands in a run's page as words and numbers: headline, settings, time, how to repeat it."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.recipe import make_config, recipe_paths
from harness.config.settings import Config, setting_fields
from harness.reporting.html.groups import share_interval
from harness.reporting.html.run_data import RunData, number, sub_mapping
from harness.tracking.run_dir import RunState
from harness.utils.errors import HarnessError
from harness.utils.text import percent

FINISHED = RunState.FINISHED
STATES: dict[str, str] = {
    RunState.FINISHED: "It came to its end.",
    RunState.RUNNING: "It is still running: this page shows what it had said when the page was made.",
    RunState.FAILED: "It failed.",
    RunState.CRASHED: "It died without a word: its process is gone, and it did not say why.",
    RunState.PREEMPTED: "It was stopped from outside, and has saved.",
    RunState.INTERRUPTED: "It was interrupted, and has saved.",
}


@dataclass(frozen=True)
class Fact:
    """One headline figure: its name, the figure, and how it came about."""

    name: str
    value: str
    how: str = ""


@dataclass(frozen=True)
class Setting:
    """A setting of the run; `usual` is what its recipe has where that is something else."""

    name: str
    value: str
    usual: str = ""
    changed: bool = False


def headline(run: RunData) -> list[Fact]:
    """The figures that stand for the run, each with how it was chosen."""
    found = []
    for split, name in (("test", "Test"), ("val", "Validation")):
        if math.isfinite(share := run.figure(f"{split}/acc")):
            found.append(Fact(f"{name} accuracy", f"{100 * share:.2f} %", _chosen(run) + _interval(run, split, share)))
        for key, what in (("acc_tta", "with flip TTA"), ("acc5", "top 5")):
            if math.isfinite(share := run.figure(f"{split}/{key}")):
                found.append(Fact(f"{name} accuracy, {what}", f"{100 * share:.2f} %"))
    split = run.split
    if math.isfinite(loss := run.figure(f"{split}/loss")):
        found.append(Fact(f"{split} loss", f"{loss:.4f}", "cross entropy, nats"))
    if math.isfinite(error := run.figure(f"{split}/ece")):
        found.append(
            Fact("Calibration error", f"{100 * error:.1f} points", "how far confidence is from the share right")
        )
    found += _so_far(run) if not run.result else _best(run)
    if not run.epochs and run.finder.get("lr_max"):
        sure = str(run.finder.get("sure", ""))
        found += [
            Fact("LRMAX", f"{number(run.finder['lr_max']):.3g}", sure),
            Fact("LRMIN", f"{number(run.finder.get('lr_min')):.3g}"),
        ]
    if parameters := run.summary.get("parameters") or run.header.get("parameters"):
        found.append(Fact("Parameters", f"{number(parameters):,.0f}"))
    if seconds := sum(times(run).values()):
        found.append(Fact("Time", duration(seconds), f"{len(run.epochs)} epochs, {_steps(run):,} steps"))
    return found


def _chosen(run: RunData) -> str:
    epoch, chosen = run.result.get("epoch", "?"), run.result.get("chosen", "?")
    return f"of epoch {epoch} of {run.config.get('epochs', '?')}: {chosen}"


def _interval(run: RunData, split: str, share: float) -> str:
    images = sub_mapping(run.dataset, "images").get(split)
    if not isinstance(images, int) or images < 1:
        return ""
    low, high = share_interval(share, images)
    return f"; {100 * low:.1f} to {100 * high:.1f} % with 95 % certainty over {images:,} images"


def _best(run: RunData) -> list[Fact]:
    best = sub_mapping(run.summary, "best")
    key = next((key for key in best if key.endswith("/acc")), "")
    if not key or best.get("epoch") == run.result.get("epoch"):
        return []
    return [Fact("Best epoch", f"{100 * number(best[key]):.2f} %", f"epoch {best.get('epoch')}: {best.get('chosen')}")]


def _so_far(run: RunData) -> list[Fact]:
    epochs, values = run.line(f"{run.watched}/acc")
    if not values:
        return []
    best = max(range(len(values)), key=lambda place: values[place])
    how = f"epoch {epochs[-1]} of {run.config.get('epochs', '?')}, not the result; best so far {percent(values[best])} in epoch {epochs[best]}"
    return [Fact(f"{run.watched} accuracy so far", f"{100 * values[-1]:.2f} %", how)]


def _steps(run: RunData) -> int:
    return max((record.step for record in run.records), default=0)


def essentials(run: RunData) -> list[tuple[str, str]]:
    """(what, value): what was trained, on what, how."""
    own, data = run.config, run.dataset
    images = ", ".join(
        f"{count:,} {split}" for split, count in sub_mapping(data, "images").items() if isinstance(count, int)
    )
    classes = run.classes
    shown = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
    arguments = sub_mapping(own, "model_args")
    rates = (sub_mapping(run.summary, "result") and run.summary) or own
    found = [
        ("Recipe", own.get("recipe")),
        ("Model", f"{own.get('model')}{f' ({_plain(arguments)})' if arguments else ''}"),
        ("Data", f"{own.get('data')}: {images} images" if images else own.get("data")),
        ("Classes", f"{len(classes)}: {shown}" if classes else ""),
        ("Training", f"{own.get('epochs')} epochs, batch {own.get('batch_size')}, seed {own.get('seed')}"),
        ("Optimizer", f"{own.get('optimizer')}, momentum {_plain(own.get('momentum'))}, weight decay {_plain(own.get('weight_decay'))}"),
        ("Learning rate", f"{own.get('schedule')} between {_rate(rates, 'lr_min')} and {_rate(rates, 'lr_max')}{_sought(own)}"),
        ("Augmentation", _augmentation(own)),
        ("Tags", ", ".join(map(str, own.get("tags") or []))),
        ("Notes", own.get("notes")),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in found if value and "None" not in str(value)]


def _rate(rates: Mapping[str, Any], key: str) -> str:
    return _plain(rates.get(key))


def _sought(own: Mapping[str, Any]) -> str:
    sought = [key for key in ("lr_min", "lr_max") if own.get(key) == "find"]
    return f" ({' and '.join(sought)} by a range test)" if sought else ""


def _augmentation(own: Mapping[str, Any]) -> str:
    if own.get("augment") == "none":
        return "none"
    parts = [
        f"crop {own.get('crop')}",
        "flip" if own.get("flip") else "",
        f"cutout {own.get('cutout')}" if own.get("cutout") else "",
        f"mixup {own.get('mixup')}" if own.get("mixup") else "",
        f"cutmix {own.get('cutmix')}" if own.get("cutmix") else "",
    ]
    return f"{', '.join(text for text in parts if text)} ({own.get('augment')})"


def all_settings(run: RunData) -> list[Setting]:
    """Every setting; those that differ from its recipe are told with what the recipe has."""
    usual: Mapping[str, Any] = {}
    recipe = str(run.config.get("recipe", ""))
    with contextlib.suppress(HarnessError):  # a damaged recipe: nothing to compare with
        usual = make_config({}, recipe if recipe in recipe_paths() else Config().recipe).to_dict()
    found = []
    for name, value in run.config.items():
        changed = name in usual and name in setting_fields() and usual[name] != value and name != "recipe"
        found.append(Setting(name, _plain(value), _plain(usual[name]) if changed else "", changed))
    return found


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def times(run: RunData) -> dict[str, float]:
    """Seconds by part; of the epochs there are where the run has not come to its end."""
    told = sub_mapping(run.summary, "seconds")

    def summed(key: str) -> float:
        known = [number(value) for value in run.line(f"time/{key}_s")[1]]
        return number(told[key]) if key in told else sum(value for value in known if math.isfinite(value))

    train, evaluate, epoch = summed("train"), summed("eval"), summed("epoch")
    parts = {
        "starting": number(run.environment.get("seconds_before")),
        "training": train,
        "evaluating": evaluate,
        "rest of the epochs": epoch - train - evaluate,
        "explaining": number(told.get("explain")),
    }
    return {name: seconds for name, seconds in parts.items() if math.isfinite(seconds) and seconds > 0.05}


def machine_facts(run: RunData) -> list[tuple[str, str]]:
    """(what, value): where it ran and with which code."""
    about, git = run.environment, sub_mapping(run.environment, "git")
    packages = ", ".join(f"{name} {version}" for name, version in sub_mapping(about, "packages").items())
    commit = f"{git.get('commit')}{', with changes that are not in it' if git.get('changed') else ''}"
    found = [
        ("Device", about.get("device")),
        ("Threads", f"{about.get('threads')} of {about.get('cores')} cores" if about.get("cores") else ""),
        ("System", about.get("platform")),
        ("Python", about.get("python")),
        ("Packages", packages),
        ("Git", commit if git else "the command was not given in a checkout"),
        ("Data fingerprint", str(run.dataset.get("fingerprint") or "")[:16]),
        ("Run folder", run.path.name),
        ("Host", run.status.get("host")),
    ]
    return [(name, str(value)) for name, value in found if value]


def repeat_commands(run: RunData) -> list[tuple[str, str]]:
    """(when, command): how to do it again, or go on with it."""
    found = []
    if run.state not in (FINISHED, RunState.RUNNING) and run.status.get("resume"):
        found.append(("Go on with it", str(run.status["resume"])))
    said = str(run.environment.get("command", ""))
    if said:
        program, _, rest = said.partition(" ")
        own = program if program.startswith("harness") else "harness"
        found.append(("As it was given", f"{own} {rest}".strip()))
    config = shlex.quote(str(run.path / "config.yaml"))
    if run.epochs or not run.finder:
        found.append(("From its settings, as a run of its own", f"harness run --recipe {config} --resume never"))
    if run.finder.get("command"):
        found.append(("Train with the rates found", str(run.finder["command"])))
    return found


def duration(seconds: float) -> str:
    """A time for a person."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
