"""The loops of timm, Lightning and fastai, each logging to W&B offline in the library's own way.

`as it comes` means the library's defaults (float32, NCHW, its own loader), `tuned` the same with bf16 and
channels_last. All train the network of the settings with our augmentation, batch size and optimizer.
"""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from typing import Any

import torch
from loop_parts import (
    Clock,
    ImageDataset,
    Repeated,
    Timed,
    autocast,
    build_model,
    channels_last,
    endless,
    torchvision_transforms,
    wandb_run,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from harness.runs.components import Components


def timm_step(components: Components, tuned: bool) -> Timed:
    """Measure timm's `create_loader` and the step and W&B rows of its train.py, with our augmentation in place of its own."""
    from timm.data import create_loader
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import ToNumpy
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter, accuracy, update_summary
    from torchvision import transforms

    config, device = components.config, components.learner.device
    model = build_model(components, channels_last=tuned)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.001, weight_decay=5e-4, momentum=0.9)
    options: dict[str, Any] = dict(
        input_size=(3, 32, 32), use_prefetcher=True, mean=components.dataset.mean, std=components.dataset.std, device=device,
        num_workers=4, persistent_workers=True, pin_memory=device.type == "cuda",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than cores
        train = create_loader(
            ImageDataset(components.dataset.train), batch_size=config.batch_size, is_training=True, **options
        )
        test = create_loader(
            ImageDataset(components.dataset.test),
            batch_size=config.batch_size,
            is_training=False,
            crop_pct=1.0,
            **options,
        )
    crop = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), ToNumpy()]
    train.loader.dataset.transform = transforms.Compose(crop)
    train.random_erasing = RandomErasing(
        1.0, 1 / 16, 1 / 16, min_aspect=1.0, max_aspect=1.0, mode="const", device=device
    )
    context = partial(autocast, device, torch.bfloat16 if tuned else None)

    def timed(warm: int, steps: int) -> tuple[float, float]:
        clock = Clock(device)
        stream = endless(train)  # a new one: the workers of an old one load batches during the turns of other loops
        losses, test_losses, top1 = AverageMeter(), AverageMeter(), AverageMeter()
        with wandb_run() as folder:
            model.train()
            for step in range(warm + steps):
                if step == warm:
                    clock.begin()
                images, labels = next(stream)
                if tuned:
                    images = channels_last(images)
                with context():
                    loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if step % 50 == 0:
                    losses.update(loss.item(), images.size(0))
            clock.end_training()
            stream.close()
            clock.begin_evaluation()
            model.eval()
            with torch.no_grad():
                for images, labels in test:
                    if tuned:
                        images = channels_last(images)
                    with context():
                        logits = model(images)
                    test_losses.update(F.cross_entropy(logits, labels).item(), images.size(0))
                    top1.update(accuracy(logits, labels, topk=(1, 5))[0].item(), images.size(0))
            summary = {"loss": test_losses.avg, "top1": top1.avg}
            update_summary(0, {"loss": losses.avg}, summary, str(folder / "summary.csv"), lr=0.001, log_wandb=True)
            clock.end_evaluation()
        return clock.seconds

    return timed


def lightning(components: Components, tuned: bool) -> Timed:
    """Measure Lightning's Trainer with WandbLogger, logging every 50 steps as by default."""
    import lightning as L
    from lightning.pytorch.loggers import WandbLogger

    config, device = components.config, components.learner.device
    augmented, plain = torchvision_transforms(components)
    net = build_model(components, channels_last=tuned).cpu()

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> Tensor:
            images, labels = batch
            loss = F.cross_entropy(self.net(channels_last(images) if tuned else images), labels)
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            images, labels = batch
            logits = self.net(channels_last(images) if tuned else images)
            self.log("val/loss", F.cross_entropy(logits, labels))
            self.log("val/acc", (logits.argmax(1) == labels).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.001, 0.9, nesterov=True, weight_decay=5e-4)

    class Timer(L.Callback):
        def __init__(self, warm: int, steps: int) -> None:
            self.warm, self.last, self.clock = warm, warm + steps, Clock(device)

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if index + 1 == self.warm:
                self.clock.begin()
            if index + 1 == self.last:
                self.clock.end_training()

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            self.clock.begin_evaluation()

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            self.clock.end_evaluation()

    def loader(split: Any, transform: Any, shuffle: bool) -> DataLoader:
        return DataLoader(
            ImageDataset(split, transform), config.batch_size, shuffle=shuffle, num_workers=2, drop_last=shuffle
        )

    def timed(warm: int, steps: int) -> tuple[float, float]:
        timer = Timer(warm, steps)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger = WandbLogger(save_dir=folder, offline=True, project="throughput")
            trainer = L.Trainer(
                default_root_dir=folder, logger=logger, max_epochs=1, limit_train_batches=warm + steps,
                accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, enable_progress_bar=False,
                enable_model_summary=False, num_sanity_val_steps=0, callbacks=[timer], precision="bf16-mixed" if tuned else "32-true",
            )  # fmt: skip
            train = Repeated(loader(components.dataset.train, augmented, True), warm + steps)
            trainer.fit(Module(), train, loader(components.dataset.test, plain, False))
            logger.experiment.finish()
        return timer.clock.seconds

    return timed


def fastai(components: Components, tuned: bool) -> Timed:
    """Measure fastai's Learner with WandbCallback and fastai's loaders, over a plain dataset.

    A plain dataset of tensors with torchvision's transforms, which fastai's documentation allows, spares fastai the cost
    of its typed images. Its mixed precision enters CUDA's autocast alone and so does nothing on a CPU, and its
    ChannelsLast converts the model alone: where `tuned`, a callback enters the device's autocast, another converts the
    images.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses torch.jit.script
        from fastai.callback.channelslast import ChannelsLast
        from fastai.callback.core import Callback
        from fastai.callback.fp16 import MixedPrecision
        from fastai.callback.wandb import WandbCallback
        from fastai.data.core import DataLoaders, TfmdDL
        from fastai.learner import Learner
        from fastai.metrics import accuracy
        from fastai.optimizer import OptimWrapper

    config, device = components.config, components.learner.device
    augmented, plain = torchvision_transforms(components)
    net = build_model(components, channels_last=False)
    sgd = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9, nesterov=True)

    class DeviceMixedPrecision(MixedPrecision):
        def before_fit(self) -> None:
            super().before_fit()
            self.autocast = torch.autocast(device.type, dtype=torch.bfloat16)

    class ChannelsLastImages(Callback):
        def before_batch(self) -> None:
            self.learn.xb = tuple(channels_last(images) for images in self.xb)

    class PlainLearner(Learner):
        def gather_args(self) -> dict[str, Any]:
            """Return the settings for W&B: none, since WandbCallback of fastai 2.8 fails on numbers with fastcore 2.2."""
            return {}

    class Timer(Callback):
        order = WandbCallback.order + 1  # what W&B costs is measured too

        def __init__(self, warm: int) -> None:
            self.warm, self.clock = warm, Clock(device)

        def after_batch(self) -> None:
            if self.training and self.iter + 1 == self.warm:
                self.clock.begin()

        def after_train(self) -> None:
            self.clock.end_training()
            self.clock.begin_evaluation()

        def after_epoch(self) -> None:
            self.clock.end_evaluation()

    def timed(warm: int, steps: int) -> tuple[float, float]:
        timer = Timer(warm)
        train = TfmdDL(
            ImageDataset(components.dataset.train, augmented), bs=config.batch_size, shuffle=True, drop_last=True
        )
        test = TfmdDL(ImageDataset(components.dataset.test, plain), bs=config.batch_size)
        with wandb_run() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Tables of predicted images are drawn after the training, and need fastai's typed images: left out.
            callbacks = [timer, WandbCallback(log_preds=False)]
            if tuned:
                callbacks += [ChannelsLast(), ChannelsLastImages(), DeviceMixedPrecision("bf16")]
            loaders = DataLoaders(Repeated(train, warm + steps), test, path=folder, device=device)
            learner = PlainLearner(
                loaders, net, loss_func=F.cross_entropy, opt_func=sgd, lr=0.001, wd=5e-4, wd_bn_bias=True,
                metrics=accuracy, cbs=callbacks, path=folder,
            )  # fmt: skip
            with learner.no_bar(), learner.no_logging():
                learner.fit(1)
        return timer.clock.seconds

    return timed
