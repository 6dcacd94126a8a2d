"""`harness evaluate` and `harness explain`: metrics, galleries and class-activation maps of a trained model."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.config.names import SPLIT_NAMES, data_name
from harness.config.settings import canonical_name
from harness.data import loaders
from harness.data.image_io import SKIP_REMEDY, image_files, read_image
from harness.data.own_datasets import named_data
from harness.data.registry import EvaluationData, Split, load_evaluation_data
from harness.evaluation import gradcam
from harness.evaluation.multilabel import NO_LABEL
from harness.evaluation.trained_model import TrainedModel, load_trained_model, run_folder
from harness.reporting.evaluation_report import EvaluationResult, Evaluator, table_text, to_uint8
from harness.reporting.figures import gradcam as cam_figure
from harness.reporting.figures.gallery import MapLabel
from harness.reporting.gradcam_images import enlarge
from harness.reporting.multilabel_maps import threshold_text
from harness.runs.model_log import WEIGHTS
from harness.runs.predict import rounded_probability, skip_text
from harness.runs.tracked_run import check_tracking, is_tracking_requested, tracked_output
from harness.runs.training_overlap import overlap_text, training_overlap
from harness.tracking.lineage import dataset_artifact, model_of_run
from harness.tracking.metric_names import is_share
from harness.tracking.records import Artifact, Cell, Image, Record, Scalar, Table, Value
from harness.tracking.run_files import EVALUATION, SUMMARY, check_output_folder
from harness.tracking.run_packages import missing_packages_named
from harness.training.device import autocast, autocast_dtype
from harness.training.process_settings import configure_torch, restore_process_state
from harness.utils.errors import DataError, DivergedError, UsageError
from harness.utils.files import link_inside, read_json, write_atomically, write_json
from harness.utils.text import safe_file_name, write_csv

EXPLAINED = Path("explained")  # where the overlays go by default
# Of `explanations.csv`; heights and widths of the map in cells and of the model's input in pixels.
EXPLANATION_COLUMNS = (
    "file", "prediction", "confidence", "map", "map_empty", "share_for_class", "cam", "cam_layer", "map_height", "map_width",
    "input_height", "input_width",
)  # fmt: skip
# The same where images have several labels: a row for each class whose map is drawn; `panel` counts the maps from the left.
LABEL_COLUMNS = (
    "file", "class", "probability", "threshold", "predicted", "map", "panel", *EXPLANATION_COLUMNS[4:],
)  # fmt: skip
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitEvaluation:
    """The evaluation of a trained model on one split.

    Attributes:
        split: train, val or test.
        metrics: accuracy, loss (nats), calibration error; top-5 and flip TTA where they apply.
        per_class: a row for each class.
        folder: holds `predictions.csv`, `per_class.csv`, `evaluation.json` and the figures.
        overlap_unknown: why training images among those of other data were not looked up; empty where they were.
    """

    split: str
    metrics: Mapping[str, float]
    per_class: Table
    folder: Path
    overlap_unknown: str = ""


@restore_process_state()
def evaluate(
    run: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    split: str = "",
    out: Path | None = None,
    data: Any = None,
) -> SplitEvaluation:
    """Evaluate a trained model on a split of its data, or on other data, and write the same files as a run does.

    Images are split as the run split them where they are the run's own. Of other data every image counts: those of the split
    folder `test`, or else `val`, or else all there are, unless `split`, `val_fraction` or `test_fraction` say otherwise.
    Their classes are matched with the model's by name, and may be fewer.

    Args:
        run: a run directory, a `model.safetensors` or a `last.pt`.
        settings: replace those of the checkpoint, such as `data` and `data_dir`; `wandb` or `tracker` also records the evaluation there.
        split: train, val or test; empty: the test set, where there is one.
        out: folder for the files; None: `evaluation-SPLIT` in the run directory, or `evaluation-NAME-SPLIT` for other data.
        data: a data set as an object, or a mapping of splits to such, as that of `harness.run`.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, foreign or unsafe.
        DataError: the data is missing or unreadable, or has a class that the model does not have.
        UsageError: the data has no such split, or W&B would refuse a value such as the project.
    """
    settings = settings or {}
    if data is not None:
        with named_data(data) as name:
            return evaluate(run, {**settings, "data": name}, split=split, out=out)
    named = {canonical_name(key) for key in settings}
    trained = load_trained_model(Path(run), settings)
    _check_tracking(trained, settings)
    config = trained.config
    divide = bool(named & {"val_fraction", "test_fraction"})
    own_fingerprint = _own_fingerprint(trained)
    with missing_packages_named(run_folder(trained.path)):
        evaluated = load_evaluation_data(config, trained.classes, own_fingerprint, divide)
    if not evaluated.is_own and not named & {"data", "data_dir"}:
        whole = "; all of it is evaluated, training images too" if tuple(evaluated.splits) == ("train",) else ""
        log.warning("%s has changed since the model was trained%s", config.data_dir or config.data, whole)
    images = _choose_split(evaluated, split)
    folder = Path(out) if out is not None else _evaluation_folder(trained, evaluated, images.name)
    check_output_folder(folder, is_named=out is not None)
    overlap = None if evaluated.is_own else training_overlap(trained, images, own_fingerprint)
    configure_torch(config, trained.device)
    loader = loaders.make_eval_loader(images, trained.preprocess, config, trained.device)
    result = _evaluator(trained).evaluate(images, loader, folder)
    facts: dict[str, Any] = {
        "checkpoint": str(trained.path),
        "data": config.data,
        "data_dir": config.data_dir,
        "split": images.name,
        "images": len(images),
        "fingerprint": evaluated.fingerprint,
    }
    if overlap is not None:
        facts["training_images"] = overlap.count
        if overlap.pairs:
            log.warning("%s", overlap_text(overlap, images, result.correct))
    write_json(folder / "evaluation.json", {**facts, **result.metrics})
    _track_evaluation(trained, settings, evaluated, result, images.name, folder)
    unknown = "" if overlap is None else overlap.unknown
    return SplitEvaluation(images.name, result.metrics, result.per_class, folder, unknown)


def _choose_split(data: EvaluationData, name: str) -> Split:
    """Return the images of a split; without a name the test set, the validation set, or whatever there is."""
    if not data.is_own and tuple(data.splits) == ("train",) and name in ("", "test"):
        # Other data without splits is read as training images, and is what the model is tested on.
        return dataclasses.replace(data.splits["train"], name="test")
    chosen = name or next(key for key in reversed(SPLIT_NAMES) if key in data.splits)
    if chosen not in data.splits:
        raise UsageError(f"split={name!r}: the data has {', '.join(data.splits)}")
    return data.splits[chosen]


def _own_fingerprint(trained: TrainedModel) -> str:
    """Return the fingerprint of the data that a model was trained with; empty where it is not known."""
    summary = read_json(run_folder(trained.path) / SUMMARY)
    dataset: Any = summary.get("dataset")  # weights of earlier versions do not have it
    known = trained.facts.get("fingerprint") or (dataset.get("fingerprint") if isinstance(dataset, dict) else "")
    return str(known or "")


def _evaluation_folder(trained: TrainedModel, data: EvaluationData, split: str) -> Path:
    """Return the folder in the run directory for an evaluation: one for each data set and split."""
    config, run = trained.config, run_folder(trained.path)
    if data.is_own:
        return run / f"{EVALUATION}{split}"
    name = safe_file_name(data_name(config.data, config.data_dir), "data")
    folder = run / f"{EVALUATION}{name}-{split}"
    if read_json(folder / "evaluation.json").get("fingerprint", data.fingerprint) != data.fingerprint:
        return folder.with_name(f"{folder.name}-{data.fingerprint[:8]}")  # another folder of this name
    return folder


def evaluation_text(evaluation: SplitEvaluation) -> str:
    """Return the metrics and the per-class table as text for a terminal."""
    names = {
        "acc": "accuracy",
        "acc5": "top-5 accuracy",
        "acc_tta": "accuracy, TTA",
        "balanced_acc": "balanced accuracy",
        "f1_macro": "macro F1",
        "loss": "loss (nats)",
        "ece": "ECE",
        "map": "mAP",
        "map_tta": "mAP, TTA",
        "exact_match": "exact match",
    }
    lines = []
    for key, value in evaluation.metrics.items():
        number = f"{100 * value:.2f} %" if is_share(key) else f"{value:.4f}"
        lines.append(f"{evaluation.split} {names.get(key, key):<20} {number}")
    table = evaluation.per_class
    kept = [column for column, name in enumerate(table.columns) if name != "accuracy"]  # it is against the rest
    rows = [tuple(row[column] for column in kept) for row in table.rows]
    shown = Table(tuple(table.columns[column] for column in kept), rows)
    return "\n".join([*lines, "", table_text(shown)])


@dataclass(frozen=True)
class ExplainedLabel:
    """One of several classes of an image, with its class-activation map; `empty` and `share` as in `Explanation`.

    Attributes:
        threshold: the class is predicted where its probability is at least that.
    """

    name: str
    probability: float
    threshold: float
    empty: bool = False
    share: float = math.nan

    @property
    def is_predicted(self) -> bool:
        return self.probability >= self.threshold


@dataclass(frozen=True)
class Explanation:
    """A model's answer to one image, with its class-activation map.

    Attributes:
        guesses: (class, probability), the most probable first.
        overlay: the file with the image beside its map; None without a map.
        empty: whether the map has no evidence in it.
        share: of the evidence for and against the class, the part that is for it, 0..1; NaN without a map.
        resolution: of the map; None without one.
        layer: whose activations the map shows.
        finer: what helps where the map is too coarse; empty where it is not.
        labels: where images may have several: the predicted classes, the most probable first, at most as many as there are
            guesses, or the most probable class where none is predicted; the overlay has a map of each. `empty` says whether
            all of these are, and `share` is of the first.
    """

    path: Path
    guesses: list[tuple[str, float]]
    overlay: Path | None = None
    empty: bool = False
    share: float = math.nan
    resolution: gradcam.Resolution | None = None
    layer: str = ""
    finer: str = ""
    labels: tuple[ExplainedLabel, ...] | None = None


def explain(
    run: Path | str,
    pictures: Path | str | Sequence[Path | str],
    settings: Mapping[str, Any] | None = None,
    *,
    out: Path | None = None,
    top: int = 5,
) -> Iterator[Explanation]:
    """Classify images of any size, mode or orientation, and write each beside its class-activation map.

    Where images have several labels, that is a map for each predicted class, or for the most probable one where none is predicted.

    A generator: each image is classified when its explanation is asked for, and `explanations.csv` is written at the end, also
    where an image that cannot be read ends it.
    The files lie in `out` as the images lie in their folder; those of several folders each below its name.

    Args:
        run: a run directory, a `model.safetensors` or a `last.pt`.
        pictures: files, or folders that are searched at any depth.
        settings: replace those of the checkpoint (`cam`, `device`, ...); `wandb` or `tracker` also records the answers there, at the end.
        out: folder for the overlays and `explanations.csv`; None: `explained`.
        top: number of guesses, and the most maps of an image with several labels.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, foreign or unsafe.
        DataError: an image cannot be read, a folder has none, or `explained` is a symbolic link.
        DivergedError: the model answers with NaN or infinite numbers.
        UsageError: W&B would refuse a value such as the project.
    """
    settings = settings or {}
    folder = EXPLAINED if out is None else Path(out)
    check_output_folder(folder, is_named=out is not None)
    trained = load_trained_model(Path(run), settings)
    _check_tracking(trained, settings)
    explanations: list[Explanation] = []
    try:
        for explanation in _explain_each(trained, list(image_files(pictures)), folder, top, skip_text(settings)):
            explanations.append(explanation)
            yield explanation
    except DataError:
        if explanations:  # whose maps are there
            _write_explanations(explanations, folder, trained.config.cam, trained.is_multilabel)
        raise
    _write_explanations(explanations, folder, trained.config.cam, trained.is_multilabel)
    _track_explanations(trained, settings, explanations, folder)


def _explain_each(
    trained: TrainedModel, pictures: Sequence[tuple[Path, Path]], out: Path, top: int, skipped: str
) -> Iterator[Explanation]:
    finer = ""
    draws_maps = trained.config.cam != "none" and _evaluator(trained).has_cam_layer()
    for (file, _), name in zip(pictures, _overlay_names([place for _, place in pictures]), strict=True):
        try:
            pixels = read_image(file, "", trained.config.grey_limits(), trained.config.in_chans)
        except DataError as error:
            if trained.config.bad_images == "fail":
                raise DataError(f"{error}; {SKIP_REMEDY}") from None
            log.warning("%s: %s", skipped, error)
            continue
        image = trained.preprocess.image(pixels)[None]
        with trained.configured(), torch.no_grad(), autocast(trained.device, autocast_dtype(trained.config.precision)):
            probabilities = trained.probabilities(trained.model(image.to(trained.device)))[0]
        if not np.isfinite(probabilities).all():
            raise DivergedError(f"the model answers {file} with NaN or infinite numbers; its training has diverged")
        ranked = np.argsort(-probabilities)
        order = ranked[:top]
        guesses = [(trained.classes[index], float(probabilities[index])) for index in order]
        shown = [int(index) for index in order[:1]]
        labels = None
        if trained.thresholds is not None:
            predicted = [int(index) for index in ranked if probabilities[index] >= trained.thresholds[index]]
            shown = predicted[:top] or shown  # a class with a low threshold need not be among the most probable
            labels = tuple(
                ExplainedLabel(trained.classes[index], float(probabilities[index]), float(trained.thresholds[index]))
                for index in shown
            )
        if not draws_maps:
            yield Explanation(file, guesses, labels=labels)
            continue
        with trained.configured():
            maps = gradcam.compute_maps(
                trained.model,
                image.expand(len(shown), -1, -1, -1),
                shown,
                method=trained.config.cam,
                layer=trained.config.cam_layer,
            )
            if maps.resolution.is_coarse and not finer:
                finer = gradcam.finer_maps(trained.model, image)
        picture = to_uint8(trained.preprocess.denormalise(image)[0])
        if (link := link_inside(out, (out / name).parent)) is not None:
            raise DataError(
                f"{link} is a symbolic link, and what is written would lie where it leads; remove it, or name another folder"
            )
        if labels is None:
            overlay = write_overlay(picture, maps, out / name)
        else:
            labels = tuple(
                dataclasses.replace(label, empty=bool(empty), share=float(share))
                for label, empty, share in zip(labels, maps.empty, maps.share, strict=True)
            )
            captions = [MapLabel(label.name, threshold_text(label.probability, label.threshold)) for label in labels]
            overlay = cam_figure.labels_figure(picture, maps, captions, out / name)
        share = float(maps.share[0])
        yield Explanation(
            file, guesses, overlay, bool(maps.empty.all()), share, maps.resolution, maps.layer, finer, labels
        )


def write_overlay(picture: np.ndarray, maps: gradcam.Maps, path: Path) -> Path:
    """Write the image as the model saw it beside itself under its map (hatched for an empty one), as PNG."""
    from PIL import Image as Pillow

    large = enlarge(picture, 256)
    overlay = cam_figure.hatched(large.shape) if maps.empty[0] else cam_figure.overlay(large, maps.scaled[0])
    drawn = Pillow.fromarray(np.concatenate([large, overlay], 1))
    write_atomically(path, lambda file: drawn.save(file, format="PNG"))
    return path


def _overlay_names(places: Sequence[Path]) -> list[Path]:
    """Return the path of a PNG for each image, below the folder of the results; numbered where two would be equal."""
    counts: Counter[Path] = Counter()
    names = []
    for place in places:
        folder = Path(*(safe_file_name(part, "folder") for part in place.parts[:-1]))
        name = folder / safe_file_name(place.stem, "picture")
        counts[name] += 1
        names.append(name.with_name(f"{name.name}{'' if counts[name] == 1 else f'-{counts[name]}'}.png"))
    return names


def _write_explanations(explanations: Sequence[Explanation], folder: Path, method: str, is_multilabel: bool) -> None:
    """Write `explanations.csv`: a row for each picture with its class, its score, and its map with its resolution.

    Where images have several labels, it is a row for each of the classes whose maps are drawn.
    """
    rows: list[tuple[Cell, ...]] = []
    columns = LABEL_COLUMNS if is_multilabel else EXPLANATION_COLUMNS
    for one in explanations:
        file = str(one.path)
        if one.labels is None:
            name, probability = one.guesses[0]
            rows.append(
                (file, name, rounded_probability(probability), *_map_cells(one, one.empty, one.share, folder, method))
            )
        for panel, label in enumerate(one.labels or (), 1):
            answer = (
                rounded_probability(label.probability),
                rounded_probability(label.threshold),
                "yes" if label.is_predicted else "no",
            )
            overlay, *cells = _map_cells(one, label.empty, label.share, folder, method) or (None,)
            rows.append((file, label.name, *answer, overlay, panel if overlay else None, *cells))
    padded = [(*row, *[None] * (len(columns) - len(row))) for row in rows]
    write_csv(folder / "explanations.csv", columns, padded)


def _map_cells(one: Explanation, empty: bool, share: float, folder: Path, method: str) -> tuple[Cell, ...]:
    """Return the cells of a map from `map` on; none where there is no map."""
    if one.resolution is None or one.overlay is None:
        return ()
    overlay, part = one.overlay.relative_to(folder).as_posix(), None if empty else float(f"{share:.4g}")
    return (overlay, "yes" if empty else "no", part, method, one.layer, *dataclasses.astuple(one.resolution))


def _evaluator(trained: TrainedModel) -> Evaluator:
    return Evaluator(
        trained.config, trained.model, trained.preprocess, trained.classes, trained.device, trained.thresholds
    )


def _track_evaluation(
    trained: TrainedModel,
    settings: Mapping[str, Any],
    data: EvaluationData,
    result: EvaluationResult,
    split: str,
    out: Path,
) -> None:
    metrics = {f"{split}/{key}": value for key, value in result.metrics.items()}
    _to_trackers(trained, settings, "evaluate", {**result.values, **metrics}, metrics, out, data)


def _track_explanations(
    trained: TrainedModel, settings: Mapping[str, Any], explanations: Sequence[Explanation], out: Path
) -> None:
    """Record a row for each image; an empty map is an empty cell."""
    rows: list[tuple[Cell, ...]] = []
    for one in explanations:
        overlay = None if one.overlay is None or one.empty else Image(read_image(one.overlay))
        guesses = ", ".join(name for name, _ in one.guesses)
        if one.labels is None:
            rows.append((overlay, str(one.path), *one.guesses[0], guesses))
        else:
            predicted = ", ".join(label.name for label in one.labels if label.is_predicted) or NO_LABEL
            rows.append((overlay, str(one.path), predicted, guesses))
    answer = ("prediction",) if trained.is_multilabel else ("prediction", "confidence")
    table = Table(("image and map", "file", *answer, "guesses"), rows)
    _to_trackers(trained, settings, "explain", {"explain/images": table}, {"explain/count": len(rows)}, out)


def _describe_data(trained: TrainedModel, data: EvaluationData) -> dict[str, Any]:
    """Return the same plain facts of the data as a run that trains on it."""
    sizes = {name: len(split) for name, split in data.splits.items()}
    return {
        "name": trained.config.data,
        "classes": list(data.classes),
        "images": sizes,
        "fingerprint": data.fingerprint,
    }


def used_models(trained: TrainedModel) -> list[Artifact]:
    """Return the model in W&B that was loaded, as an artifact that a run uses; empty where W&B has none with these weights."""
    logged = model_of_run(run_folder(trained.path)) if trained.path.name == WEIGHTS else None
    return [] if logged is None else [logged]


def _check_tracking(trained: TrainedModel, settings: Mapping[str, Any]) -> None:
    """Refuse what the trackers would refuse, before the work whose results they get."""
    if is_tracking_requested(settings):
        check_tracking(trained.config)


def _to_trackers(
    trained: TrainedModel,
    settings: Mapping[str, Any],
    job_type: str,
    values: Mapping[str, Value],
    summary: Mapping[str, Scalar],
    out: Path,
    data: EvaluationData | None = None,
) -> None:
    """Record values as a run of its own, where the settings name `wandb` or `tracker`; it uses the model and the data set."""

    def inputs() -> list[Artifact]:
        models = used_models(trained)
        return (
            models if data is None else [*models, dataset_artifact(trained.config, out, _describe_data(trained, data))]
        )

    name = f"{job_type}-{run_folder(trained.path).name}"
    is_tracked = is_tracking_requested(settings)
    with tracked_output(
        trained.config, out, job_type=job_type, name=name, enabled=is_tracked, inputs=inputs
    ) as tracker:
        tracker.record(Record(0, 0, values, kind="final"))
        tracker.summary(summary)
