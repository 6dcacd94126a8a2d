"""The loop of Ultralytics' classification trainer, a file of its own because of its licence and its settings.

Ultralytics is licensed under the AGPL-3.0, so it is no dependency of this project and nothing but this benchmark imports
it: `pip install ultralytics` yourself. Its settings file and all that it writes lie in a temporary folder, and its
analytics, error reports, update checks, uploads and the loggers other than W&B are switched off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from loop_parts import Clock, Repeated, Timed, autocast, build_model, channels_last, torchvision_transforms
from torch import Tensor, nn

from harness.runs.components import Components

OTHER_LOGGERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard")


class Workspace:
    """The images as a folder, and Ultralytics imported with its settings in that folder; deleted at exit."""

    def __init__(self, components: Components) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name)
        self._import()
        for name in ("train", "test"):
            for number, (image, label) in enumerate(getattr(components.dataset, name).source):
                folder = self.path / "images" / name / f"{int(label):04d}"
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{number:06d}.png", compress_level=1)

    def _import(self) -> None:
        os.environ |= {
            "YOLO_CONFIG_DIR": str(self.path / "settings"), "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false",
            "YOLO_AUTOINSTALL": "false", "ULTRALYTICS_API_KEY": "",
        }  # fmt: skip
        with unchanged_process():
            from ultralytics.utils import SETTINGS

        SETTINGS.update({"sync": False, "wandb": True, **dict.fromkeys(OTHER_LOGGERS, False)})


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Restore what Ultralytics changes in the process and other loops would be measured with."""
    save, threads, omp = torch.save, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    try:
        yield
    finally:
        torch.save = save
        torch.set_num_threads(threads)
        if omp is None:
            os.environ.pop("OMP_NUM_THREADS", None)


def ultralytics_trainer(components: Components, tuned: bool) -> Timed:
    """Measure Ultralytics' ClassificationTrainer with our network, augmentation and optimizer, and its own W&B logging.

    Its parts are otherwise as they come. What differs from the other loops: it decodes the PNG files anew in every epoch
    (`tuned`: once, `cache=ram`), without worker processes on a CPU; it sets the number of torch's threads to one less
    than the number of cores (`tuned`: the number of the other loops); it clips the gradient and updates an average of
    the weights in every update, and evaluates that average, in batches of twice the size; biases and the parameters of
    the normalisation have no weight decay. `tuned` adds bf16 and channels_last, which it refuses on a CPU, inside the
    network, and gives up its deterministic mode.
    Its plots, which need a font from the internet, and its checkpoints are left out, and its W&B rows of an epoch come
    after what is measured.
    """
    if importlib.util.find_spec("ultralytics") is None:  # not imported yet: its settings have to be there first
        raise ModuleNotFoundError("ultralytics is not installed", name="ultralytics")
    space = Workspace(components)
    from ultralytics.models.yolo.classify import ClassificationTrainer
    from ultralytics.nn.tasks import ClassificationModel

    config, device = components.config, components.learner.device
    augmented, plain = torchvision_transforms(components)
    net = build_model(components, channels_last=tuned)
    numbers = itertools.count()

    class Network(ClassificationModel):
        def __init__(self, classes: int) -> None:
            nn.Module.__init__(self)  # the parent's builds a network from a YAML file
            self.model, self.yaml, self.nc = nn.Sequential(net), {"nc": classes, "channels": 3}, classes
            self.stride, self.names = torch.ones(1), {index: str(index) for index in range(classes)}

        def predict(self, images: Tensor, *_: Any, **__: Any) -> Any:
            with autocast(device, torch.bfloat16 if tuned else None):
                logits = self.model(channels_last(images) if tuned else images).float()
            return logits if self.training else (logits.softmax(1), logits)  # as its own head does

    class Trainer(ClassificationTrainer):
        clock: Clock
        updates: int

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            return Network(self.data["nc"])

        def build_dataset(self, img_path: str, mode: str = "train", batch: Any = None) -> Any:
            dataset = super().build_dataset(img_path, mode, batch)
            dataset.torch_transforms = augmented if mode == "train" else plain
            if mode == "train":  # whole batches only, as in the other loops
                dataset.samples = dataset.samples[: len(dataset) // config.batch_size * config.batch_size]
            return dataset

        def get_dataloader(self, *args: Any, mode: str = "train", **options: Any) -> Any:
            loader = super().get_dataloader(*args, mode=mode, **options)
            return Repeated(loader, self.updates) if mode == "train" else loader

        def validate(self) -> Any:
            self.clock.begin_evaluation()
            result = super().validate()
            self.clock.end_evaluation()
            return result

        def save_model(self) -> bool:
            return False

        def final_eval(self) -> None:
            """Leave out the second evaluation, of the checkpoint."""

    def timed(warm: int, steps: int) -> tuple[float, float]:
        done = itertools.count(1)

        def on_train_batch_end(trainer: Any) -> None:
            update = next(done)
            if update == warm:
                trainer.clock.begin()
            if update == warm + steps:
                trainer.clock.end_training()

        overrides = dict(
            model="our-network.yaml", data=str(space.path / "images"), split="test", project=str(space.path / "runs"),
            name=f"run-{next(numbers)}", imgsz=32, epochs=1, batch=config.batch_size, nbs=config.batch_size,
            device="cpu" if device.type == "cpu" else device.index or 0, optimizer="SGD", lr0=0.001, lrf=1.0,
            momentum=0.9, weight_decay=5e-4, warmup_epochs=0, plots=False, save=False, pretrained=False,
            # By default half precision on a GPU alone, after a check that downloads a network; bf16 needs none.
            amp="bf16" if device.type == "cuda" else False, cache="ram" if tuned else False,
            deterministic=not tuned,
        )  # fmt: skip
        threads = torch.get_num_threads()
        with unchanged_process(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(overrides=overrides)
            if tuned:
                torch.set_num_threads(threads)
            trainer.clock, trainer.updates = Clock(device), warm + steps
            trainer.add_callback("on_train_batch_end", on_train_batch_end)
            trainer.train()
        return trainer.clock.seconds

    return timed
