"""`harness evaluate` and `harness explain`: a trained model brought back, and asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.config.settings import canonical_name
from harness.data import loaders
from harness.data.dataset import Split
from harness.data.image_io import image_files, read_image
from harness.data.registry import load_dataset as load_data
from harness.evaluation import gradcam
from harness.evaluation.trained_model import TrainedModel, load_trained_model
from harness.reporting.evaluation_report import EvaluationResult, Evaluator, enlarge, table_text, to_uint8
from harness.reporting.figures import gradcam as cam_figure
from harness.runs.predict import Prediction as Prediction
from harness.runs.predict import predict as predict
from harness.runs.tracked_run import tracked_output
from harness.tracking.records import Cell, Image, Record, Scalar, Table, Value
from harness.training import device as machine
from harness.utils.errors import DataError, UsageError
from harness.utils.files import write_json

log = logging.getLogger(__name__)


def evaluate(
    path: Path, given: Mapping[str, Any], out: Path | None, split_name: str = ""
) -> tuple[EvaluationResult, str, Path]:
    """Predict a split with a trained model and write the same files as a run does.

    Args:
        given: settings that replace the checkpoint's, such as other data.
        out: folder for the files; `evaluation-SPLIT` in the run folder when None.
        split_name: train, val or test; the test set where there is one when empty.

    Returns:
        what was seen, the split's name, the folder.

    Raises:
        CheckpointError, DataError, UsageError.
    """
    trained = load_trained_model(path, given)
    data = load_data(trained.config)
    if data.classes != trained.classes:
        raise DataError(
            f"the data's classes ({_few(data.classes)}) are not those the model was trained on ({_few(trained.classes)})"
        )
    splits = {"train": data.train, "val": data.val, "test": data.test}
    name = split_name or ("test" if data.test is not None else "val" if data.val is not None else "train")
    split = splits.get(name)
    if split is None:
        raise UsageError(
            f"split={name!r}: the data has {', '.join(key for key, value in splits.items() if value is not None)}"
        )
    out = out or _run_folder(trained.path) / f"evaluation-{name}"
    seen = _evaluator(trained).evaluate(split, evaluation_loader(trained, split), out)
    write_json(
        out / "evaluation.json",
        {
            "checkpoint": str(trained.path),
            "data": data.name,
            "split": name,
            "images": len(split),
            "fingerprint": data.fingerprint,
            **seen.metrics,
        },
    )
    _track(trained, given, seen, name, out)
    return seen, name, out


def evaluation_text(seen: EvaluationResult, split: str) -> str:
    """The headline figures and the per-class table, for a terminal."""
    shown = {
        "acc": "accuracy",
        "acc5": "top-5 accuracy",
        "acc_tta": "accuracy, flip TTA",
        "loss": "loss (nats)",
        "ece": "calibration error",
    }
    lines = [
        f"{split} {shown[key]:<20} {100 * value:.2f} %"
        if key.startswith("acc")
        else f"{split} {shown[key]:<20} {value:.4f}"
        for key, value in seen.metrics.items()
    ]
    return "\n".join([*lines, "", table_text(seen.per_class)])


@dataclass(frozen=True)
class Explanation:
    """What the model says of one picture.

    Attributes:
        guesses: (class, probability), the likeliest first.
        overlay: the file with the picture beside its map; None where no map was asked for.
    """

    path: Path
    guesses: list[tuple[str, float]]
    overlay: Path | None = None
    empty: bool = False


def explain(
    path: Path, pictures: Sequence[Path], given: Mapping[str, Any], out: Path, top: int = 5
) -> Iterator[Explanation]:
    """Classify pictures of any size, mode or orientation, and write each with its map laid over it.

    When `given` names `wandb`, all answers go there too, at the end.

    Raises:
        DataError: a picture can not be read, or a folder has none.
    """
    trained = load_trained_model(path, given)
    answers = []
    for answer in _answers(trained, pictures, out, top):
        answers.append(answer)
        yield answer
    _track_answers(trained, given, answers, out)


def _answers(trained: TrainedModel, pictures: Sequence[Path], out: Path, top: int) -> Iterator[Explanation]:
    mapped = trained.config.cam != "none" and _evaluator(trained).has_cam_layer()
    files = list(image_files(pictures))
    for file, name in zip(files, _out_names(files), strict=True):
        try:
            pixels = read_image(file)
        except DataError as error:
            if trained.config.bad_images == "fail":
                raise
            log.warning("skipped: %s", error)
            continue
        image = trained.preprocess.image(pixels)[None]
        with torch.no_grad(), machine.autocast(trained.device, machine.autocast_dtype(trained.config.precision)):
            probabilities = trained.model(image.to(trained.device)).float().softmax(1)[0].cpu().numpy()
        order = np.argsort(-probabilities)[:top]
        guesses = [(trained.classes[index], float(probabilities[index])) for index in order]
        if not mapped:
            yield Explanation(file, guesses)
            continue
        maps = gradcam.explain(
            trained.model, image, [int(order[0])], method=trained.config.cam, layer=trained.config.cam_layer
        )
        shown = to_uint8(trained.preprocess.denormalise(image)[0])
        yield Explanation(file, guesses, _write_overlay(shown, maps, out / name), bool(maps.empty[0]))


def _write_overlay(shown: np.ndarray, maps: gradcam.Maps, path: Path) -> Path:
    """The picture as the model saw it beside itself under its map (stripes for an empty one), as PNG."""
    from PIL import Image as Pillow

    large = enlarge(shown, 256)
    second = cam_figure.hatched(large.shape) if maps.empty[0] else cam_figure.overlay(large, maps.scaled[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.concatenate([large, second], 1)).save(path)
    return path


def _out_names(files: Sequence[Path]) -> list[str]:
    """A PNG name for each picture, told apart by a number where two would be equal."""
    seen: dict[str, int] = {}
    names = []
    for file in files:
        stem = (
            "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in file.stem)[:80].lstrip(".")
            or "picture"
        )
        seen[stem] = seen.get(stem, 0) + 1
        names.append(f"{stem}{'' if seen[stem] == 1 else f'-{seen[stem]}'}.png")
    return names


def _evaluator(trained: TrainedModel) -> Evaluator:
    return Evaluator(trained.config, trained.model, trained.preprocess, trained.classes, trained.device)


def evaluation_loader(trained: TrainedModel, split: Split) -> Any:
    """The batches of a split as the model takes them, in order."""
    return loaders.make_eval_loader(split, trained.preprocess, trained.config, trained.device)


def _run_folder(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _few(classes: Sequence[str]) -> str:
    return ", ".join(classes[:4]) + (f", ... {len(classes)} in all" if len(classes) > 4 else "")


def _track(trained: TrainedModel, given: Mapping[str, Any], seen: EvaluationResult, split: str, out: Path) -> None:
    """What `evaluate` saw, to W&B."""
    metrics = {f"{split}/{key}": value for key, value in seen.metrics.items()}
    _to_wandb(trained, given, "evaluate", {**seen.values, **metrics}, metrics, out)


def _track_answers(trained: TrainedModel, given: Mapping[str, Any], answers: Sequence[Explanation], out: Path) -> None:
    """What `explain` answered, to W&B: a row a picture, an empty map as an empty cell."""
    rows: list[tuple[Cell, ...]] = []
    for answer in answers:
        drawn = None if answer.overlay is None or answer.empty else Image(read_image(answer.overlay))
        name, share = answer.guesses[0]
        rows.append((drawn, str(answer.path.name), name, share, ", ".join(name for name, _ in answer.guesses)))
    table = Table(("image and map", "file", "prediction", "confidence", "guesses"), rows)
    _to_wandb(trained, given, "explain", {"explain/pictures": table}, {"explain/count": len(rows)}, out)


def _to_wandb(
    trained: TrainedModel,
    given: Mapping[str, Any],
    job: str,
    values: Mapping[str, Value],
    summary: Mapping[str, Scalar],
    out: Path,
) -> None:
    """Record values as a W&B run of its own, when `--wandb` was given."""
    requested = "wandb" in {canonical_name(key) for key in given}
    name = f"{job}-{_run_folder(trained.path).name}"
    with tracked_output(trained.config, out, job_type=job, name=name, enabled=requested) as tracker:
        tracker.record(Record(0, 0, values, kind="final"))
        tracker.summary(summary)
