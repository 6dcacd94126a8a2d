"""What Optuna draws the trials of a search with (samplers), and what stops them early (pruners), by name."""

from __future__ import annotations

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from harness.config.recipe import first_comparison
from harness.config.settings import Config
from harness.sweep.storage import quiet

SAMPLERS = ("auto", "tpe", "gp", "nsga2", "qmc", "random")
PRUNERS = ("none", "median", "asha", "patient")


def make_sampler(
    name: str, seed: int, cap: int | None, *, objectives: int = 1, is_conditional: bool = False
) -> BaseSampler:
    """Return a sampler.

    Args:
        name: one of `SAMPLERS`; auto is tpe.
        cap: trials in all, of which up to a third are drawn at random first; None: unknown.
        objectives: number of metrics.
        is_conditional: whether trials have different parameters.
    """
    with quiet():
        return _sampler(name, seed, cap, objectives, is_conditional)


def _sampler(name: str, seed: int, cap: int | None, objectives: int, is_conditional: bool) -> BaseSampler:
    startup = 10 if cap is None else max(4, min(10, cap // 3))
    match name:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case "nsga2":
            population = 50 if cap is None else max(4, min(50, cap // 4))
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
        case "qmc":
            return optuna.samplers.QMCSampler(seed=0, scramble=True)  # one sequence, of which each trial is a point
    return optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=is_conditional, constant_liar=objectives == 1, n_startup_trials=startup
    )


def make_pruner(name: str, config: Config) -> BasePruner:
    """Return a pruner that stops no run before `first_comparison`.

    Args:
        name: one of `PRUNERS` other than none. median: a run that is worse than half of the others at the same epoch;
            asha: successive halving; patient: a run that has not improved for a quarter of its epochs and is worse than
            half of the others.
        config: settings of a trial.
    """
    first = first_comparison(config)
    median = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=first)
    if name == "median":
        return median
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=2)
    with quiet():
        return optuna.pruners.PatientPruner(median, patience=max(1, config.epochs // 4))
