"""Train an image classifier, see why it works, search its learning rates, share the result.

The notebook API, imported when first used:

    import harness
    result = harness.run(harness.make_config({"recipe": "digits", "epochs": 4}))
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.config.recipe import make_config as make_config
    from harness.config.recipe import read_recipe as recipe
    from harness.config.settings import Config as Config
    from harness.runs.run import run as run
    from harness.runs.seeds import run_seeds as run_seeds
    from harness.runs.trainer import RunResult as RunResult
    from harness.training.learner import Learner as Learner
    from harness.training.learner import make_learner as make_learner
    from harness.training.loop import evaluate as evaluate
    from harness.training.loop import fit as fit
    from harness.training.schedule import Schedule as Schedule

_WHERE = {
    "Config": "harness.config.settings:Config",
    "recipe": "harness.config.recipe:read_recipe",
    "make_config": "harness.config.recipe:make_config",
    "RunResult": "harness.runs.trainer:RunResult",
    "run": "harness.runs.run:run",
    "run_seeds": "harness.runs.seeds:run_seeds",
    "Learner": "harness.training.learner:Learner",
    "make_learner": "harness.training.learner:make_learner",
    "evaluate": "harness.training.loop:evaluate",
    "fit": "harness.training.loop:fit",
    "Schedule": "harness.training.schedule:Schedule",
}
__all__ = [
    "Config",
    "Learner",
    "RunResult",
    "Schedule",
    "evaluate",
    "fit",
    "make_config",
    "make_learner",
    "recipe",
    "run",
    "run_seeds",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("vision-harness")
    if name not in _WHERE:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
