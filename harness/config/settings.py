"""Every setting of a run, defined once: name, type, default, help and bounds.

Command-line options, recipe files, the saved `config.yaml`, W&B's `run.config` and the first line of the journal are
all derived from `Config`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from harness.config import yaml_io
from harness.config.augmentation import (
    CROP_RATIO,
    CROP_SCALE,
    ERASING_AREA,
    NO_POLICY,
    check_jitter,
    check_pipeline,
    check_policy,
    check_range,
)
from harness.config.combinations import check_combinations
from harness.config.conversion import BOOLEANS as BOOLEANS
from harness.config.conversion import FIND, ClassWeights, NumberOrFind, convert
from harness.config.losses import LOSSES
from harness.config.names import SCHEDULES, SELECTION_METRICS
from harness.config.names import WANDB as WANDB
from harness.config.other_names import meaning_of
from harness.utils.errors import UsageError, did_you_mean, first_line
from harness.utils.plugins import has_installed_plugins
from harness.utils.registry import NAME as PLUGIN_NAME

TRACKERS = (WANDB, "tensorboard", "mlflow", "trackio")
ALERTS = ("none", "diverged", "failed", "ended")  # each with those before it
MAX_CHANNELS = 64  # of an image
MAX_EXTENSIONS = 100  # changes of the number of epochs of one run
# Written for None, the value of a switch that is neither on nor off, and for a setting that is still to be chosen from the data.
AUTO = "auto"
# Short names that are understood wherever a setting's name is: options, recipes, parameters of a sweep.
SHORT_NAMES = {"config": "recipe", "lr": "lr_max", "opt": "optimizer", "wd": "weight_decay"}


def _setting(
    default: Any,
    help: str,
    *,
    group: str,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    affects_results: bool = True,
    added_later: bool = False,
    alone: str = "",
    from_data: bool = False,
    is_open: bool = False,
    is_file: bool = False,
    check: Callable[[str, Any], None] | None = None,
) -> Any:
    """Return a field of `Config`.

    Args:
        low, above: lower bound, inclusive and exclusive.
        high, below: upper bound, inclusive and exclusive.
        affects_results: whether the numbers of a run depend on the setting; a run is resumed only if all such settings
            are unchanged.
        added_later: leave the setting out of `affecting_results` while it has its default, so that the names of runs
            from before there was such a setting stay the same, and the runs can be resumed.
        alone: value of an option that is given without one (and of `true`); `false` is the value `none`.
        from_data: whether the value may be `auto`: chosen from the data before training, see `config.automatic`.
        is_open: whether plug-ins may register further choices; those are checked where they are used.
        is_file: whether the name of a YAML or JSON file stands for the mapping in it, which the run then keeps.
        check: refuses a converted value that is not allowed, given the name of the setting and the value.
    """
    metadata = dict(
        help=help,
        group=group,
        choices=choices,
        low=low,
        above=above,
        high=high,
        below=below,
        affects_results=affects_results,
        added_later=added_later,
        alone=alone,
        from_data=from_data,
        is_open=is_open,
        is_file=is_file,
        check=check,
    )
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one run, converted to their types and checked on creation.

    Raises:
        UsageError: a value is out of its bounds, or settings contradict each other.
    """

    # fmt: off
    recipe: str = _setting("custom-resnet", "A recipe to start from: the name of a shipped one, or a YAML file; where none is given, auto is the recipe of all data but CIFAR.", group="Model", affects_results=False)
    model: str = _setting("custom_resnet", "Any timm model, or one of this package: custom_resnet, resnet18_cifar, speedrun_cnn.", group="Model", from_data=True)
    model_args: dict[str, Any] = _setting({}, "Arguments of the model, for example width=16,logit_scale=0.125.", group="Model")
    drop: float | None = _setting(None, "Dropout rate of the model (timm's drop_rate), mostly before the classifier; none: that of the model.", group="Model", low=0, below=1, added_later=True)
    drop_path: float | None = _setting(None, "Rate of stochastic depth (timm's drop_path_rate): residual branches that are skipped for an image; none: that of the model.", group="Model", low=0, below=1, added_later=True)
    pretrained: bool = _setting(False, "Start from timm's pretrained weights, which are downloaded.", group="Model", from_data=True)
    init: str = _setting("", "Start from these weights: a run directory (its result), a .safetensors, .pth, .pt or .bin file, an exported folder, or hf-hub:NAME. Without --model the model is that of the weights, where they name it.", group="Model", added_later=True)
    plugin: tuple[str, ...] = _setting((), "Python modules to import first; they may register models, data sets, transforms, losses, schedules, metrics and trackers (docs/howto/plugins.md).", group="Model")

    data: str = _setting("cifar10", "Data set: cifar10, cifar100, digits, folder (class folders in data_dir), table (a CSV, Parquet or other table of paths and labels in data_dir), a name that a plug-in registers, or one that timm reads (torch/NAME, hfds/USER/NAME, tfds/NAME, wds/NAME).", group="Data")
    data_dir: str = _setting("data", "Folder, tar archive or table of the data, also for downloads; alone, without --data, of your own images.", group="Data", affects_results=False)
    image_column: str = _setting("", "Column of a table that has the path of each image, or the image itself; empty: one named path, file_name, image or the like.", group="Data", added_later=True)
    label_column: str = _setting("", "Column of a table that has the class of each image; empty: one named label, class, target or the like.", group="Data", added_later=True)
    label_separator: str = _setting("", "Separator of the labels in the label column of a table, such as | or a comma: each image has several of them, one, or none (multi-label). Lists in JSON lines and Parquet are labels too, then.", group="Data", added_later=True)
    label_columns: tuple[str, ...] = _setting((), "Columns of a table that hold 0 or 1, one for each class, in their order, in place of label_column: each image has several labels, one, or none (multi-label). * and ? stand for any letters.", group="Data", added_later=True)
    split_column: str = _setting("", "Column of a table that has the split of each image (train, val, test); empty: one named split, where there is one.", group="Data", added_later=True)
    image_root: str = _setting("", "Folder that the paths of a table are relative to, and out of which none may lead; empty: the folder of the table.", group="Data", affects_results=False)
    download: bool = _setting(True, "Download the data set where it is missing.", group="Data", affects_results=False)
    classes: int = _setting(0, "Expected number of classes; 0: as many as the data has.", group="Data", low=0)
    image_size: int = _setting(0, "Side of the model's input in pixels; 0: the model's default.", group="Data", low=0, high=4096, from_data=True)
    in_chans: int = _setting(3, "Channels of the images and of the model's input: 3: RGB; 1: grey, the luma of colour images; another number: as many as the images have.", group="Data", low=1, high=MAX_CHANNELS, added_later=True)
    resize: str = _setting("auto", "How images become square: crop: the centre is cut out; squash: the sides are scaled differently; letterbox: borders of the mean colour are added; auto: as the model's timm configuration says, mostly crop.", group="Data", choices=("auto", "crop", "squash", "letterbox"), added_later=True)
    val_fraction: float = _setting(0.0, "Fraction of the training images held out as the validation split; 0: no validation split, so nothing is selected on one.", group="Data", low=0, below=1)
    test_fraction: float = _setting(0.2, "Fraction of the images held out as the test split, where the data has none.", group="Data", above=0, below=1)
    bad_images: str = _setting("fail", "Unreadable images in a folder: fail, or skip them.", group="Data", choices=("fail", "skip"))
    grey_range: tuple[str, ...] = _setting((), "LOW,HIGH: the values of grey images deeper than 8 bits that become black and white; empty: the range that the file declares, and an image that declares none is refused.", group="Data", added_later=True)
    loader: str = _setting("auto", "resident: keep all images on the device; timm: load them in worker processes; auto: resident where possible.", group="Data", choices=("auto", "resident", "timm"))
    workers: int = _setting(-1, "Worker processes of the timm loader; -1: 2 when training on a CPU; on a GPU the usable CPU cores per process, at most 16.", group="Data", low=-1, high=256, affects_results=False)
    augment: str = _setting("timm", "Library for training augmentation: timm (with torchvision) or albumentations; none: no augmentation.", group="Data", choices=("timm", "albumentations", "none"))
    crop: str = _setting("auto", "pad: pad, then crop at random; resized: random resized crop; none; auto: pad for inputs of up to 64 pixels, else resized.", group="Data", choices=("auto", "pad", "resized", "none"))
    crop_padding: int = _setting(4, "Padding on each side before the random crop, in pixels.", group="Data", low=0, high=512, from_data=True)
    padding_mode: str = _setting("constant", "Content of the padding: constant (black), reflect or edge.", group="Data", choices=("constant", "reflect", "edge"))
    flip: bool = _setting(True, "Mirror each training image horizontally with probability 1/2.", group="Data", from_data=True)
    alternating_flip: bool = _setting(False, "With flip: mirror a random half of the images in the first epoch, the other half in the second, and so on in turns, so that two epochs show both views of every image.", group="Data", added_later=True)
    cutout: int = _setting(8, "Side of the Cutout square in pixels; 0: no Cutout.", group="Data", low=0, high=4096, from_data=True)
    crop_scale: tuple[float, ...] = _setting(CROP_SCALE, "LOW,HIGH: fraction of the area that the random resized crop takes; another than the default makes crop=auto a resized crop.", group="Data", added_later=True, check=check_range)
    crop_ratio: tuple[float, ...] = _setting(CROP_RATIO, "LOW,HIGH: ratio of width to height of the random resized crop; another than the default makes crop=auto a resized crop.", group="Data", added_later=True, check=check_range)
    vflip: float = _setting(0.0, "Probability of mirroring each training image vertically.", group="Data", low=0, high=1, added_later=True)
    auto_augment: str = _setting(NO_POLICY, "timm's policy of random operations: RandAugment (rand-m9-mstd0.5-inc1), AutoAugment (original, originalr, v0, v0r), 3-Augment (3a), AugMix (augmix-m3-w3); none: no policy.", group="Data", added_later=True, from_data=True, check=check_policy)
    color_jitter: tuple[float, ...] = _setting((), "Greatest change of brightness, contrast and saturation, such as 0.4, or three numbers, or four with the hue (at most 0.5); empty: none. It also applies beside auto_augment.", group="Data", added_later=True, check=check_jitter)
    color_jitter_prob: float = _setting(1.0, "Probability of the colour jitter.", group="Data", low=0, high=1, added_later=True)
    grayscale: float = _setting(0.0, "Probability of turning each training image into shades of grey.", group="Data", low=0, high=1, added_later=True)
    blur: float = _setting(0.0, "Probability of blurring each training image (Gaussian, kernel of 23 pixels, sigma 0.1 to 2).", group="Data", low=0, high=1, added_later=True)
    erasing: float = _setting(0.0, "Probability of erasing random rectangles of each training image (timm's RandomErasing, after Cutout).", group="Data", low=0, high=1, added_later=True)
    erasing_mode: str = _setting("pixel", "What erased rectangles are filled with: const: the mean colour; rand: one random colour each; pixel: a random colour for each pixel.", group="Data", choices=("const", "rand", "pixel"), added_later=True)
    erasing_count: int = _setting(1, "Greatest number of erased rectangles; each image has a random number of them, which share the area.", group="Data", low=1, high=1000, added_later=True)
    erasing_area: tuple[float, ...] = _setting(ERASING_AREA, "LOW,HIGH: fraction of the area of an image that is erased.", group="Data", added_later=True, check=check_range)
    aug_repeats: float = _setting(1.0, "Repeated augmentation: each epoch shows its images this many times in a row, each time augmented anew, and as many images fewer, so that it has as many updates as before; 1: off.", group="Data", low=1, high=1000, added_later=True)
    aug_splits: int = _setting(0, "Views of each training image in a batch, for loss=jsd: the first with crop and flip alone, the others with all augmentation; 0: off.", group="Data", low=0, high=100, added_later=True)
    augment_pipeline: dict[str, Any] = _setting({}, "With augment=albumentations: a YAML or JSON file that albumentations.save has written, in place of crop, flip and cutout. The run keeps its content.", group="Data", added_later=True, is_file=True, check=check_pipeline)
    transforms: tuple[str, ...] = _setting((), "Transforms of training images that plug-ins register, one after the other, after all others of single images.", group="Data", added_later=True)
    transform_args: dict[str, Any] = _setting({}, "Arguments of the transforms that plug-ins register, for example strength=0.5; NAME.strength=0.5 is for one of several.", group="Data", added_later=True)

    epochs: int = _setting(24, "Number of epochs.", group="Training", low=0, high=1_000_000, from_data=True)
    batch_size: int = _setting(512, "Images per optimizer update, over all devices.", group="Training", low=1, high=1_000_000, from_data=True)
    eval_batch_size: int = _setting(1000, "Images per batch in evaluation; does not change the results.", group="Training", low=1, high=1_000_000, affects_results=False)
    drop_last: bool = _setting(True, "Drop the last batch of an epoch where it is incomplete.", group="Training")
    sampling: str = _setting("shuffle", "Images of an epoch: shuffle: each training image once; balanced: as many images, but each class equally often, so that images of rare classes come several times, each time augmented anew.", group="Training", choices=("shuffle", "balanced"), added_later=True)
    optimizer: str = _setting("sgd", "Optimizer: sgd, adam, adamw or rmsprop of torch.optim, or any name of timm.optim.list_optimizers(), such as nadamw, lamb, lion, muon.", group="Training", from_data=True)
    optimizer_args: dict[str, Any] = _setting({}, "Further arguments of the optimizer, for example eps=1e-6 or betas=[0.9,0.98].", group="Training", added_later=True)
    momentum: float = _setting(0.9, "Momentum of SGD and RMSprop, and of those of timm that have one; beta1 of Adam and AdamW.", group="Training", low=0, below=1)
    momentum_min: float | None = _setting(None, "Momentum at the maximum of the LR, to cycle the momentum inversely to the LR; none: constant momentum.", group="Training", low=0, below=1)
    nesterov: bool = _setting(True, "Use Nesterov momentum (SGD).", group="Training")
    weight_decay: float = _setting(5e-4, "Weight decay; see bias_decay for the parameters that it applies to.", group="Training", low=0, high=10, from_data=True)
    bias_decay: bool | None = _setting(None, "Apply the weight decay to all parameters; otherwise not to biases, to normalisation layers and to what the model excludes. auto: to all, but not with --pretrained or --init.", group="Training", added_later=True)
    loss: str = _setting("cross_entropy", "Loss of training: cross_entropy; bce: binary cross-entropy of each class by itself; focal: cross-entropy with less weight on images that are classified well; jsd: cross-entropy of the first view and Jensen-Shannon divergence between the views of aug_splits (AugMix); or a name that a plug-in registers. Evaluation always reports the cross-entropy. Images with several labels take bce, also without --loss, and evaluation reports it.", group="Training", choices=LOSSES, is_open=True, added_later=True)
    loss_args: dict[str, Any] = _setting({}, "Arguments of the loss: gamma=2 of focal; target_threshold=0.2, sum_classes=true, pos_weight=2 of bce, alpha=12 of jsd, as in timm; those of a loss that a plug-in registers. Where images have several labels, sum_classes is true unless it is given.", group="Training", added_later=True)
    class_weights: ClassWeights = _setting("", "Weights of the classes in the training loss: balanced (each class the same in total), a number for each class in their order, or NAME=NUMBER,... with 1 for the others. They are scaled so that a training image has a weight of 1 on average. Where images have several labels, they weight the images that have the class against the others, as given; balanced: both the same in total.", group="Training", added_later=True)
    label_smoothing: float = _setting(0.0, "Label smoothing: fraction of the target spread evenly over all classes.", group="Training", low=0, below=1, from_data=True)
    mixup: float = _setting(0.0, "Alpha of Mixup; 0: off.", group="Training", low=0, high=100)
    cutmix: float = _setting(0.0, "Alpha of CutMix; 0: off.", group="Training", low=0, high=100)
    bias_lr_scale: float = _setting(1.0, "Factor on the LR of the biases; their weight decay is divided by it.", group="Training", above=0, high=1e6, added_later=True)
    head_lr_scale: float = _setting(1.0, "Factor on the LR of the last layer (timm's classifier); its weight decay is divided by it.", group="Training", above=0, high=1e6, added_later=True, from_data=True)
    layer_decay: float = _setting(1.0, "Factor on the LR from each layer to the one below it, so that the first layers change least; 1: off.", group="Training", above=0, high=1, added_later=True)
    freeze: tuple[str, ...] = _setting((), "Parameters that are not trained: their names, with * and ? for any letters, or the names of modules; all-but-head: everything except for the classifier. Batch normalisation of frozen modules keeps its running statistics.", group="Training", added_later=True)
    freeze_epochs: int = _setting(0, "Train the classifier alone for this many epochs, then everything that --freeze does not name.", group="Training", low=0, high=1_000_000, added_later=True)
    lookahead: int = _setting(0, "Look-ahead: replace the weights by their moving average every this many updates, with an average that becomes longer towards the end of training; 0: off.", group="Training", low=0, high=1_000_000, added_later=True)
    whitening: bool = _setting(False, "Initialise the first convolution with filters that whiten the patches of the training images, and do not train them.", group="Training", added_later=True)
    prior_bias: bool = _setting(True, "Where images have several labels: begin with a bias of the new classifier at which each class is as probable as it is frequent, not at one half.", group="Training", added_later=True)
    clip_grad: float = _setting(0.0, "Maximum norm of the gradient; 0: no clipping.", group="Training", low=0)
    grad_accumulation: int = _setting(1, "Micro-batches per optimizer update, to save memory; the batch size of the update stays the same, but batch normalisation sees each micro-batch by itself.", group="Training", low=1, high=100_000)
    gradient_checkpointing: bool = _setting(False, "Keep fewer activations for the backward pass and compute the others again, which takes less memory and about a third more time.", group="Training", added_later=True)
    auto_batch: bool = _setting(False, "After an out-of-memory error, continue with twice as many micro-batches per update; the batch size stays the same, but batch normalisation sees each micro-batch by itself.", group="Training", affects_results=False)
    ema: float = _setting(0.0, "Decay of the exponential moving average (EMA) of the weights, which is then evaluated and saved, and the weights without it are evaluated after each epoch too (acc_plain); 0: off.", group="Training", low=0, below=1)
    ema_warmup: bool = _setting(True, "Start the EMA with a short average that becomes longer with the number of updates, up to the decay of --ema; otherwise a short run evaluates mostly its initial weights.", group="Training", added_later=True)
    select: str = _setting("auto", "Epoch whose weights are kept: last, or best on the validation split by the metric of select_by; auto: best where there is a validation split, else last; best-on-test: selects on the test set, which the report states.", group="Training", choices=("auto", "last", "best", "best-on-test"))
    select_by: str = _setting("acc", "Metric by which select and early_stop compare epochs, and that best/... has: acc, balanced_acc (the mean recall of the classes), f1_macro (their mean F1), loss (cross-entropy, the lowest). Of images with several labels: map (mean average precision, used without --select-by), f1_macro, exact_match, loss.", group="Training", choices=SELECTION_METRICS, added_later=True)
    test: bool = _setting(True, "Use the test set; False leaves it unread, for the trials of a sweep, which are compared on the validation split.", group="Training", affects_results=False)
    early_stop: int = _setting(0, "Stop after this many epochs without a better value of select_by on the validation split; 0: never.", group="Training", low=0)

    schedule: str = _setting("one_cycle", "Learning rate (LR) schedule, or a name that a plug-in registers.", group="Learning rate", choices=SCHEDULES, is_open=True)
    schedule_args: dict[str, Any] = _setting({}, "Arguments of a schedule that a plug-in registers, for example power=0.5.", group="Learning rate", added_later=True)
    lr_min: NumberOrFind = _setting(0.0015, "LRMIN, where the schedule starts and ends; find: run an LR range test first.", group="Learning rate", low=0, high=1e6, from_data=True)
    lr_min_ratio: float | None = _setting(None, "LRMIN as a fraction of LRMAX, in place of lr_min, so that a search over both cannot draw an LRMIN above LRMAX; none: lr_min holds.", group="Learning rate", low=0, high=1, added_later=True)
    lr_max: NumberOrFind = _setting(0.0045, "LRMAX, the maximum of the schedule; find: run an LR range test first.", group="Learning rate", above=0, high=1e6, from_data=True)
    peak_epoch: float = _setting(5.0, "Epoch at the end of which one_cycle reaches LRMAX; for cosine, the end of its warm-up from LRMIN, where no other is set.", group="Learning rate", low=0, from_data=True)
    warmup_epochs: float = _setting(0.0, "Warm-up before the schedule: epochs (a fraction is allowed) in which the LR rises linearly from warmup_factor of the schedule's first LR to it; the schedule takes the rest of the run. 0: none.", group="Learning rate", low=0, high=1_000_000, added_later=True)
    warmup_steps: int = _setting(0, "The length of the warm-up in optimizer updates, in place of warmup_epochs.", group="Learning rate", low=0, high=1_000_000_000, added_later=True)
    warmup_factor: float = _setting(0.01, "LR of the first update of the warm-up, as a fraction of the LR at its end.", group="Learning rate", low=0, high=1, added_later=True)
    step_epochs: float = _setting(0.0, "Epochs after which the schedule step multiplies the LR by step_factor, again and again (a fraction is allowed), counted from the start of the run; 0: a third of the run.", group="Learning rate", low=0, high=1_000_000, added_later=True)
    milestones: tuple[str, ...] = _setting((), "Epochs at the end of which the schedule multi_step multiplies the LR by step_factor, such as 30,60,80 (fractions are allowed); empty: half and three quarters of the run.", group="Learning rate", added_later=True)
    step_factor: float = _setting(0.1, "Factor by which step and multi_step multiply the LR; it does not go below LRMIN.", group="Learning rate", above=0, below=1, added_later=True)
    poly_power: float = _setting(1.0, "Exponent of the schedule polynomial, from LRMAX to LRMIN; 1: a straight line.", group="Learning rate", above=0, high=100, added_later=True)
    cycles: int = _setting(5, "Number of triangles of the cyclic schedule in the whole run.", group="Learning rate", low=1, high=1_000_000)
    extended: tuple[str, ...] = _setting((), "Written by --resume RUN --epochs N, not to be set by hand. STEP:EPOCHS means that until update STEP the run was planned for EPOCHS epochs.", group="Learning rate", added_later=True)
    plateau_patience: int = _setting(10, "Epochs without lower validation loss before plateau lowers the LR.", group="Learning rate", low=0)
    plateau_factor: float = _setting(0.1, "Factor by which plateau multiplies the LR.", group="Learning rate", above=0, below=1)

    tta: str = _setting("none", "Test-time augmentation: also report the accuracy of predictions averaged over views of each image; mirror: the image and its mirror image; mirror-translate: both, and both moved by one pixel along the diagonals.", group="Evaluation", choices=("none", "mirror", "mirror-translate"), affects_results=False, alone="mirror")
    metrics: tuple[str, ...] = _setting((), "Metrics of the result that plug-ins register, beside accuracy, loss and calibration error.", group="Evaluation", affects_results=False)
    gallery: int = _setting(25, "Images per gallery and in the Grad-CAM panel; 0: none.", group="Evaluation", low=0, high=108, affects_results=False)
    gallery_rule: str = _setting("confident", "Choice of misclassified images: most confident errors first, random, per class, or by pair of confused classes.", group="Evaluation", choices=("confident", "random", "per-class", "confusion"), affects_results=False)
    cam: str = _setting("hirescam", "Grad-CAM method: hirescam, gradcam, gradcam++, xgradcam, layercam, eigencam, eigengradcam, gradcamelementwise, scorecam or ablationcam; none: no maps.", group="Evaluation", affects_results=False)
    cam_layer: str = _setting("auto", "Name of the module whose activations Grad-CAM shows; auto: the last stage of the model.", group="Evaluation", affects_results=False)
    explain_every: int = _setting(0, "Make galleries and Grad-CAM maps every this many epochs too; 0: only at the end.", group="Evaluation", low=0, affects_results=False)

    seed: int = _setting(0, "Seed of all random numbers.", group="Hardware", low=0, high=2**63 - 1)
    deterministic: bool = _setting(False, "Use deterministic kernels only; slower on a GPU, no change on a CPU.", group="Hardware")
    device: str = _setting("auto", "auto (a GPU where there is one), cpu, cuda, cuda:N or mps.", group="Hardware", affects_results=False)
    precision: str = _setting("auto", "Number format of the forward and backward pass; auto: that of the run which is resumed, else bf16 where it is faster on this machine, else fp32.", group="Hardware", choices=("auto", "fp32", "bf16", "fp16"))
    channels_last: bool = _setting(True, "Store images and weights in NHWC memory order, which is faster for convolutions.", group="Hardware")
    compile: bool = _setting(False, "Compile the model with torch.compile, which takes about a minute and pays off in long GPU runs.", group="Hardware")
    cuda_graph: bool | None = _setting(None, "Capture the optimizer update as a CUDA graph, which is faster for small models (SGD, a single process); auto: where that is possible and all images are kept on the GPU.", group="Hardware")
    fused: bool | None = _setting(None, "Train the custom ResNet with Triton kernels for pooling, batch normalisation and ReLU (CUDA, bf16 or fp16); auto: where they fit.", group="Hardware", added_later=True)
    sync_bn: bool = _setting(False, "Under torchrun on GPUs: compute batch normalisation over the whole batch instead of separately on each process.", group="Hardware")
    process_timeout: int = _setting(1800, "Under torchrun: seconds after which a process stops waiting for the others.", group="Hardware", low=1, high=1_000_000, affects_results=False)
    threads: int = _setting(0, "CPU threads of torch; 0: torch's default.", group="Hardware", low=0, high=4096, affects_results=False)

    tracker: tuple[str, ...] = _setting((WANDB,), "Trackers that get the run, besides its own directory: wandb, tensorboard, mlflow, trackio, a name that a plug-in registers, or several with commas; empty: none. Each but wandb needs the extra of its name: vision-harness[tensorboard].", group="Tracking", choices=TRACKERS, is_open=True, affects_results=False)
    wandb: str = _setting("auto", "W&B mode: auto (online with an API key, else offline), online (fail where it is impossible), offline or disabled.", group="Tracking", choices=("auto", "online", "offline", "disabled"), affects_results=False)
    project: str = _setting("harness", "W&B project of the run.", group="Tracking", affects_results=False)
    entity: str = _setting("", "W&B user or team; empty: your default one.", group="Tracking", affects_results=False)
    name: str = _setting("", "Name of the run and of its directory; empty: made from recipe or model, data, seed and settings.", group="Tracking", affects_results=False)
    group: str = _setting("", "W&B group of the run.", group="Tracking", affects_results=False)
    job_type: str = _setting("train", "W&B job type of the run.", group="Tracking", affects_results=False)
    tags: tuple[str, ...] = _setting((), "W&B tags of the run.", group="Tracking", affects_results=False)
    notes: str = _setting("", "W&B notes, for example why you started the run.", group="Tracking", affects_results=False)
    log_every: int = _setting(0, "Send the metrics of every this many steps to the trackers; 0: of every step in a run of fewer than 100,000 steps, and of as few as give fewer than 100,000 rows in a longer one. The journal has every step.", group="Tracking", low=0, high=1_000_000_000, affects_results=False)
    watch: str = _setting("none", "Histograms after every epoch: of the gradients of its last update, of the parameters, or all of both.", group="Tracking", choices=("none", "gradients", "parameters", "all"), affects_results=False)
    alerts: str = _setting("diverged", "When W&B sends an alert: diverged: when training diverges or memory runs out; failed: also when the run fails; ended: also when it stops or finishes; none: never.", group="Tracking", choices=ALERTS, affects_results=False)
    log_code: bool = _setting(False, "Save the source of the --plugin modules, and of the script that calls harness, as a W&B code artifact.", group="Tracking", affects_results=False)
    log_model: str = _setting("auto", "When the model becomes a W&B artifact: end (that of the result), best (during training also each new best epoch on the validation split, at most every 10 minutes), never; auto: end, and never in the trials of a sweep.", group="Tracking", choices=("auto", "end", "best", "never"), affects_results=False)
    model_ttl: int = _setting(14, "Days after which W&B may delete the models that log_model=best logs during training; 0: never. That of the result is kept.", group="Tracking", low=0, high=36_500, affects_results=False)
    link: str = _setting("", "W&B registry collection to link the model of the result to: REGISTRY/COLLECTION.", group="Tracking", affects_results=False)
    finish_timeout: int = _setting(60, "Seconds without progress of the upload after which the end of a run no longer waits for W&B.", group="Tracking", low=1, high=86_400, affects_results=False)

    output: str = _setting("runs", "Folder for run directories.", group="Output", affects_results=False)
    resume: str = _setting("auto", "auto: resume an unfinished run of the same name and settings; never; or the run directory to resume; with --epochs that run is trained on, or shortened, even if it has finished.", group="Output", affects_results=False)
    report: bool = _setting(True, "Write report.html, a page that explains the run, at its end.", group="Output", affects_results=False)
    checkpoint_every: int = _setting(0, "Save a checkpoint every this many steps too; 0: only after each epoch.", group="Output", low=0, affects_results=False)
    # fmt: on

    # No setting: the names of those that are `auto`. Each holds its default until a run has seen its data.
    undecided: frozenset[str] = frozenset()

    def __new__(cls, **values: Any) -> Config:
        """Refuse names that are no settings in the words of `canonical_name`, where a dataclass has none."""
        for name in values:
            if name != "undecided" and name not in setting_fields() and (setting := canonical_name(name)):
                raise UsageError(f"Config has no field {name!r}: give {setting!r}, or use make_config")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        undecided = set(self.undecided)
        for name, setting in setting_fields().items():
            value = coerce(name, getattr(self, name))
            if setting.metadata["from_data"] and value == AUTO:
                undecided.add(name)
                value = setting.default
            object.__setattr__(self, name, value)
        if self.lr_min_ratio is not None:
            lr_min = FIND if self.lr_max == FIND else self.lr_min_ratio * float(self.lr_max)
            object.__setattr__(self, "lr_min", lr_min)
            (undecided.add if "lr_max" in undecided else undecided.discard)("lr_min")
        object.__setattr__(self, "undecided", frozenset(undecided))
        check_combinations(self)

    def grey_limits(self) -> tuple[float, float] | None:
        """Return `grey_range` as two numbers; None where it is empty.

        Raises:
            UsageError: it is not two increasing numbers.
        """
        if not self.grey_range:
            return None
        try:
            low, high = (float(value) for value in self.grey_range)
        except ValueError:
            low = high = 0.0
        if not low < high < float("inf") or low == -float("inf"):
            raise UsageError(
                f"grey_range={','.join(self.grey_range)}: need two increasing numbers, such as 0,4095 for 12 bits"
            )
        return low, high

    def extensions(self) -> list[tuple[int, int]]:
        """Return `extended` as (update at which the length of the run changed, epochs that it was to have before).

        Raises:
            UsageError: it is no list of increasing updates with epochs.
        """
        if len(self.extended) > MAX_EXTENSIONS or not all(
            re.fullmatch(r"\d{1,15}:[1-9]\d{0,6}", item, re.ASCII) for item in self.extended
        ):
            raise UsageError(
                f"extended={','.join(self.extended)[:80]}: need at most {MAX_EXTENSIONS} STEP:EPOCHS, such as 2328:24"
            )
        pairs = [(int(step), int(epochs)) for step, epochs in (item.split(":") for item in self.extended)]
        steps = [step for step, _ in pairs]
        if steps != sorted(set(steps)):
            raise UsageError(f"extended={','.join(self.extended)}: the updates must increase")
        return pairs

    def milestone_epochs(self) -> tuple[float, ...]:
        """Return `milestones` as numbers.

        Raises:
            UsageError: they are no increasing positive numbers.
        """
        try:
            epochs = tuple(float(item) for item in self.milestones)
        except ValueError:
            epochs = (0.0,)
        if not all(0 < former < latter < math.inf for former, latter in pairwise((*epochs, 1e9))):
            raise UsageError(f"milestones={','.join(self.milestones)}: need increasing epochs, such as 30,60,80")
        return epochs

    def before_extensions(self) -> Config:
        """Return the settings that the run was started with, before `--resume RUN --epochs N` changed its length."""
        extensions = self.extensions()
        return self.replace(epochs=extensions[0][1], extended=()) if extensions else self

    @property
    def is_multilabel(self) -> bool:
        """Whether an image has several labels, one or none, as the columns of its table say."""
        return bool(self.label_separator or self.label_columns)

    @property
    def starts_from_weights(self) -> bool:
        """Whether training starts from trained weights: timm's pretrained ones, or those of `init`."""
        return self.pretrained or bool(self.init)

    @property
    def sets_resized_crop(self) -> bool:
        """Whether the scale or the ratio of the random resized crop is set."""
        return (self.crop_scale, self.crop_ratio) != (CROP_SCALE, CROP_RATIO)

    @property
    def decays_biases(self) -> bool:
        """Whether the weight decay applies to biases and normalisation layers too."""
        return not self.starts_from_weights if self.bias_decay is None else self.bias_decay

    @property
    def needs_lr_find(self) -> bool:
        """Whether LRMIN or LRMAX is still to be found by an LR range test."""
        return FIND in (self.lr_min, self.lr_max)

    def rates(self) -> tuple[float, float]:
        """Return LRMIN and LRMAX.

        Raises:
            UsageError: one of them is `find`, or is still to be chosen from the data.
        """
        if self.undecided:
            raise UsageError(
                f"{', '.join(sorted(self.undecided))}: auto is chosen from the data when a run begins; give numbers, another --recipe, or use `harness run`"
            )
        if isinstance(self.lr_min, str) or isinstance(self.lr_max, str):
            raise UsageError(
                "lr_min or lr_max is `find`, and no LR range test has been run; give numbers, or use `harness run`"
            )
        return self.lr_min, self.lr_max

    def to_dict(self) -> dict[str, Any]:
        """Return name -> plain value (number, string, list or mapping), in the order of the fields; `auto` where undecided."""
        values = {name: AUTO if name in self.undecided else getattr(self, name) for name in setting_fields()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_yaml(self) -> str:
        """Return the text of a `config.yaml`: a recipe that repeats this run."""
        return yaml_io.dump_yaml(self.to_dict())

    def replace(self, **changes: Any) -> Config:
        """Return a copy with some settings changed, checked again."""
        return dataclasses.replace(self, **{"undecided": self.undecided - changes.keys(), **changes})

    def affecting_results(self) -> dict[str, Any]:
        """Return the settings that the numbers of a run depend on (not where it writes, or how it is named or tracked)."""
        affecting = {}
        for key, value in self.to_dict().items():
            setting = setting_fields()[key]
            if setting.metadata["affects_results"] and not (
                setting.metadata["added_later"] and getattr(self, key) == default_of(key) and key not in self.undecided
            ):
                affecting[key] = value
        # By its effect, which its default does not tell: before there was this setting, all parameters had weight decay.
        affecting.pop("bias_decay", None)
        if not self.decays_biases:
            affecting["bias_decay"] = False
        # A captured update has the results of a plain one. Version 0.1 had False for today's auto.
        affecting["cuda_graph"] = bool(self.cuda_graph)
        return affecting

    def digest(self) -> str:
        """Return 8 hexadecimal digits that are equal for equal `affecting_results()`."""
        return hashlib.sha256(json.dumps(self.affecting_results(), sort_keys=True).encode()).hexdigest()[:8]


@cache
def setting_fields() -> Mapping[str, dataclasses.Field[Any]]:
    """Return name -> dataclass field, whose `metadata` has help, group, choices and bounds."""
    return {item.name: item for item in dataclasses.fields(Config) if item.metadata}


@cache
def setting_types() -> Mapping[str, Any]:
    """Return name -> type annotation."""
    return get_type_hints(Config)


def default_of(name: str) -> Any:
    """Return the default of a setting."""
    item = setting_fields()[name]
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def is_switch(name: str) -> bool:
    """Return whether a setting is on or off (or auto)."""
    return setting_types()[name] in (bool, bool | None)


def value_alone(name: str) -> str:
    """Return the value of a setting whose option is given without one; empty where it needs a value."""
    return "true" if is_switch(name) else str(setting_fields()[name].metadata["alone"])


def normalize_name(name: str) -> str:
    """Return a name without case, dashes and underscores: two spellings of one setting or option are equal in it."""
    return name.lower().replace("-", "").replace("_", "")


def canonical_name(spelling: str) -> str:
    """Return the name of a setting that is given in any case, with or without dashes and underscores (`LRMIN`, `lr-min`).

    Short names such as `wd` are understood too.

    Raises:
        UsageError: there is no such setting; the message names the closest one.
    """
    names = {normalize_name(name): name for name in setting_fields()} | SHORT_NAMES
    key = normalize_name(str(spelling))
    if key not in names:
        setting, remedy = meaning_of(key, setting_fields())
        if remedy:
            raise UsageError(f"there is no setting {spelling!r}; {remedy}")
        hint = f" (did you mean {setting!r}?)" if setting else did_you_mean(str(spelling).lower(), setting_fields())
        raise UsageError(f"there is no setting {spelling!r}{hint}")
    return names[key]


def _content(name: str, value: Any) -> Any:
    """Return the mapping in a file, for the value of a setting that may name one.

    Raises:
        UsageError: it is no file's name, or the file cannot be read.
    """
    if value is None or not isinstance(value, str) or value.strip().startswith("{"):
        return value or {}
    text = value.strip()
    if text.lower() in ("", "none"):
        return {}
    if not text.lower().endswith((".yaml", ".yml", ".json")) or "\0" in text:
        raise UsageError(f"{name}={value!r}: need the name of a .yaml or .json file")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # ~USER of no user
        raise UsageError(f"{name}={value!r}: {first_line(error)}") from None
    return yaml_io.read_yaml(path)  # JSON is YAML


def coerce(name: str, value: Any) -> Any:
    """Convert a value from the command line, YAML or Python to the type of the setting `name`, and check its bounds.

    Accepted are `"True"`, `true` and `1` for a boolean (and `auto` for one that may be None), `8.0` for the integer 8,
    `"a,b"` for a list, and `{'width': 16}` or `width=16` for a mapping. `auto` stays as it is where the data may decide.

    Raises:
        UsageError: the value is not allowed; the message names the setting, the value and what is allowed.
    """
    kind, metadata = setting_types()[name], setting_fields()[name].metadata
    if metadata["from_data"] and isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    is_optional = get_origin(kind) is types.UnionType and type(None) in get_args(kind)
    if is_optional:
        if value is None or value in ("", "None", "none", "null") or (value == AUTO and is_switch(name)):
            return None
        kind = next(member for member in get_args(kind) if member is not type(None))
    if metadata["is_file"]:
        value = _content(name, value)
    if metadata["alone"] and (is_on := BOOLEANS.get(str(value).lower())) is not None:
        value = metadata["alone"] if is_on else "none"
    try:
        value = convert(kind, value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}={value!r}: need {error}{', or auto' if metadata['from_data'] else ''}") from None
    if metadata["choices"]:
        for item in value if isinstance(value, tuple) else (value,):
            may_be_registered = metadata["is_open"] and re.fullmatch(PLUGIN_NAME, item, re.ASCII)
            if item not in metadata["choices"] and not may_be_registered:
                raise UsageError(no_choice(name, item))
    if metadata["check"] is not None:
        metadata["check"](name, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_bounds(name, value, metadata)
    return value


def no_choice(name: str, value: str, registered: Iterable[str] = ()) -> str:
    """Return the message about a value that is none of a setting's choices.

    Args:
        registered: further names, which plug-ins have registered.
    """
    metadata = setting_fields()[name].metadata
    choices, others = metadata["choices"], ", or one that a module of --plugin registers" if metadata["is_open"] else ""
    return f"{name}={value!r}: need one of {', '.join(choices)}{others}{did_you_mean(value, [*choices, *registered])}"


def check_open_choices(config: Config) -> None:
    """Refuse names that only a plug-in can register, where there is none.

    Raises:
        UsageError: there is such a name; the message names the nearest.
    """
    for name, setting in setting_fields().items():
        if setting.metadata["is_open"] and not config.plugin:
            values = getattr(config, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value not in setting.metadata["choices"] and not has_installed_plugins():
                    raise UsageError(no_choice(name, value))


def _check_bounds(name: str, value: float, metadata: Mapping[str, Any]) -> None:
    for key, sign, holds in (
        ("low", ">=", operator.ge),
        ("above", ">", operator.gt),
        ("high", "<=", operator.le),
        ("below", "<", operator.lt),
    ):
        bound = metadata[key]
        if bound is not None and not holds(value, bound):
            raise UsageError(f"{name}={value:g}: need {name} {sign} {bound:g}")
