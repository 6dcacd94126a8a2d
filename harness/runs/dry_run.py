"""`harness run --dry-run`: what a run would train, on what and for how long, without training or writing anything."""

from __future__ import annotations

from harness.config.names import SPLIT_LABELS, SPLIT_NAMES
from harness.config.settings import Config
from harness.data.dataset import Dataset
from harness.data.image_io import RGB
from harness.lr_finder.finder import with_placeholder_lr
from harness.models import factory
from harness.runs.advice import few_updates, missing_weights
from harness.runs.automatic import choices_table, decide_settings
from harness.runs.components import Components, build_components
from harness.runs.run import resumed_preprocess
from harness.runs.tracked_run import check_tracking
from harness.tracking import run_dir
from harness.training.distributed import SingleProcess
from harness.utils.errors import UsageError
from harness.utils.plain import setting_text
from harness.utils.text import counted


def dry_run(config: Config) -> str:
    """Return what a run with these settings would be, a line each; everything is read, built and checked as by a run.

    Missing data and weights are downloaded, as a run would.

    Raises:
        HarnessError: the run would be refused, for the same reason; or `resume` names a run.
    """
    if config.resume not in ("auto", "never"):
        raise UsageError(f"--dry-run shows a run from its start; leave --resume {config.resume} out")
    check_tracking(config)
    run_dir.check_output(config)
    requested = config.replace(precision=run_dir.kept_precision(config))
    decided = decide_settings(requested, kept=run_dir.kept_settings)
    preprocess = resumed_preprocess(requested, SingleProcess())
    components = build_components(with_placeholder_lr(decided.config), None, preprocess, decided.dataset)
    # The name of a directory is made of the settings with the precision that was chosen.
    path, is_resumed = run_dir.planned_run_dir(requested.replace(precision=components.config.precision))
    lines = [choices_table(decided.choices), ""] if decided.choices else []
    lines += [f"{name:<12} {text}" for name, text in _rows(decided.config, components)]
    lines.append(f"{'directory':<12} {path}{', whose unfinished run is resumed' * is_resumed}")
    dataset, settings = components.dataset, components.config
    updates = few_updates(components.schedule.steps, settings.epochs, len(dataset.train), settings.batch_size)
    warnings = filter(None, [missing_weights(settings.model, decided.choices), updates])
    lines += [f"Warning: {line}" for line in warnings]
    return "\n".join([*lines, "Nothing was trained, and no run directory was made."])


def _rows(config: Config, components: Components) -> list[tuple[str, str]]:
    learner, steps = components.learner, components.schedule.steps
    model, frozen = learner.model, factory.count_frozen(learner.model)
    parameters = f"{factory.count_parameters(model):,} parameters" + (f", {frozen:,} of them frozen" if frozen else "")
    size, number = components.preprocess.size, components.preprocess.channels
    channels = "" if number == RGB else f", {counted(number, 'channel', 'channels')}"
    rates = f"learning rate {setting_text(config.lr_min)} to {setting_text(config.lr_max)}"
    if config.needs_lr_find:
        rates = "learning rates of a range test at the start of the run"
    return [
        ("data", _images(components.dataset)),
        ("model", f"{config.model}: {parameters}, images of {size} x {size} pixels{channels}"),
        (
            "weights",
            components.initial_note.removeprefix("Weights ") or ("pretrained" if config.pretrained else "random"),
        ),
        (
            "training",
            f"{counted(config.epochs, 'epoch', 'epochs')}, {counted(steps, 'update', 'updates')} with batches of {config.batch_size}",
        ),
        ("optimizer", f"{config.optimizer}, {config.schedule} schedule, {rates}"),
        ("device", f"{learner.device}, {components.config.precision}"),
        (
            "time",
            "not measured; the line of each epoch of a run says how long it took, and about how long the rest takes",
        ),
    ]


def _images(dataset: Dataset) -> str:
    splits = ((SPLIT_LABELS[name], getattr(dataset, name)) for name in SPLIT_NAMES)
    counts = ", ".join(f"{len(split):,} {label}" for label, split in splits if split is not None)
    return f"{counts} images in {counted(len(dataset.classes), 'class', 'classes')}"
