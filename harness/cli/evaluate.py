"""Commands that look at a trained model, or take it elsewhere: evaluate, explain, export, models."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from harness.cli.completion import complete_run
from harness.cli.options import PlainCommand, SettingsCommand, setting_options
from harness.utils.errors import did_you_mean


@click.command(cls=SettingsCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.option(
    "--split",
    type=str,
    default="",
    metavar="WORD",
    help="train, val or test. [test where there is one]",
    shell_complete=lambda context, parameter, incomplete: [
        name for name in ("train", "val", "test") if name.startswith(incomplete)
    ],
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for the files. [evaluation-SPLIT in the run folder]"
)
@setting_options
def evaluate(settings: dict[str, Any], checkpoint: Path, split: str, out: Path | None) -> None:
    """Test figures, per-class table, confusion matrix, galleries and Grad-CAM of a trained model.

    CHECKPOINT is a run folder, a model.safetensors or a last.pt; its own settings hold unless you give others. With
    --wandb it goes to W&B too, as a run of its own.

    \b
    harness evaluate runs/my-run
    harness evaluate runs/my-run --data folder --data-dir other-pictures --tta
    """
    from harness.runs import inference

    with _heard():
        seen, name, folder = inference.evaluate(checkpoint, settings, out, split)
    click.echo(inference.evaluation_text(seen, name))
    click.echo(f"files: {folder}", err=True)


@click.command(cls=SettingsCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    default="explained",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the overlays.",
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="How many guesses to print.")
@setting_options
def explain(settings: dict[str, Any], checkpoint: Path, pictures: tuple[Path, ...], out: Path, top: int) -> None:
    """Classify pictures and draw where the model looks.

    PICTURES are files or folders; any size, mode or orientation will do. With --wandb the answers go to W&B too.

    \b
    harness explain runs/my-run photo.jpg holiday/ --cam gradcam -o looked-at
    """
    from harness.runs import inference

    for answer in inference.explain(checkpoint, pictures, settings, out, top):
        guesses = "  ".join(f"{name} {100 * share:.1f} %" for name, share in answer.guesses)
        click.echo(f"{answer.path}: {guesses}" + ("  (empty map)" if answer.empty else ""))
    click.echo(f"overlays: {out}", err=True)


@click.command(cls=PlainCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), shell_complete=complete_run)
@click.option(
    "--onnx", type=click.Path(path_type=Path), help="Write an ONNX file, checked against torch (extra: export)."
)
@click.option(
    "--timm",
    type=click.Path(path_type=Path),
    help="Write a folder that timm loads: timm.create_model('local-dir:FOLDER'); for our own models import harness.models.cifar_resnet first.",
)
def export(checkpoint: Path, onnx: Path | None, timm: Path | None) -> None:
    """Take a trained model elsewhere: ONNX, or a folder for timm.

    \b
    harness export runs/my-run --onnx model.onnx
    harness export runs/my-run --timm my-model
    """
    from harness.runs import export as exchange

    if not onnx and not timm:
        raise click.UsageError("say where to: --onnx FILE or --timm FOLDER", click.get_current_context())
    if timm:
        click.echo(exchange.export_timm(checkpoint, timm))
    if onnx:
        click.echo(exchange.export_onnx(checkpoint, onnx))


@click.command(name="models", cls=PlainCommand)
@click.argument("filter", default="")
@click.option("--count", is_flag=True, help="Build each model and count its parameters (slow for many).")
def models_(filter: str, count: bool) -> None:
    """What can be trained: every timm model whose name holds FILTER, ours marked with *.

    \b
    harness models resnet18
    harness models custom --count
    """
    from harness.models import factory

    found = factory.model_names(filter)
    for name, ours in found:
        line = f"{'*' if ours else ' '} {name}"
        if count:
            line += f"  {factory.parameter_count_of(name):,}"
        click.echo(line)
    click.echo(f"{len(found)} models; * ours" if found else _no_model(filter), err=True)


def _no_model(filter: str) -> str:
    from harness.models import factory

    return f"no model's name holds {filter!r}{did_you_mean(filter, [name for name, _ in factory.model_names()])}"


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Warnings of libraries kept off a result that is read by a person."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
