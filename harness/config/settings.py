"""Every setting of a run, each written once: name, type, default, help and bounds.

Options, recipe files, the saved `config.yaml`, W&B's `run.config` and the journal's first line are all made
from `Config`; none of them has a list of its own.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from harness.config import yaml_io
from harness.utils.errors import UsageError, did_you_mean

FIND = "find"
BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
NumberOrFind = float | Literal["find"]


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
) -> Any:
    """A field of `Config`.

    Args:
        low, above: the least value (allowed; not allowed). high, below: the same upwards.
        affects_results: whether the numbers of a run depend on it; a run is resumed only when all of those are equal.
    """
    about = dict(
        help=help,
        group=group,
        choices=choices,
        low=low,
        above=above,
        high=high,
        below=below,
        affects_results=affects_results,
    )
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one run. Values are checked and brought to their type when it is made.

    Raises:
        UsageError: a value is out of its bounds, or two settings do not fit each other.
    """

    # fmt: off
    recipe: str = _setting("custom-resnet", "A shipped recipe or a YAML file that the other settings start from.", group="What to train", affects_results=False)
    model: str = _setting("custom_resnet", "Any timm model; ours: custom_resnet, resnet18_cifar.", group="What to train")
    model_args: dict[str, Any] = _setting({}, "Arguments of the model, such as width=16,logit_scale=0.125.", group="What to train")
    pretrained: bool = _setting(False, "Start from timm's pretrained weights (downloaded).", group="What to train")
    plugin: tuple[str, ...] = _setting((), "Python modules to import first; they may register models with timm.", group="What to train")

    data: str = _setting("cifar10", "cifar10, cifar100, digits, folder, or any name timm's create_dataset knows.", group="Data")
    data_dir: str = _setting("data", "Where the data lies, or is downloaded to.", group="Data", affects_results=False)
    download: bool = _setting(True, "Download the data when it is not there.", group="Data", affects_results=False)
    classes: int = _setting(0, "Number of classes; 0: what the data has.", group="Data", low=0)
    image_size: int = _setting(0, "Side of the square that the model sees, pixels; 0: the model's own.", group="Data", low=0, high=4096)
    val_fraction: float = _setting(0.0, "Share of the training images held out to choose by; 0: none, nothing is chosen.", group="Data", low=0, below=1)
    test_fraction: float = _setting(0.2, "Share held out as the test set where the data brings none.", group="Data", above=0, below=1)
    bad_images: str = _setting("fail", "What to do with unreadable images in a folder.", group="Data", choices=("fail", "skip"))
    loader: str = _setting("auto", "resident: all images on the device; timm: worker processes; auto: resident where it fits.", group="Data", choices=("auto", "resident", "timm"))
    workers: int = _setting(-1, "Loader processes of the timm loader; -1: two for a CPU, for a GPU its share of the cores, at most 16.", group="Data", low=-1, high=256, affects_results=False)
    augment: str = _setting("timm", "Who transforms training images: timm (with torchvision), albumentations, or none.", group="Data", choices=("timm", "albumentations", "none"))
    crop: str = _setting("auto", "pad: pad, then a random crop; resized: a random resized crop; auto: pad up to 64 pixels.", group="Data", choices=("auto", "pad", "resized", "none"))
    crop_padding: int = _setting(4, "Pixels added to each side before the random crop.", group="Data", low=0, high=512)
    padding_mode: str = _setting("constant", "What the padding holds; constant is black.", group="Data", choices=("constant", "reflect", "edge"))
    flip: bool = _setting(True, "Mirror each training image with probability 1/2.", group="Data")
    cutout: int = _setting(8, "Side of the one square hole cut into each training image, pixels; 0: none.", group="Data", low=0, high=4096)

    epochs: int = _setting(24, "Passes over the training images.", group="Training", low=0, high=1_000_000)
    batch_size: int = _setting(512, "Images per optimizer update, over all devices.", group="Training", low=1, high=1_000_000)
    eval_batch_size: int = _setting(1000, "Images per batch when evaluating; does not change the figures.", group="Training", low=1, high=1_000_000, affects_results=False)
    drop_last: bool = _setting(True, "Leave out an epoch's last, smaller batch (other images each epoch).", group="Training")
    optimizer: str = _setting("sgd", "The optimizer, from torch.optim.", group="Training", choices=("sgd", "adam", "adamw", "rmsprop"))
    momentum: float = _setting(0.9, "Momentum of SGD and RMSprop; beta1 of Adam.", group="Training", low=0, below=1)
    momentum_min: float | None = _setting(None, "Momentum at the LR's maximum, when it is to move against the LR.", group="Training", low=0, below=1)
    nesterov: bool = _setting(True, "Nesterov momentum (SGD).", group="Training")
    weight_decay: float = _setting(5e-4, "Weight decay, on every parameter.", group="Training", low=0, high=10)
    label_smoothing: float = _setting(0.0, "Share of the target spread over all classes.", group="Training", low=0, below=1)
    mixup: float = _setting(0.0, "Alpha of mixup; 0: off.", group="Training", low=0, high=100)
    cutmix: float = _setting(0.0, "Alpha of CutMix; 0: off.", group="Training", low=0, high=100)
    clip_grad: float = _setting(0.0, "Greatest norm of the gradient; 0: not clipped.", group="Training", low=0)
    grad_accumulation: int = _setting(1, "Parts that each batch is computed in, to save memory; the update is the same.", group="Training", low=1, high=100_000)
    auto_batch: bool = _setting(False, "When the device's memory does not hold a batch, compute it in twice as many parts and go on; the batch that the optimizer sees is kept.", group="Training", affects_results=False)
    ema: float = _setting(0.0, "Decay of the exponential moving average of the weights that is evaluated and kept; 0: off.", group="Training", low=0, below=1)
    select: str = _setting("auto", "Whose weights are the result: last, or best on validation; auto: best where there is a validation split. best-on-test chooses on the test set, and says so.", group="Training", choices=("auto", "last", "best", "best-on-test"))
    test: bool = _setting(True, "Read the test set; False leaves it unread, for the runs of a search, which are compared on validation.", group="Training", affects_results=False)
    early_stop: int = _setting(0, "Stop after this many epochs with no better validation accuracy; 0: never.", group="Training", low=0)

    schedule: str = _setting("one_cycle", "How the learning rate moves.", group="Learning rate", choices=("one_cycle", "cyclic", "cosine", "plateau", "constant"))
    lr_min: NumberOrFind = _setting(0.0015, "LRMIN: where the schedule starts and ends; find: by a range test first.", group="Learning rate", low=0, high=1e6)
    lr_max: NumberOrFind = _setting(0.0045, "LRMAX: the schedule's maximum; find: by a range test first.", group="Learning rate", above=0, high=1e6)
    peak_epoch: float = _setting(5.0, "The epoch at whose end one_cycle is at LRMAX; for cosine, the end of the warm-up.", group="Learning rate", low=0)
    cycles: int = _setting(5, "Triangles of the cyclic schedule over the whole run.", group="Learning rate", low=1, high=1_000_000)
    plateau_patience: int = _setting(10, "Epochs with no lower validation loss before plateau lowers the LR.", group="Learning rate", low=0)
    plateau_factor: float = _setting(0.1, "What plateau multiplies the LR by.", group="Learning rate", above=0, below=1)

    tta: bool = _setting(False, "Also predict each image mirrored, and report the figure of the mean beside the plain one.", group="Explaining", affects_results=False)
    gallery: int = _setting(25, "Images in each gallery and in the Grad-CAM panel; 0: none.", group="Explaining", low=0, high=108, affects_results=False)
    gallery_rule: str = _setting("confident", "Which misclassified images: the surest errors first, any, class by class, or by confusion pair.", group="Explaining", choices=("confident", "random", "per-class", "confusion"), affects_results=False)
    cam: str = _setting("hirescam", "Grad-CAM method: hirescam, gradcam, gradcam++, xgradcam, layercam, eigencam, eigengradcam, gradcamelementwise, scorecam, ablationcam; none: no maps.", group="Explaining", affects_results=False)
    cam_layer: str = _setting("auto", "Module whose activations are mapped; auto: the model's last stage.", group="Explaining", affects_results=False)
    explain_every: int = _setting(0, "Explain also every so many epochs; 0: at the end only.", group="Explaining", low=0, affects_results=False)

    seed: int = _setting(0, "Seed of everything random.", group="Machine", low=0, high=2**63 - 1)
    deterministic: bool = _setting(False, "Only kernels that give the same bits each time (slower on a GPU; a CPU does anyway).", group="Machine")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps.", group="Machine", affects_results=False)
    precision: str = _setting("auto", "auto: bf16 where this machine is quicker in it, else fp32.", group="Machine", choices=("auto", "fp32", "bf16", "fp16"))
    channels_last: bool = _setting(True, "Keep images and weights in NHWC order (faster for convolutions).", group="Machine")
    compile: bool = _setting(False, "torch.compile the model (takes a minute to start; pays in long GPU runs).", group="Machine")
    cuda_graph: bool = _setting(False, "Record the whole update as one CUDA graph (SGD, one process; for small models, whose kernels are shorter than their launch).", group="Machine")
    sync_bn: bool = _setting(False, "Under torchrun on GPUs: batch normalisation over the whole batch, not over each process' part of it.", group="Machine")
    process_timeout: int = _setting(1800, "Under torchrun: seconds that the processes wait for each other at most.", group="Machine", low=1, high=1_000_000, affects_results=False)
    threads: int = _setting(0, "CPU threads of torch; 0: torch's own choice.", group="Machine", low=0, high=4096, affects_results=False)

    wandb: str = _setting("auto", "auto: online with an API key, else offline; online: or stop; offline; disabled.", group="Tracking", choices=("auto", "online", "offline", "disabled"), affects_results=False)
    project: str = _setting("harness", "W&B project that the run goes to.", group="Tracking", affects_results=False)
    entity: str = _setting("", "W&B user or team; empty: your default one.", group="Tracking", affects_results=False)
    name: str = _setting("", "Name of the run and its folder; empty: made from recipe, seed and settings.", group="Tracking", affects_results=False)
    group: str = _setting("", "W&B group that the run belongs to.", group="Tracking", affects_results=False)
    job_type: str = _setting("train", "W&B job type of the run.", group="Tracking", affects_results=False)
    tags: tuple[str, ...] = _setting((), "W&B tags of the run.", group="Tracking", affects_results=False)
    notes: str = _setting("", "W&B notes: why this run is made.", group="Tracking", affects_results=False)
    log_code: bool = _setting(False, "Keep the Python source of --plugin modules as a W&B code artifact.", group="Tracking", affects_results=False)
    finish_timeout: int = _setting(60, "Seconds that the end of a run waits for W&B at most.", group="Tracking", low=1, high=86_400, affects_results=False)

    output: str = _setting("runs", "Where run folders go.", group="Output", affects_results=False)
    resume: str = _setting("auto", "auto: go on with an unfinished run of the same name and settings; never; or a run folder.", group="Output", affects_results=False)
    report: bool = _setting(True, "Write report.html, one page that explains the run, into the run folder at its end.", group="Output", affects_results=False)
    checkpoint_every: int = _setting(0, "Save also every so many steps; 0: at the end of each epoch.", group="Output", low=0, affects_results=False)
    # fmt: on

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, coerce(item.name, getattr(self, item.name)))
        self._check_together()

    def _check_together(self) -> None:
        if not self.needs_lr_find and self.schedule != "constant":
            lowest, highest = self.rates()
            if lowest > highest:
                raise UsageError(
                    f"need lr_min <= lr_max, got lr_min={lowest:g}, lr_max={highest:g}; lower one or raise the other"
                )
        if self.schedule == "one_cycle" and self.epochs and not self.peak_epoch <= self.epochs:
            raise UsageError(
                f"need peak_epoch <= epochs, got peak_epoch={self.peak_epoch:g}, epochs={self.epochs}; set --peak-epoch"
            )
        if self.schedule == "cosine" and self.epochs and not self.peak_epoch < self.epochs:
            raise UsageError(
                f"the warm-up (peak_epoch={self.peak_epoch:g}) must end before epochs={self.epochs}; set --peak-epoch"
            )
        chooses = [
            text
            for on, text in (
                (self.schedule == "plateau", "schedule=plateau lowers the LR by the validation loss"),
                (self.early_stop > 0, "early_stop stops by the validation accuracy"),
                (self.select == "best", "select=best chooses the epoch by the validation accuracy"),
            )
            if on
        ]
        if chooses and self.val_fraction == 0 and self.data not in FOLDER_LIKE:
            raise UsageError(
                f"{chooses[0]}, but val_fraction=0 leaves only the test set to look at; set --val-fraction 0.1"
            )
        if not self.test and self.val_fraction == 0 and self.data not in FOLDER_LIKE:
            raise UsageError("test=False and val_fraction=0 leave nothing to evaluate on; set --val-fraction 0.1")
        if not self.test and self.select == "best-on-test":
            raise UsageError("select=best-on-test chooses on the test set, which test=False leaves unread")
        if self.momentum_min is not None and self.momentum_min > self.momentum:
            raise UsageError(f"need momentum_min <= momentum, got {self.momentum_min:g} > {self.momentum:g}")
        if self.grad_accumulation > self.batch_size:
            raise UsageError(
                f"grad_accumulation={self.grad_accumulation} parts of a batch of {self.batch_size} images would be empty"
            )
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise UsageError("Nesterov needs momentum > 0, got momentum=0; set --nesterov False")
        if self.val_fraction + self.test_fraction >= 1 and self.val_fraction:
            raise UsageError(
                f"val_fraction={self.val_fraction:g} and test_fraction={self.test_fraction:g} leave nothing to train on"
            )

    @property
    def needs_lr_find(self) -> bool:
        """Whether a learning rate is still the word `find`."""
        return FIND in (self.lr_min, self.lr_max)

    def rates(self) -> tuple[float, float]:
        """LRMIN and LRMAX as numbers.

        Raises:
            UsageError: one of them is still the word `find`.
        """
        if isinstance(self.lr_min, str) or isinstance(self.lr_max, str):
            raise UsageError(
                "lr_min or lr_max is `find`, and no range test has been run; give numbers, or use `harness run`"
            )
        return self.lr_min, self.lr_max

    def to_dict(self) -> dict[str, Any]:
        """Plain values (numbers, words, lists, mappings) under the settings' names, in order."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    def to_yaml(self) -> str:
        """The text of a `config.yaml`: a recipe that repeats this run."""
        return yaml_io.dump_yaml(self.to_dict())

    def replace(self, **changes: Any) -> Config:
        """This configuration with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)

    def affecting_results(self) -> dict[str, Any]:
        """The settings that the numbers of a run depend on (not where it writes, how it is named or tracked)."""
        return {
            key: value for key, value in self.to_dict().items() if setting_fields()[key].metadata["affects_results"]
        }

    def digest(self) -> str:
        """8 hexadecimal digits that stand for `numbers()`: equal for runs that should give equal results."""
        return hashlib.sha256(json.dumps(self.affecting_results(), sort_keys=True).encode()).hexdigest()[:8]


# Data that may bring a validation split of its own, so val_fraction=0 need not mean that there is none.
FOLDER_LIKE = ("folder",)


@cache
def setting_fields() -> Mapping[str, dataclasses.Field[Any]]:
    """Name -> dataclass field (its `metadata` has help, group, choices, bounds), in order."""
    return {item.name: item for item in dataclasses.fields(Config)}


@cache
def setting_types() -> Mapping[str, Any]:
    """Name -> type annotation of each setting."""
    return get_type_hints(Config)


def canonical_name(word: str) -> str:
    """The setting that a word spells in any case, with dashes or underscores or none (`LRMIN`, `lr-min`).

    Raises:
        UsageError: there is no such setting; the nearest one is named.
    """
    plain = {name.replace("_", ""): name for name in setting_fields()}
    key = str(word).lower().replace("-", "").replace("_", "")
    if key not in plain:
        raise UsageError(f"there is no setting {word!r}{did_you_mean(str(word).lower(), setting_fields())}")
    return plain[key]


def coerce(name: str, value: Any) -> Any:
    """`value` as the type of the setting `name`, within its bounds.

    A word from a command line, a YAML value or a Python value will do: `"True"`, `true` and `1` for a boolean,
    `8.0` for the integer 8, `"a,b"` for a list, `{'width': 16}` or `width=16` for a mapping.

    Raises:
        UsageError: naming the setting, the value and what is allowed.
    """
    kind, about = setting_types()[name], setting_fields()[name].metadata
    optional = get_origin(kind) is types.UnionType and type(None) in get_args(kind)
    if optional:
        if value is None or value in ("", "None", "none", "null"):
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
    try:
        value = _convert(kind, value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}={value!r}: need {error}") from None
    if about["choices"] and value not in about["choices"]:
        hint = did_you_mean(str(value), about["choices"])
        raise UsageError(f"{name}={value!r}: need one of {', '.join(about['choices'])}{hint}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_bounds(name, value, about)
    return value


def _convert(kind: Any, value: Any) -> Any:
    """`value` as `kind`; a ValueError says what is needed instead."""
    if kind == NumberOrFind:
        if isinstance(value, str) and value.strip().lower() == FIND:
            return FIND
        try:
            return _convert(float, value)
        except ValueError as error:
            raise ValueError(f"{error}, or the word find") from None
    if kind is bool:
        if str(value).lower() not in BOOLEANS:
            raise ValueError("True or False")
        return BOOLEANS[str(value).lower()]
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("a number")
        try:
            number = float(value)
        except OverflowError:
            raise ValueError("a finite number") from None
        except ValueError:
            raise ValueError("a number") from None
        if not math.isfinite(number):
            raise ValueError("a finite number")
        if kind is float:
            return number
        if number != int(number):
            raise ValueError("a whole number")
        return int(value) if not isinstance(value, float) and str(value).strip().lstrip("+-").isdigit() else int(number)
    if kind is str:
        if value is None or isinstance(value, dict | list | tuple | set):
            raise ValueError("a word")
        text = str(value)
        if any(ord(letter) < 32 and letter not in "\t\n" for letter in text):
            raise ValueError("text without control characters")
        return text
    if get_origin(kind) is tuple:
        if isinstance(value, str):
            value = [
                part.strip()
                for part in value.strip("[]()").replace("'", "").replace('"', "").split(",")
                if part.strip()
            ]
        if not isinstance(value, list | tuple):
            raise ValueError("a list of words")
        return tuple(str(part) for part in value)
    return _mapping(value)


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            try:
                value = ast.literal_eval(text)  # a sweep agent writes a Python dict
            except (ValueError, SyntaxError):
                value = yaml_io.parse_yaml(text)
        else:
            pairs = [part.partition("=") for part in text.split(",") if part.strip()]
            if any(not sign for _, sign, _ in pairs):
                raise ValueError("a mapping such as width=16,logit_scale=0.125")
            value = {key.strip(): yaml_io.parse_yaml(word) for key, _, word in pairs}
    if not isinstance(value, Mapping):
        raise ValueError("a mapping such as width=16,logit_scale=0.125")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("a mapping of plain, finite values") from None
    return {str(key): part for key, part in value.items()}


def _check_bounds(name: str, value: float, about: Mapping[str, Any]) -> None:
    for word, sign, wrong in (
        ("low", ">=", lambda bound: value < bound),
        ("above", ">", lambda bound: value <= bound),
        ("high", "<=", lambda bound: value > bound),
        ("below", "<", lambda bound: value >= bound),
    ):
        if about[word] is not None and wrong(about[word]):
            raise UsageError(f"{name}={value:g}: need {name} {sign} {about[word]:g}")
