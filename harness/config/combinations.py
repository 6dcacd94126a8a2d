"""Settings that contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.config.augmentation import check_augmentation
from harness.config.conversion import BALANCED
from harness.config.losses import check_loss_args, check_views
from harness.config.multilabel import check_multilabel
from harness.config.names import MODEL_ARGUMENTS, WANDB, main_metric, may_bring_validation
from harness.utils.errors import UsageError

if TYPE_CHECKING:
    from harness.config.settings import Config


def check_combinations(config: Config) -> None:
    """Refuse settings that contradict each other; what is still to be chosen from the data contradicts nothing.

    Raises:
        UsageError: two settings do not fit together.
    """
    config.grey_limits()
    check_augmentation(config)
    # The peak belongs to the length that the run was started with; that of a named run is known when the run is read.
    extensions = config.extensions()
    is_first_length = bool(extensions) or config.resume in ("auto", "never")
    epochs = extensions[0][1] if extensions else config.epochs
    are_rates_known = not config.needs_lr_find and config.undecided.isdisjoint(("lr_min", "lr_max"))
    if are_rates_known and config.schedule != "constant":
        lowest, highest = float(config.lr_min), float(config.lr_max)
        if lowest > highest:
            raise UsageError(
                f"need lr_min <= lr_max, got lr_min={lowest:g}, lr_max={highest:g}; lower one or raise the other"
            )
    is_length_known = is_first_length and epochs and config.undecided.isdisjoint(("epochs", "peak_epoch"))
    if config.schedule == "one_cycle" and is_length_known and not config.peak_epoch <= epochs:
        raise UsageError(
            f"need peak_epoch <= epochs, got peak_epoch={config.peak_epoch:g}, epochs={epochs}; set --peak-epoch"
        )
    _check_schedule(config, epochs if is_length_known else None)
    has_warmup = config.warmup_epochs or config.warmup_steps  # in place of the one that peak_epoch ends
    if config.schedule == "cosine" and is_length_known and not has_warmup and not config.peak_epoch < epochs:
        raise UsageError(
            f"the warm-up (peak_epoch={config.peak_epoch:g}) must end before epochs={epochs}; set --peak-epoch"
        )
    needs_val = [
        reason
        for applies, reason in (
            (config.schedule == "plateau", "schedule=plateau lowers the LR by the validation loss"),
            (config.early_stop > 0, "early_stop depends on the validation split"),
            (config.select == "best", "select=best selects the epoch by the validation split"),
        )
        if applies
    ]
    may_lack_val = config.val_fraction == 0 and not may_bring_validation(config.data)
    if needs_val and may_lack_val:
        raise UsageError(f"{needs_val[0]}, but val_fraction=0 means no validation split; set --val-fraction 0.1")
    if not config.test and may_lack_val:
        raise UsageError("test=False and val_fraction=0 leave nothing to evaluate on; set --val-fraction 0.1")
    if not config.test and config.select == "best-on-test":
        raise UsageError("select=best-on-test selects on the test set, which test=False leaves unread; set --test True")
    if config.wandb == "online" and WANDB not in config.tracker:
        raise UsageError(
            f"wandb=online, but tracker={','.join(config.tracker)} leaves W&B out; add wandb to --tracker, or leave --wandb out"
        )
    if config.link and config.log_model == "never":
        raise UsageError(
            f"link={config.link!r} links the model, which log_model=never does not log; set --log-model end"
        )
    if config.alternating_flip and not config.flip:
        raise UsageError("alternating_flip=True needs flip=True; set --flip True, or leave --alternating-flip out")
    if config.momentum_min is not None and config.momentum_min > config.momentum:
        raise UsageError(f"need momentum_min <= momentum, got {config.momentum_min:g} > {config.momentum:g}")
    if config.grad_accumulation > config.batch_size and "batch_size" not in config.undecided:
        raise UsageError(
            f"need grad_accumulation <= batch_size, got {config.grad_accumulation} > {config.batch_size}: micro-batches would be empty"
        )
    is_sgd = config.optimizer == "sgd" and "optimizer" not in config.undecided
    if is_sgd and config.nesterov and config.momentum == 0:
        raise UsageError("Nesterov momentum needs momentum > 0, got momentum=0; set --nesterov False")
    check_loss_args(config.loss, config.loss_args)
    check_multilabel(config)
    check_views(config)
    for name, argument in MODEL_ARGUMENTS.items():
        if getattr(config, name) is not None and argument in config.model_args:
            raise UsageError(f"{name} and model_args={argument} are the same; keep --{name.replace('_', '-')}")
    if config.select_by != main_metric(config.is_multilabel) and config.select == "last" and not config.early_stop:
        raise UsageError(
            f"select_by={config.select_by}, but select=last compares no epochs; set --select best, or leave --select-by out"
        )
    if config.sampling == "balanced" and config.aug_repeats > 1:
        raise UsageError(
            f"sampling=balanced and aug_repeats={config.aug_repeats:g} both repeat images of an epoch; keep one of them"
        )
    if config.class_weights == BALANCED and config.sampling == "balanced":
        raise UsageError(
            "class_weights=balanced and sampling=balanced both make up for rare classes, which would count twice; keep one of them"
        )
    if config.pretrained and config.init:
        raise UsageError(f"pretrained=True and init={config.init!r} both name weights to start from; keep one of them")
    if config.val_fraction + config.test_fraction >= 1 and config.val_fraction:
        raise UsageError(
            f"val_fraction={config.val_fraction:g} and test_fraction={config.test_fraction:g} leave nothing to train on"
        )


def _check_schedule(config: Config, epochs: int | None) -> None:
    """Refuse a warm-up or drops of the LR that do not fit the length of the run.

    Args:
        epochs: that the run was started with; None where they are still to be chosen.
    """
    milestones = config.milestone_epochs()
    if config.warmup_epochs and config.warmup_steps:
        raise UsageError(
            f"warmup_epochs={config.warmup_epochs:g} and warmup_steps={config.warmup_steps} both give the length of the warm-up; keep one of them"
        )
    if epochs is None:
        return
    if config.warmup_epochs and not config.warmup_epochs < epochs:
        raise UsageError(f"the warm-up (warmup_epochs={config.warmup_epochs:g}) must end before epochs={epochs}")
    if config.schedule == "one_cycle" and config.warmup_epochs > config.peak_epoch:
        raise UsageError(
            f"need warmup_epochs <= peak_epoch, got {config.warmup_epochs:g} > {config.peak_epoch:g}: one_cycle rises after the warm-up; lower --warmup-epochs, or set a later --peak-epoch"
        )
    lowered = {"step": (config.step_epochs,), "multi_step": milestones}.get(config.schedule, ())
    if late := [after for after in lowered if after >= epochs]:
        name = "step_epochs" if config.schedule == "step" else "milestones"
        raise UsageError(
            f"schedule={config.schedule} would lower the LR after epoch {late[0]:g}, and epochs={epochs}; lower --{name.replace('_', '-')}"
        )
