"""`harness predict`: class probabilities of images that need no labels, and their files."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from harness.data.image_io import SKIP_REMEDY, image_files, read_image
from harness.evaluation.multilabel import SEPARATOR
from harness.evaluation.trained_model import TrainedModel, load_trained_model
from harness.training.device import autocast, autocast_dtype
from harness.utils.environment import usable_cpus
from harness.utils.errors import DataError, DivergedError, UsageError
from harness.utils.files import write_atomically
from harness.utils.plain import json_text
from harness.utils.text import csv_text

FORMATS = (".csv", ".jsonl")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one image.

    Attributes:
        path: the image's file.
        classes: names of the C classes.
        probabilities: float32 [C], in the order of `classes`.
        thresholds: float64 [C], from which a class is predicted where an image may have several; None: it has one.
    """

    path: Path
    classes: tuple[str, ...]
    probabilities: np.ndarray
    thresholds: np.ndarray | None = None

    @property
    def labels(self) -> list[tuple[str, float]]:
        """The predicted classes with their probabilities, the most probable first; those above their thresholds may be several or none."""
        if self.thresholds is None:
            return self.top(1)
        is_predicted = self.probabilities >= self.thresholds
        return [
            pair for pair, index in zip(self.top(len(self.classes)), self._order(), strict=True) if is_predicted[index]
        ]

    @property
    def prediction(self) -> str:
        """The class with the greatest probability."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def confidence(self) -> float:
        """The probability of the predicted class, 0..1."""
        return float(self.probabilities.max())

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` most probable classes with their probabilities, the most probable first."""
        return [(self.classes[index], float(self.probabilities[index])) for index in self._order()[:count]]

    def _order(self) -> np.ndarray:
        return np.argsort(-self.probabilities, kind="stable")


def predict(
    run: Path | str, paths: Path | str | Sequence[Path | str], settings: Mapping[str, Any] | None = None
) -> Iterator[Prediction]:
    """Yield the class probabilities of images, in order, without labels: a generator, which reads as it is iterated.

    Images of any size, mode or orientation are read in threads and predicted in batches of `eval_batch_size` on the
    device, prepared as the evaluation of the run prepared its images.

    Args:
        run: a run directory, a `model.safetensors` or a `last.pt`.
        paths: image files, and folders that are searched at any depth, in the order of their paths.
        settings: replace the checkpoint's, such as `device`, `precision` or `bad_images` (`fail`, or
            `skip` to leave unreadable images out with a warning); without it, `bad_images` is that of the run.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, foreign or unsafe.
        DataError: an image is missing, or cannot be read under `bad_images=fail`; a folder has none; all are skipped.
        DivergedError: the model answers with NaN or infinite numbers.
    """
    trained = load_trained_model(Path(run), settings)
    files = [file for file, _ in image_files(paths)]
    pictures = _read_pictures(files, trained, skip_text(settings))
    any_read = False
    while batch := list(islice(pictures, trained.config.eval_batch_size)):
        any_read = True
        probabilities = _probabilities(trained, torch.stack([pixels for _, pixels in batch]))
        for (file, _), row in zip(batch, probabilities, strict=True):
            if not np.isfinite(row).all():
                raise DivergedError(f"the model answers {file} with NaN or infinite numbers; its training has diverged")
            yield Prediction(file, trained.classes, row, trained.thresholds)
    if not any_read:
        raise DataError(f"none of the {len(files)} images can be read")


def _probabilities(trained: TrainedModel, pixels: Tensor) -> np.ndarray:
    """Return float32 [B, C] for prepared images, uint8 [B, C, H, W]."""
    layout = torch.channels_last if trained.config.channels_last else torch.contiguous_format
    images = trained.preprocess.normalise(pixels.to(trained.device, non_blocking=True)).contiguous(memory_format=layout)
    with trained.configured(), torch.no_grad(), autocast(trained.device, autocast_dtype(trained.config.precision)):
        return trained.probabilities(trained.model(images))


def skip_text(settings: Mapping[str, Any] | None) -> str:
    """Return what the message on an unreadable image begins with that is left out, by these settings or by the run's own."""
    is_own = bool(settings and settings.get("bad_images"))
    return (
        "skipped"
        if is_own
        else "skipped, since the run was trained with --bad-images skip (--bad-images fail ends here)"
    )


def _read_pictures(files: Sequence[Path], trained: TrainedModel, skipped: str) -> Iterator[tuple[Path, Tensor]]:
    """Yield each image with its pixels, uint8 [C, size, size], in order; threads decode up to a batch of them before.

    Args:
        skipped: what the message on an image that is left out begins with.
    """
    ahead, grey_range, channels = trained.config.eval_batch_size, trained.config.grey_limits(), trained.config.in_chans

    def decode(file: Path) -> Tensor:
        return trained.preprocess.pixels(read_image(file, "", grey_range, channels))

    rest, pending = iter(files), deque[tuple[Path, Future[Tensor]]]()
    pool = ThreadPoolExecutor(min(usable_cpus(), 16), "decode")
    try:
        while True:
            pending.extend((file, pool.submit(decode, file)) for file in islice(rest, max(1, ahead - len(pending))))
            if not pending:
                return
            file, future = pending.popleft()
            try:
                yield file, future.result()
            except DataError as error:
                if trained.config.bad_images == "fail":
                    raise DataError(f"{error}; {SKIP_REMEDY}") from None
                log.warning("%s: %s", skipped, error)
    finally:
        pool.shutdown(cancel_futures=True)


def file_format(out: Path | None) -> str:
    """Return `.csv` or `.jsonl`: the suffix of a file, and `.csv` for standard output.

    Raises:
        UsageError: the suffix is of no format that is written.
    """
    suffix = ".csv" if out is None else out.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"--out {out}: need a file that ends in {' or '.join(FORMATS)}, or - for CSV on standard output"
        )
    return suffix


def write_predictions(predictions: Iterable[Prediction], out: Path | BinaryIO, suffix: str, top: int = 0) -> int:
    """Write predictions to a file atomically, or to a stream one by one; return their number.

    Args:
        out: a path, or an open binary stream.
        suffix: `.csv` (a row an image: file, prediction, confidence, a probability per class, or pairs of class and
            probability) or `.jsonl` (an object a line with the same; `probabilities` maps class to probability). Where images
            have several labels, these and their probabilities stand in place of prediction and confidence, in CSV with | between.
        top: write only the N most probable classes; 0: all, in the model's order. A table with one has no column
            beside `prediction` and `confidence`.
    """
    count = 0

    def write(stream: BinaryIO) -> None:
        nonlocal count
        encode = _csv_lines if suffix == ".csv" else _json_line
        for prediction in predictions:
            # A file name need not be valid Unicode; what is not is written as an escape.
            stream.write(encode(prediction, top, count == 0).encode("utf-8", "backslashreplace"))
            count += 1

    if isinstance(out, Path):
        write_atomically(out, write)
    else:
        write(out)
    return count


def _csv_lines(prediction: Prediction, top: int, is_first: bool) -> str:
    """Return a row of the table, below its header where it is the first."""
    row: list[Any] = [os.fspath(prediction.path), prediction.prediction, rounded_probability(prediction.confidence)]
    header = ["file", "prediction", "confidence"]
    if prediction.thresholds is not None:
        header = ["file", "labels", "probabilities"]
        row = [
            os.fspath(prediction.path),
            SEPARATOR.join(name for name, _ in prediction.labels),
            SEPARATOR.join(f"{probability:.6g}" for _, probability in prediction.labels),
        ]
    if top == 1 and prediction.thresholds is None:
        pass  # the prediction itself
    elif top:
        for rank, (name, probability) in enumerate(prediction.top(top), 1):
            header += [f"class_{rank}", f"probability_{rank}"]
            row += [name, rounded_probability(probability)]
    else:
        header += prediction.classes
        row += map(rounded_probability, prediction.probabilities.tolist())
    text = csv_text(header, [row])
    return text if is_first else csv_text(row, [])


def _json_line(prediction: Prediction, top: int, is_first: bool) -> str:
    listed = prediction.top(top) if top else zip(prediction.classes, prediction.probabilities.tolist(), strict=True)
    about: dict[str, Any] = {
        "prediction": prediction.prediction,
        "confidence": rounded_probability(prediction.confidence),
    }
    if prediction.thresholds is not None:
        about = {"labels": {name: rounded_probability(probability) for name, probability in prediction.labels}}
    record = {
        "file": os.fspath(prediction.path),
        **about,
        "probabilities": {name: rounded_probability(probability) for name, probability in listed},
    }
    return json_text(record) + "\n"


def rounded_probability(probability: float) -> float:
    """Return a probability with six significant digits, as `predictions.csv` has it."""
    return float(f"{probability:.6g}")
