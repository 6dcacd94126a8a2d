"""Put a trial whose process or scheduler is gone back into the queue of its search, with the same values and name."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.sweep.storage import quiet
from harness.sweep.stored_trials import AGAIN_OF, FIRST, HISTORY, OWNER, POINT, REASON, SURPLUS, TRY, VALUES

MAX_TRIES = 4  # of one trial whose schedulers die


def requeue_trial(study: optuna.Study, number: int, counts: bool = True) -> None:
    """End a running trial as failed, and enqueue it again.

    Args:
        counts: whether this was one of its `MAX_TRIES` tries.
    """
    with quiet():
        stored = study.get_trials(deepcopy=False)[number]
        try:
            study.tell(number, state=TrialState.FAIL)
        except ValueError:  # another scheduler was quicker
            return
        enqueue_again(study, stored, counts)


def enqueue_again(study: optuna.Study, trial: FrozenTrial, counts: bool = True) -> None:
    """Enqueue a trial with the values of one whose scheduler is gone."""
    tries = trial.user_attrs.get(TRY, 1) + (1 if counts else 0)
    if tries > MAX_TRIES or SURPLUS in trial.user_attrs or not {VALUES, POINT} & set(trial.user_attrs):
        return
    attributes = {key: value for key, value in trial.user_attrs.items() if key not in (OWNER, REASON, HISTORY)}
    first = attributes.get(FIRST, trial.number)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**attributes, AGAIN_OF: trial.number, TRY: tries, FIRST: first},
            system_attrs={"fixed_params": trial.params or trial.system_attrs.get("fixed_params", {})},
        )
    )
