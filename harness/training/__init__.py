"""Training: the loop, the learner, schedules, checkpoints, devices and several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from harness.training.learner import Learner as Learner
    from harness.training.learner import StepResult as StepResult
    from harness.training.learner import make_learner as make_learner
    from harness.training.loop import EvalBatches as EvalBatches
    from harness.training.loop import StepInfo as StepInfo
    from harness.training.loop import TrainBatches as TrainBatches
    from harness.training.loop import TrainerState as TrainerState
    from harness.training.loop import evaluate_batches as evaluate_batches
    from harness.training.loop import fit as fit
    from harness.training.own_losses import register_loss as register_loss
    from harness.training.own_schedules import register_schedule as register_schedule
    from harness.training.schedule import Schedule as Schedule
    from harness.training.schedule import make_schedule as make_schedule

_MODULES = {
    "EvalBatches": "harness.training.loop",
    "Learner": "harness.training.learner",
    "Schedule": "harness.training.schedule",
    "StepInfo": "harness.training.loop",
    "StepResult": "harness.training.learner",
    "TrainBatches": "harness.training.loop",
    "TrainerState": "harness.training.loop",
    "evaluate_batches": "harness.training.loop",
    "fit": "harness.training.loop",
    "make_learner": "harness.training.learner",
    "make_schedule": "harness.training.schedule",
    "register_loss": "harness.training.own_losses",
    "register_schedule": "harness.training.own_schedules",
}
__all__ = [
    "EvalBatches",
    "Learner",
    "Schedule",
    "StepInfo",
    "StepResult",
    "TrainBatches",
    "TrainerState",
    "evaluate_batches",
    "fit",
    "make_learner",
    "make_schedule",
    "register_loss",
    "register_schedule",
]

__getattr__ = lazy_attributes(__name__, _MODULES)
