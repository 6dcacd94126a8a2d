"""The trials of a search as its storage has them: which count, what they logged, which parameters matter."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.config.names import TrialStatus
from harness.sweep import optuna_space
from harness.sweep.selection import TrialRecord
from harness.sweep.storage import quiet

# Names of a trial's attributes in the storage.
SURPLUS, OWNER, VALUES, POINT, AGAIN_OF, TRY, FIRST, REASON, HISTORY = (
    "surplus",
    "owner",
    "values",
    "point",
    "again of",
    "try",
    "first",
    "reason",
    "history",
)
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STATUS_OF_OPTUNA = {
    TrialState.FAIL: TrialStatus.FAILED,
    TrialState.COMPLETE: TrialStatus.COMPLETE,
    TrialState.PRUNED: TrialStatus.PRUNED,
}


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count: the last try of each, without surplus ones and those that never had values."""
    trials = study.get_trials(deepcopy=False)
    excluded = {trial.user_attrs.get(AGAIN_OF) for trial in trials}
    excluded |= {trial.number for trial in trials if SURPLUS in trial.user_attrs}
    excluded |= {trial.number for trial in trials if trial.state in DONE and VALUES not in trial.user_attrs}
    return [trial for trial in trials if trial.number not in excluded]


def parameter_importances(study: optuna.Study) -> dict[str, float]:
    """Return the share of the (first) metric's variance that each parameter explains (fANOVA); empty with too few trials."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(complete) < 4 or len({trial.values[0] for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with quiet():
        try:
            importances = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=lambda trial: trial.values[0]
            )
        except (RuntimeError, ValueError):  # a parameter has one value in all trials
            return {}
    return {optuna_space.parameter_name(name): float(share) for name, share in importances.items()}


def read_record(trial: FrozenTrial) -> TrialRecord:
    """Return the record of a trial."""
    return TrialRecord(
        number=trial.number,
        name=f"trial-{trial.user_attrs.get(FIRST, trial.number):04d}",
        state=STATUS_OF_OPTUNA.get(trial.state, TrialStatus.RUNNING),
        values=trial.user_attrs.get(VALUES, {}),
        history=trial.user_attrs.get(HISTORY) or [value for _, value in sorted(trial.intermediate_values.items())],
        reason=str(trial.user_attrs.get(REASON, "")),
        objectives=tuple(trial.values) if trial.values and len(trial.values) > 1 else (),
    )
