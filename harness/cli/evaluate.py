"""Commands that use a trained model: evaluate, predict, explain, export; and models, which lists what can be trained."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import click

from harness.cli.commands import SettingsCommand
from harness.cli.completion import complete_run
from harness.cli.options import setting_options, setting_options_only
from harness.cli.terminal import TerminalStream, echo
from harness.config.names import SPLIT_NAMES
from harness.utils.errors import did_you_mean
from harness.utils.text import counted

EVALUATION = (
    "data", "data_dir", "val_fraction", "eval_batch_size", "tta", "metrics", "gallery", "gallery_rule", "cam", "cam_layer",
    "device", "precision", "tracker", "wandb", "project", "plugin",
)  # fmt: skip
EXPLANATION = ("bad_images", "cam", "cam_layer", "device", "precision", "tracker", "wandb", "project", "plugin")
EXPORT = ("plugin", "tracker", "wandb", "project")
PREDICTION = (
    "bad_images", "eval_batch_size", "device", "precision", "channels_last", "deterministic", "threads", "plugin",
)  # fmt: skip


@click.command(cls=SettingsCommand, shown=EVALUATION)
@click.argument("checkpoint", metavar="RUN", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.option(
    "--split",
    type=str,
    default="",
    metavar="NAME",
    help="train, val or test. [test where there is one]",
    shell_complete=lambda context, parameter, incomplete: [name for name in SPLIT_NAMES if name.startswith(incomplete)],
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the files. [evaluation-SPLIT or evaluation-DATA-SPLIT in the run directory]",
)
@setting_options
def evaluate(settings: dict[str, Any], checkpoint: Path, split: str, out: Path | None) -> None:
    """Metrics, per-class table, confusion matrix, galleries and Grad-CAM of a trained model.

    RUN is a run directory, a model.safetensors or a last.pt. The run's own settings hold unless you give others. With
    --wandb or --tracker the results also go there, as a run of their own.

    The run's own images are split as the run split them. Of other data every image counts, or those of its test folder;
    its classes are matched with the model's by name, and may be fewer.

    \b
    harness evaluate runs/my-run
    harness evaluate runs/my-run --data folder --data-dir other-pictures --tta
    """
    from harness.runs import inference

    with _no_warnings():
        evaluation = inference.evaluate(checkpoint, settings, split=split, out=out)
    echo(inference.evaluation_text(evaluation))
    if evaluation.overlap_unknown:
        echo(
            f"whether the model was trained on some of these images was not looked up: {evaluation.overlap_unknown}",
            err=True,
        )
    echo(f"files: {evaluation.folder}", err=True)


@click.command(cls=SettingsCommand, shown=PREDICTION)
@click.argument("checkpoint", metavar="RUN", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="A .csv or .jsonl file; -: CSV on standard output. [-]",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    help="Write only the N most probable classes; 1: in a table of images with one label, the prediction and its confidence alone. [all]",
)
@setting_options_only(*PREDICTION)
def predict(settings: dict[str, Any], checkpoint: Path, paths: tuple[Path, ...], out: Path | None, top: int) -> None:
    """Class probabilities of images or folders, as CSV or JSON lines; no labels are needed.

    RUN is a run directory, a model.safetensors or a last.pt. PATH is an image of any size, mode or orientation, or a
    folder, searched at any depth. A row has the file, the prediction, its confidence, and a probability per class. An
    unreadable image ends the command; with --bad-images skip, or where the run was trained with it, it is left out with a
    message.

    \b
    harness predict runs/my-run photo.jpg
    harness predict runs/my-run holiday/ --out predictions.csv
    harness predict runs/my-run holiday/ --out predictions.jsonl --top 5 --bad-images skip
    """
    target = None if out is None or str(out) == "-" else out
    from harness.runs import predict as predicting

    suffix = predicting.file_format(target)
    predictions = predicting.predict(checkpoint, paths, settings)
    stream = cast(BinaryIO, TerminalStream() if sys.stdout.isatty() else sys.stdout.buffer)
    count = predicting.write_predictions(predictions, target or stream, suffix, top or 0)
    sys.stdout.buffer.flush()
    images = f"{count} image{'' if count == 1 else 's'}"
    echo(f"{images} predicted" + ("" if target is None else f": {target}"), err=True)


@click.command(cls=SettingsCommand, shown=EXPLANATION)
@click.argument("checkpoint", metavar="RUN", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.argument("pictures", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for the overlays. [explained]")
@click.option(
    "--top",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="How many classes to print, and to draw where images have several labels.",
)
@setting_options
def explain(settings: dict[str, Any], checkpoint: Path, pictures: tuple[Path, ...], out: Path | None, top: int) -> None:
    """Classify images and draw which parts of them the prediction rests on (Grad-CAM).

    IMAGE is a file or a folder; any size, mode or orientation will do. The overlays lie as the pictures lie in their
    folder, and explanations.csv beside them has a row for each: class, confidence, map, the share of the evidence that is
    for the class (share_for_class), and the map's resolution. Where images have several labels, an overlay has a map for each
    predicted class, and the table a row. With --wandb or --tracker the results also go there, as a run
    of their own.

    \b
    harness explain runs/my-run photo.jpg holiday/ --cam gradcam -o explained
    """
    from harness.runs import inference

    resolution, finer = None, ""
    for explanation in inference.explain(checkpoint, pictures, settings, out=out, top=top):
        resolution, finer = explanation.resolution or resolution, explanation.finer or finer
        listed = dict(explanation.guesses)
        if explanation.labels is not None:
            predicted = {label.name: label.probability for label in explanation.labels if label.is_predicted}
            listed |= predicted
            listed = {f"{'✓' if name in predicted else '✗'} {name}": share for name, share in listed.items()}
        guesses = "  ".join(f"{name} {100 * probability:.1f} %" for name, probability in listed.items())
        echo(f"{explanation.path}: {guesses}" + ("  (empty map)" if explanation.empty else ""))
    if resolution is not None:
        echo(f"a map has {resolution}{f'; {finer}' if finer else ''}", err=True)
    echo(f"overlays and explanations.csv: {out or inference.EXPLAINED}", err=True)


@click.command(cls=SettingsCommand, shown=EXPORT)
@click.argument("checkpoint", metavar="RUN", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.option(
    "--onnx",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write an ONNX file, compared with torch (extra: vision-harness[onnx]).",
)
@click.option(
    "--timm",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write a folder for timm.create_model('local-dir:FOLDER'); a model of harness needs `import harness.models.cifar_resnet` first.",
)
@setting_options_only(*EXPORT)
def export(settings: dict[str, Any], checkpoint: Path, onnx: Path | None, timm: Path | None) -> None:
    """Export a trained model to ONNX, or to a folder that timm loads.

    With --wandb the export also goes to W&B, as a run that uses the model and makes the exported files.

    \b
    harness export runs/my-run --onnx model.onnx
    harness export runs/my-run --timm my-model
    harness export runs/my-run --onnx model.onnx --wandb online
    """
    from harness.runs import export as exporting

    if not onnx and not timm:
        raise click.UsageError("say where to: --onnx FILE or --timm FOLDER", click.get_current_context())
    if timm:
        echo(exporting.export_timm(checkpoint, timm, settings))
        exporting.track_export(checkpoint, exporting.timm_files(timm), "timm", settings)
    if onnx:
        echo(exporting.export_onnx(checkpoint, onnx, settings))
        exporting.track_export(checkpoint, {onnx.name: onnx}, "onnx", settings)


@click.command(cls=SettingsCommand, shown=("plugin",))
@click.argument("filter", default="")
@click.option("--count", is_flag=True, help="Build each model and count its parameters (slow for many).")
@setting_options_only("plugin")
def models(settings: dict[str, Any], filter: str, count: bool) -> None:
    """List the models that can be trained: those of timm whose name contains FILTER.

    Harness's own are marked with *, those of plug-ins with +.

    \b
    harness models resnet18
    harness models custom --count
    harness models --plugin my_models
    """
    from harness.config.settings import coerce
    from harness.models import factory
    from harness.utils.plugins import allow_plugins

    plugins = coerce("plugin", settings.get("plugin", ()))
    allow_plugins(plugins)
    names = factory.model_names(filter, plugins)
    marks = {"harness": "*", "plugin": "+", "timm": " "}
    for name, origin in names:
        line = f"{marks[origin]} {name}"
        if count:
            line += f"  {factory.parameter_count_of(name):,}"
        echo(line)
    if names:
        has_plugins = any(origin == "plugin" for _, origin in names)
        legend = f"* harness's own{'; + of a plug-in' if has_plugins else ''}"
        echo(f"{counted(len(names), 'model', 'models')}; {legend}", err=True)
    else:
        hint = did_you_mean(filter, [name for name, _ in factory.model_names()])
        echo(f"no model's name contains {filter!r}{hint}", err=True)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep warnings of libraries off a result that a user reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
