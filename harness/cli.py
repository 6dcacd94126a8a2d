"""The command line: words in, `Config` out. Heavy imports stand inside the commands, so that help is quick."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from harness.display import Bar, Lines
from harness.errors import AlreadyDone, HarnessError, nearest
from harness.interrupts import Interrupted
from harness.options import CONTEXT, SettingsCommand, read, settings, settings_but

EPILOG = """\b
Exit status: 0 done; 2 wrong command or value; 3 data missing or unreadable; 4 checkpoint missing, damaged,
foreign or unsafe; 5 training diverged; 6 out of disk, memory or files; 7 tracking failed where it was required;
8 run folder in use; 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1, each with the state saved; 1 anything
else."""


@click.group(context_settings=CONTEXT, epilog=EPILOG)
@click.version_option(package_name="harness", message="harness %(version)s")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def cli(debug: bool) -> None:
    """Train an image classifier, see why it works, search its learning rates, share the result.

    \b
    harness run --recipe digits        no download, no account, a minute on two CPU cores
    harness run                        the custom ResNet on CIFAR-10
    harness evaluate runs/NAME         per-class table, galleries, Grad-CAM
    harness find --recipe digits       a range test: which learning rates to train with
    harness sweep sweeps/digits.yaml   a search on this machine, without a W&B server
    harness plot --schedule cyclic     draw a learning-rate schedule
    """


@cli.command(cls=SettingsCommand)
@settings
def run(settings: dict[str, Any]) -> None:
    """Train, evaluate every epoch, and record everything on disk and in W&B.

    \b
    harness run --recipe digits
    harness run --data folder --data-dir pictures --model resnet18 --pretrained --epochs 10
    harness run --model-args width=16 --lr-max 0.05 --tags try,narrow
    """
    from harness.tracking.wandb_refusal import failure_told

    with failure_told():
        config = read(settings)
    from harness import runner

    display = _display()
    try:
        result = runner.run(config, display)
    finally:
        display.close()
    click.echo(summary_table(result.summary))


def _display() -> Lines:
    """A bar on a terminal, lines elsewhere."""
    return Bar(sys.stderr) if sys.stderr.isatty() else Lines(sys.stderr)


def summary_table(summary: dict[str, Any]) -> str:
    """The headline figures of a finished run, for a person."""
    result, best = summary["result"], summary["best"]
    rows = []
    for split in ("test", "val"):
        if f"{split}/acc" in result:
            how = f"{result['chosen']}, epoch {result['epoch']}"
            rows.append(
                (
                    f"{split} accuracy",
                    f"{100 * result[f'{split}/acc']:.2f} %  (loss {result[f'{split}/loss']:.4f}; {how})",
                )
            )
        for key, name in (("acc_tta", "with flip TTA"), ("acc5", "top 5")):
            if f"{split}/{key}" in result:
                rows.append((f"  {name}", f"{100 * result[f'{split}/{key}']:.2f} %"))
        if f"{split}/ece" in result:
            rows.append(("  calibration", f"off by {100 * result[f'{split}/ece']:.1f} points (ECE)"))
    key = next((key for key in best if key.endswith("/acc")), "")
    if key and best["epoch"] != result["epoch"]:
        rows.append(("best epoch", f"{100 * best[key]:.2f} %  ({best['chosen']}, epoch {best['epoch']})"))
    rows.append(("parameters", f"{summary['parameters']:,}"))
    rows.append(
        ("training", f"{summary['epochs']} epochs, {summary['steps']} steps, {summary['seconds']['epoch']:.1f} s")
    )
    return "\n".join(f"{name:<14} {text}" for name, text in rows)


@cli.command(cls=SettingsCommand)
@click.option("--steps", type=click.IntRange(4), help="Updates between --low and --high. [25 a decade]")
@click.option("--low", type=float, help="Lowest learning rate tried. [0.0001 for SGD]")
@click.option(
    "--high", type=float, help="Highest; the test goes on above it while the loss does not diverge. [1 for SGD]"
)
@click.option("--linear", is_flag=True, help="Raise the learning rate by equal steps instead of equal factors.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How often, each with other weights and order.",
)
@click.option(
    "--confirm",
    type=click.IntRange(0),
    default=0,
    help="Short one-cycle runs around the suggestion; the best held-out accuracy wins.",
)
@click.option(
    "--write-sweep", type=click.Path(path_type=Path), help="Write a W&B sweep whose ranges come from the test."
)
@settings
def find(settings: dict[str, Any], **ask: Any) -> None:
    """Find LRMIN and LRMAX by a learning-rate range test: why, and how sure.

    The steps are those of training (model, optimizer, batch, augmentation, precision); a part of the training images
    is held out to look at, and the test set is not touched.

    \b
    harness find --recipe digits
    harness find --data folder --data-dir pictures --seeds 5 --confirm 3 --write-sweep sweeps/mine.yaml
    """
    config = read(settings)
    from harness import find as finder

    display = _display()
    try:
        finding = finder.find(config, display=display, **ask)
    finally:
        display.close()
    click.echo(finder.table(finding))


@cli.command(cls=SettingsCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--count", type=click.IntRange(1), help="Trials in all, over every command that works on this search. [run_cap]"
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Trials at a time; GPUs and CPU threads are shared out.",
)
@click.option(
    "--storage",
    default="",
    help="Database URL that several machines share, or a SQLite file. [one in the sweep's folder]",
)
@click.option(
    "--final", type=click.IntRange(0), default=0, help="Then train the best over so many seeds and read the test set."
)
@click.option("--search-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of what is tried.")
@click.option("--choose-on-test", is_flag=True, help="Allow a metric of the test set.")
@click.option(
    "--fork/--no-fork", default=True, help="Fork trials from a process that has torch and timm imported.  [fork]"
)
@settings_but("workers", "resume")
def sweep(settings: dict[str, Any], file: Path, choose_on_test: bool, search_seed: int, **ask: Any) -> None:
    """Run a W&B sweep on this machine, with no server and no account: the same YAML, the same meaning.

    FILE is a sweep in W&B's format whose command starts `harness run`. Settings given here win over its constants.
    The same command goes on with a sweep that was stopped.

    \b
    harness sweep sweeps/digits.yaml
    harness sweep sweeps/lr.yaml --count 20 --workers 2 --data-dir data --final 3
    harness sweep sweeps/lr.yaml --count 60 --storage postgresql+psycopg://user@host/db --name lr     on each machine
    """
    from harness.config import Config
    from harness.search import coordinator, sweepfile

    output, name = settings.pop("output", Config().output), settings.pop("name", "")
    found = sweepfile.read(file, settings, on_test=choose_on_test)
    folder, told = coordinator.run(
        found, file.read_bytes(), output=Path(output).expanduser(), name=name, seed=search_seed, **ask
    )
    click.echo(told)
    click.echo(f"sweep folder: {folder}\nto W&B: harness sync {folder}/runs/*", err=True)


@cli.command(cls=SettingsCommand)
@click.option(
    "-o",
    "--out",
    default="lr.png",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The picture, PNG or SVG by its suffix.",
)
@click.option(
    "--steps-per-epoch",
    default=97,
    show_default=True,
    type=click.IntRange(1),
    help="Updates an epoch (97: CIFAR-10 at batch 512).",
)
@click.option("--iterations", type=click.IntRange(1), help="Length of a cyclic curve, updates. [100]")
@click.option("--step-size", type=click.IntRange(1), help="Half a cycle of a cyclic curve, updates. [10]")
@settings
def plot(
    settings: dict[str, Any], out: Path, steps_per_epoch: int, iterations: int | None, step_size: int | None
) -> None:
    """Draw the learning-rate (and momentum) curve of any schedule, without training.

    \b
    harness plot --schedule cyclic                       between 0.08 and 0.8, step 10, 100 iterations
    harness plot --schedule cosine --peak-epoch 2 -o cosine.svg
    harness plot --recipe dawnbench --momentum-min 0.85
    """
    from harness.plot import draw

    click.echo(draw(settings, out, steps_per_epoch, iterations, step_size))


@cli.command(cls=SettingsCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--split", "split", type=str, default="", help="train, val or test. [test where there is one]")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for the files. [evaluation-SPLIT in the run folder]"
)
@settings
def evaluate(settings: dict[str, Any], checkpoint: Path, split: str, out: Path | None) -> None:
    """Test figures, per-class table, confusion matrix, galleries and Grad-CAM of a trained model.

    CHECKPOINT is a run folder, a model.safetensors or a last.pt; its own settings hold unless you give others. With
    --wandb it goes to W&B too, as a run of its own.

    \b
    harness evaluate runs/my-run
    harness evaluate runs/my-run --data folder --data-dir other-pictures --tta
    """
    from harness import judge

    with _heard():
        seen, name, folder = judge.evaluate(checkpoint, settings, out, split)
    click.echo(judge.report(seen, name))
    click.echo(f"files: {folder}", err=True)


@cli.command(cls=SettingsCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path))
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
@settings
def explain(settings: dict[str, Any], checkpoint: Path, pictures: tuple[Path, ...], out: Path, top: int) -> None:
    """Classify pictures and draw where the model looks.

    PICTURES are files or folders; any size, mode or orientation will do. With --wandb the answers go to W&B too.

    \b
    harness explain runs/my-run photo.jpg holiday/ --cam gradcam -o looked-at
    """
    from harness import judge

    for answer in judge.explain(checkpoint, pictures, settings, out, top):
        guesses = "  ".join(f"{name} {100 * share:.1f} %" for name, share in answer.guesses)
        click.echo(f"{answer.path}: {guesses}" + ("  (empty map)" if answer.empty else ""))
    click.echo(f"overlays: {out}", err=True)


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--onnx", type=click.Path(path_type=Path), help="Write an ONNX file, checked against torch (extra: export)."
)
@click.option(
    "--timm",
    type=click.Path(path_type=Path),
    help="Write a folder that stock timm loads: timm.create_model('local-dir:FOLDER').",
)
def export(checkpoint: Path, onnx: Path | None, timm: Path | None) -> None:
    """Take a trained model elsewhere: ONNX, or a folder for timm.

    \b
    harness export runs/my-run --onnx model.onnx
    harness export runs/my-run --timm my-model
    """
    from harness import exchange

    if not onnx and not timm:
        raise click.UsageError("say where to: --onnx FILE or --timm FOLDER")
    if timm:
        click.echo(exchange.to_timm(checkpoint, timm))
    if onnx:
        click.echo(exchange.to_onnx(checkpoint, onnx))


@cli.command()
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--anew", is_flag=True, help="Send all of it as a new W&B run, where the old one has holes.")
def sync(folders: tuple[Path, ...], anew: bool) -> None:
    """Bring offline, interrupted or half-uploaded runs to W&B whole, from their journals.

    What W&B has already is not sent again. `wandb sync` uploads W&B's own log, which may have lost its end.
    """
    from harness import sync as syncing

    for folder in folders:
        done = syncing.sync(folder, lambda text: click.echo(text, err=True), anew)
        there = "" if done.arrived is None else f"; {done.steps} of {done.steps} steps are there"
        click.echo(f"{done.folder}: {done.sent} of {done.records} records were missing, now at {done.url}{there}")


@cli.command(name="models")
@click.argument("filter", default="")
@click.option("--count", is_flag=True, help="Build each model and count its parameters (slow for many).")
def models_(filter: str, count: bool) -> None:
    """What can be trained: every timm model whose name holds FILTER, ours marked with *."""
    from harness.vision import models

    found = models.names(filter)
    for name, ours in found:
        line = f"{'*' if ours else ' '} {name}"
        if count:
            line += f"  {models.parameters_of(name):,}"
        click.echo(line)
    click.echo(f"{len(found)} models; * ours" if found else f"no model's name holds {filter!r}", err=True)


@cli.command()
@click.argument("output", default="runs", type=click.Path(path_type=Path))
def runs(output: Path) -> None:
    """What is in the output folder: name, state, epoch, best accuracy, and how to resume what is unfinished."""
    from harness.files import read_json
    from harness.runfolder import SUMMARY, list_runs

    found = list(list_runs(output))
    for path, state, status in found:
        result = read_json(path / SUMMARY).get("result", {})
        accuracy = next(
            (f"{split} {100 * result[f'{split}/acc']:.2f} %" for split in ("test", "val") if f"{split}/acc" in result),
            "-",
        )
        click.echo(f"{path.name:<44} {state:<12} epoch {status.get('epoch', 0):<5} {accuracy}")
        if state != "finished" and status.get("resume"):
            click.echo(f"    {status['resume']}")
    sweeps = sorted(output.glob("*/sweep.json"))
    for path in sweeps:
        told = read_json(path)
        counts = ", ".join(f"{count} {state}" for state, count in told.get("trials", {}).items() if count)
        best = told.get("best") or {}
        click.echo(
            f"{path.parent.name:<44} sweep        {counts}; best {told.get('metric', {}).get('name')} {best.get('value', '-')}"
        )
    if not found and not sweeps:
        click.echo(f"no runs in {output}", err=True)


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Warnings of libraries kept off a result that is read by a person."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """The `harness` program: every mistake of a user ends in one line and the right exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    before = _exit_on_signals()
    try:
        status = cli.main(arguments, prog_name="harness", standalone_mode=False)
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.NoSuchOption as error:
        _complain(f"no such option {error.option_name}{_nearest_option(error)}", debug)
        status = 2
    except click.ClickException as error:
        _complain(error.format_message(), debug)
        status = 2
    except HarnessError as error:
        if isinstance(error, AlreadyDone | Interrupted):  # news, not a mistake
            click.echo(str(error), err=True)
        else:
            _complain(str(error), debug)
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception:  # noqa: BLE001 - the last door: our own mistakes, shown whole
        traceback.print_exc()
        click.echo("error: this is a mistake in harness, not in your command", err=True)
        status = 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(status if isinstance(status, int) else 0)


def _exit_on_signals() -> dict[int, Any]:
    """End by exiting, never by dying of a signal, which W&B's agent would count as success; the handlers before."""
    numbers = [
        number for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if (number := getattr(signal, name, None)) is not None
    ]
    return {number: signal.signal(number, lambda number, frame: sys.exit(128 + number)) for number in numbers}


def _nearest_option(error: click.NoSuchOption) -> str:
    known = [
        name
        for parameter in (error.ctx.command.params if error.ctx else [])
        for name in parameter.opts
        if name.startswith("--")
    ]
    return nearest(error.option_name.lower().replace("_", "-"), known)


def _complain(text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    click.echo(f"error: {clean}", err=True)
