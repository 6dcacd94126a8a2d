"""Choose settings that fit the data, for those that are `auto`: pure functions of a few facts, each with its reason.

The rules and their numbers come from experiments (docs/log.md, 2026-11-27) and from what timm, fastai and Ultralytics do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.augmentation import NO_POLICY
from harness.config.class_names import why_no_colours, why_not_mirrored
from harness.config.settings import AUTO, FIND, Config

SMALL_SIDE = 64  # pixels: up to here a network without a stem that shrinks the image; above, an ImageNet network
SMALL_MODEL = "custom_resnet"
# Small enough for a laptop, trains well from scratch too (batch normalisation), and its weights are Apache-2.0.
LARGE_MODEL = "resnet18d.ra4_e3600_r224_in1k"
SMALL_INPUT = 32  # pixels: of the weights of a small model, where the settings do not say it
LARGE_SIDE, SIDE_STEP = 224, 32  # its input, and by what it shrinks an image
UPDATES_PER_EPOCH = 20  # at least, as far as the smallest batch allows
LEAST_BATCH, MOST_BATCH, MOST_LARGE_BATCH = 8, 512, 64
UPDATES, UPDATES_PRETRAINED = 3000, 800  # of a whole run
EPOCHS, EPOCHS_PRETRAINED = (20, 120), (5, 40)  # least and most
IMAGES_SEEN = 1_200_000  # as in 24 epochs of CIFAR-10: no more epochs than that, down to the least number
LR_RATIO = 0.01  # of LRMAX, where the schedule starts and ends
PEAK_SHARE = 0.2  # of the run, at the end of which the LR is highest
LR_SMALL, LR_SMALL_BATCH = 0.4, 512  # of SGD on the small model, whose head has a lower one
HEAD_LR_SCALE, HEAD_INIT_SCALE = 1 / 64, 1 / 8
LR_ADAM, LR_ADAM_PRETRAINED, LR_ADAM_BATCH = 1e-3, 3e-4, 64
LR_ADAM_SMALL_PRETRAINED = 5e-3  # of this package's networks; docs/log.md, 2026-11-27
LR_SGD, LR_SGD_PRETRAINED, LR_SGD_BATCH = 0.05, 0.01, 64
DECAY_SGD, DECAY_ADAM = 5e-4, 0.05
ADAM_LIKE = ("adam", "adamw", "nadam", "nadamw", "radam", "radamw", "rmsprop")  # that share the LR of AdamW
DECOUPLED = (
    "adamw",
    "nadamw",
    "radamw",
    "lamb",
    "lion",
    "muon",
    "adan",
    "adabelief",
)  # weight decay times LR, not in the gradient
LEAST_UPDATES = 100  # of a whole run, however few images there are
SMOOTHING = 0.1
POLICY = "rand-m5-mstd0.5"  # RandAugment, weaker than ImageNet's rand-m9-mstd0.5-inc1
FEW_IMAGES = 5000  # for training: up to here a policy was measured, and gained
POLICY_EPOCHS, POLICY_UPDATES = 40, 1000  # at least: in a shorter run it brings nothing, or costs accuracy
IMBALANCE = 10  # times as many training images in the largest class as in the smallest, from which a set is unbalanced
FROM_SCRATCH = "trained from scratch: "  # before the reason why the pretrained weights of a model are not used
# Bytes of activations for an image of 32 x 32 pixels in training, float32, of the small model; a larger model shrinks its input
# at once and needs about a quarter of that for the same number of pixels.
IMAGE_BYTES = 3 << 20
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class DataFacts:
    """What the rules know about the data and the machine.

    Attributes:
        images: of the training split.
        imbalance: times as many training images in the largest class as in the smallest one that has any.
        side: median of the shorter sides of the images, in pixels.
        is_uniform: whether all images are squares of that side.
        memory: of the device, in bytes; 0: not known.
        why_no_weights: returns why the pretrained weights of a model cannot be had; empty where they can.
        is_ours: returns whether a model is one of this package, for small images.
        weights_side: side of the input that the weights of `init` were trained with, in pixels; 0: not known.
        input_side: returns the side of a model's default input, in pixels; 0: not known.
    """

    data: str
    images: int
    classes: tuple[str, ...]
    side: int
    is_uniform: bool
    memory: int
    why_no_weights: Callable[[str], str]
    is_ours: Callable[[str], bool]
    imbalance: float = 1.0
    weights_side: int = 0
    input_side: Callable[[str], int] = lambda name: 0


@dataclass(frozen=True)
class Choice:
    """A value that was chosen for a setting.

    Attributes:
        requested: what the settings had: `auto`, or for `model_args` those that were given.
    """

    value: Any
    reason: str
    requested: Any = AUTO


def choose_settings(config: Config, facts: DataFacts) -> dict[str, Choice]:
    """Return the choice for every setting that is `auto`, and for those that follow from it, in the order of the report.

    What the settings already have decides the rest: a given batch size is the one whose LR is chosen.
    """
    requested = config.undecided
    choices: dict[str, Choice] = {}
    for name, rule in RULES.items():
        if name in config.undecided:
            made = rule(config, facts)
            choices |= made
            config = with_choices(config, made)
        elif name in requested and name not in choices:
            choices[name] = Choice(getattr(config, name), "by lr_min_ratio")
    return choices


def with_choices(config: Config, choices: Mapping[str, Choice]) -> Config:
    """Return the settings with the values that were chosen."""
    return config.replace(**{name: choice.value for name, choice in choices.items()})


def _model(config: Config, facts: DataFacts) -> dict[str, Choice]:
    wants_weights = config.pretrained and "pretrained" not in config.undecided
    if facts.side <= SMALL_SIDE and not wants_weights:
        return {"model": Choice(SMALL_MODEL, f"images of {facts.side} pixels: a network made for small images")}
    reason = "pretrained weights are wanted" if wants_weights else f"images of {facts.side} pixels"
    return {"model": Choice(LARGE_MODEL, f"{reason}: a small ImageNet network")}


def _pretrained(config: Config, facts: DataFacts) -> dict[str, Choice]:
    if config.init:
        return {"pretrained": Choice(False, "the weights are those of --init")}
    reason = facts.why_no_weights(config.model)
    if reason:
        return {"pretrained": Choice(False, f"{FROM_SCRATCH}{reason}")}
    return {"pretrained": Choice(True, f"the weights of {config.model} are available")}


def _image_size(config: Config, facts: DataFacts) -> dict[str, Choice]:
    if config.init and facts.weights_side:
        return {"image_size": Choice(facts.weights_side, "that of the weights of --init")}
    if config.init:
        reason = f"the input of {config.model}, {_input_size(config, facts)} pixels; that of the weights of --init is not known"
        return {"image_size": Choice(0, reason)}
    if config.model == LARGE_MODEL:
        size = min(LARGE_SIDE, max(SMALL_SIDE, SIDE_STEP * math.ceil(facts.side / SIDE_STEP)))
        return {
            "image_size": Choice(size, f"images of {facts.side} pixels; {config.model} was trained at {LARGE_SIDE}")
        }
    if not facts.is_ours(config.model):
        return {"image_size": Choice(0, f"the input of {config.model}, {_input_size(config, facts)} pixels")}
    size = max(16, min(SMALL_SIDE, facts.side))
    what = "the size of the images" if facts.is_uniform and size == facts.side else f"images of {facts.side} pixels"
    if size < facts.side:
        what += f", more than {config.model} is made for; --model {LARGE_MODEL.partition('.')[0]} sees more of them"
    return {"image_size": Choice(size, what)}


def _batch_size(config: Config, facts: DataFacts) -> dict[str, Choice]:
    wanted = max(facts.images // UPDATES_PER_EPOCH, LEAST_BATCH)
    most = MOST_BATCH if facts.is_ours(config.model) else MOST_LARGE_BATCH
    size = power_of_two(min(wanted, most, max(facts.images, 2)))
    limit = ""
    if facts.memory:
        fitting = power_of_two(max(2, int(MEMORY_SHARE * facts.memory / _bytes_per_image(config, facts))))
        if fitting < size:
            size, limit = fitting, f", as many as {facts.memory / 2**30:.0f} GiB of memory hold"
    updates = max(1, facts.images // size)
    return {
        "batch_size": Choice(
            size, f"{facts.images:,} training images, {updates} update{'s' * (updates > 1)} an epoch{limit}"
        )
    }


def _epochs(config: Config, facts: DataFacts) -> dict[str, Choice]:
    updates = max(1, facts.images // config.batch_size)
    wanted, (least, most) = (UPDATES_PRETRAINED, EPOCHS_PRETRAINED) if config.starts_from_weights else (UPDATES, EPOCHS)
    least = max(least, math.ceil(LEAST_UPDATES / updates))
    most = max(least, min(most, IMAGES_SEEN // max(1, facts.images)))
    epochs = min(max(math.ceil(wanted / updates), least), most)
    start = "from trained weights" if config.starts_from_weights else "from scratch"
    limit = f"at most {most} epochs" if epochs == most else f"at least {least} epochs" if epochs == least else ""
    return {
        "epochs": Choice(
            epochs, f"{epochs * updates:,} updates {start}; about {wanted:,} are wanted{f', in {limit}' * bool(limit)}"
        )
    }


def _peak_epoch(config: Config, facts: DataFacts) -> dict[str, Choice]:
    peak = peak_of(config.epochs, config.freeze_epochs)
    of = "the epochs after the classifier's own" if 0 < config.freeze_epochs < config.epochs else "the run"
    return {"peak_epoch": Choice(peak, f"the learning rate rises for {PEAK_SHARE:.0%} of {of}")}


def peak_of(epochs: int, freeze_epochs: int = 0) -> float:
    """Return the epoch in which the learning rate is highest, of a run of so many.

    Where the classifier is trained alone at first, the rate still rises when the other layers follow.
    """
    first = freeze_epochs if freeze_epochs < epochs else 0
    return round(first + PEAK_SHARE * (epochs - first), 2)


def _optimizer(config: Config, facts: DataFacts) -> dict[str, Choice]:
    if facts.is_ours(config.model):
        return {"optimizer": Choice("sgd", f"the optimizer that {config.model} was tuned with")}
    return {"optimizer": Choice("adamw", "works for convolutional networks and transformers alike")}


def _head_lr_scale(config: Config, facts: DataFacts) -> dict[str, Choice]:
    is_default_head = not {"head_init_scale", "logit_scale", "head_init"} & config.model_args.keys()
    if config.model != SMALL_MODEL or not is_default_head or config.starts_from_weights:
        return {"head_lr_scale": Choice(1.0, "one learning rate for all layers")}
    arguments = {**config.model_args, "head_init_scale": HEAD_INIT_SCALE}
    return {
        "head_lr_scale": Choice(HEAD_LR_SCALE, "the last layer follows a global max pool, so its inputs are large"),
        "model_args": Choice(arguments, "small first weights for that layer", dict(config.model_args)),
    }


def _lr_max(config: Config, facts: DataFacts) -> dict[str, Choice]:
    batch = config.batch_size
    if config.model == SMALL_MODEL and config.optimizer == "sgd" and config.head_lr_scale == HEAD_LR_SCALE:
        base, reference = LR_SMALL, LR_SMALL_BATCH
    elif config.optimizer in ADAM_LIKE:
        pretrained = LR_ADAM_SMALL_PRETRAINED if facts.is_ours(config.model) else LR_ADAM_PRETRAINED
        base, reference = pretrained if config.starts_from_weights else LR_ADAM, LR_ADAM_BATCH
    elif config.optimizer != "sgd":
        return {"lr_max": Choice(FIND, f"no known rate for {config.optimizer}, so an LR range test is run first")}
    else:
        base, reference = LR_SGD_PRETRAINED if config.starts_from_weights else LR_SGD, LR_SGD_BATCH
    lr = _rounded(base * math.sqrt(batch / reference))
    start = ", trained weights" if config.starts_from_weights else ""
    return {
        "lr_max": Choice(
            lr,
            f"{config.optimizer} at batch size {batch}{start}: {base:g} at {reference}, with the square root of the batch",
        )
    }


def _lr_min(config: Config, facts: DataFacts) -> dict[str, Choice]:
    if config.lr_max == FIND:
        return {"lr_min": Choice(FIND, "by the same range test as lr_max")}
    return {"lr_min": Choice(_rounded(LR_RATIO * float(config.lr_max)), f"1/{1 / LR_RATIO:.0f} of lr_max")}


def _weight_decay(config: Config, facts: DataFacts) -> dict[str, Choice]:
    is_decoupled = config.optimizer in DECOUPLED
    return {"weight_decay": Choice(DECAY_ADAM if is_decoupled else DECAY_SGD, f"usual with {config.optimizer}")}


def _label_smoothing(config: Config, facts: DataFacts) -> dict[str, Choice]:
    if config.is_multilabel:
        return {"label_smoothing": Choice(0.0, "images have several labels, each predicted by itself")}
    if config.mixup or config.cutmix:
        return {"label_smoothing": Choice(0.0, "mixup or cutmix soften the labels already")}
    if facts.imbalance >= IMBALANCE:
        reason = f"the largest class has {facts.imbalance:.0f} times as many images as the smallest: smoothing costs rare classes accuracy"
        return {"label_smoothing": Choice(0.0, reason)}
    return {"label_smoothing": Choice(SMOOTHING, "usual; keeps the model from becoming overconfident")}


def _flip(config: Config, facts: DataFacts) -> dict[str, Choice]:
    if config.alternating_flip:
        return {"flip": Choice(True, "alternating_flip mirrors the images")}
    if reason := _why_no_transforms(config):
        return {"flip": Choice(False, reason)}
    if reason := why_not_mirrored(facts.data, facts.classes):
        return {"flip": Choice(False, f"{reason}; set --flip true if mirror images belong to the same class")}
    return {"flip": Choice(True, "set --flip false if left and right differ, for example in text")}


def _crop_padding(config: Config, facts: DataFacts) -> dict[str, Choice]:
    size = _input_size(config, facts)
    if reason := _why_no_transforms(config):
        return {"crop_padding": Choice(0, reason)}
    if config.crop == "none":
        return {"crop_padding": Choice(0, "no crop")}
    if _gets_resized_crop(config, size):
        return {"crop_padding": Choice(0, f"inputs of {size} pixels get a random resized crop")}
    share = 16 if _are_characters(facts) else 8
    return {"crop_padding": Choice(max(1, size // share), f"1/{share} of the side of {size} pixels, moved at random")}


def _why_no_transforms(config: Config) -> str:
    if config.augment == "none":
        return "augment=none"
    return "the pipeline of albumentations takes its place" if config.augment_pipeline else ""


def _cutout(config: Config, facts: DataFacts) -> dict[str, Choice]:
    if reason := _why_no_transforms(config):
        return {"cutout": Choice(0, reason)}
    if _are_characters(facts):
        return {"cutout": Choice(0, "a masked square can turn one character into another")}
    size = _input_size(config, facts)
    if _gets_resized_crop(config, size):
        return {"cutout": Choice(0, "the random resized crop leaves parts out already")}
    if config.starts_from_weights:
        return {"cutout": Choice(0, "trained weights need less augmentation")}
    if size > SMALL_SIDE:
        return {"cutout": Choice(0, f"tried up to {SMALL_SIDE} pixels, not at {size}")}
    return {"cutout": Choice(size // 4, f"a quarter of the side of {size} pixels")}


def _auto_augment(config: Config, facts: DataFacts) -> dict[str, Choice]:
    is_tuned = config.starts_from_weights and (config.freeze_epochs > 0 or config.layer_decay < 1)
    reason = _why_no_policy(config, facts) or ("" if is_tuned else _why_no_policy_from_scratch(config, facts))
    if reason:
        return {"auto_augment": Choice(NO_POLICY, reason)}
    use = "usual in fine-tuning" if is_tuned else f"for at most {FEW_IMAGES:,} training images"
    reason = f"RandAugment, {use}; set --auto-augment none if only colours tell classes apart"
    return {"auto_augment": Choice(POLICY, reason)}


def _why_no_policy(config: Config, facts: DataFacts) -> str:
    if config.augment != "timm":
        return f"augment={config.augment}"
    if config.loader == "resident":
        return "loader=resident augments whole batches"
    if config.in_chans not in (1, 3):
        return f"images of {config.in_chans} channels"
    if _are_characters(facts):
        return "RandAugment can turn one character into another"
    if reason := why_no_colours(facts.classes):
        return f"{reason}, and RandAugment changes colours; set --auto-augment {POLICY} if that does not matter"
    return ""


def _why_no_policy_from_scratch(config: Config, facts: DataFacts) -> str:
    if config.starts_from_weights:
        return "trained weights need less augmentation; the recipe finetune has RandAugment"
    if (size := _input_size(config, facts)) > SMALL_SIDE:
        return f"RandAugment was tried up to {SMALL_SIDE} pixels, not at {size}"
    if facts.images > FEW_IMAGES:
        return f"RandAugment was tried up to {FEW_IMAGES:,} training images"
    if config.epochs < POLICY_EPOCHS:
        return f"RandAugment brings nothing in fewer than {POLICY_EPOCHS} epochs"
    updates = config.epochs * (facts.images // config.batch_size)
    return f"RandAugment brings nothing in fewer than {POLICY_UPDATES:,} updates" if updates < POLICY_UPDATES else ""


# In this order: a rule finds the settings of those before it decided. A rule may add a setting that follows from its own.
RULES: Mapping[str, Callable[[Config, DataFacts], dict[str, Choice]]] = {
    "model": _model,
    "pretrained": _pretrained,
    "image_size": _image_size,
    "batch_size": _batch_size,
    "epochs": _epochs,
    "peak_epoch": _peak_epoch,
    "optimizer": _optimizer,
    "head_lr_scale": _head_lr_scale,
    "lr_max": _lr_max,
    "lr_min": _lr_min,
    "weight_decay": _weight_decay,
    "label_smoothing": _label_smoothing,
    "flip": _flip,
    "crop_padding": _crop_padding,
    "cutout": _cutout,
    "auto_augment": _auto_augment,
}


def _are_characters(facts: DataFacts) -> bool:
    return "characters" in why_not_mirrored(facts.data, facts.classes)


def _gets_resized_crop(config: Config, size: int) -> bool:
    return config.crop == "resized" or (config.crop == AUTO and (size > SMALL_SIDE or config.sets_resized_crop))


def _input_size(config: Config, facts: DataFacts) -> int:
    """Return the side of the model's input, in pixels; a guess where nothing names it."""
    if known := config.image_size or facts.weights_side or facts.input_side(config.model):
        return known
    if not facts.is_ours(config.model):
        return LARGE_SIDE
    return SMALL_INPUT if config.init else facts.side


def _bytes_per_image(config: Config, facts: DataFacts) -> float:
    size = _input_size(config, facts)
    return IMAGE_BYTES * max(1, config.aug_splits) * (size / 32) ** 2 / (1 if facts.is_ours(config.model) else 4)


def power_of_two(value: float) -> int:
    """Return the greatest power of two that is not above a number of at least 1."""
    return 1 << (int(value).bit_length() - 1)


def _rounded(value: float) -> float:
    """Return a number with two significant digits."""
    return float(f"{value:.2g}")
