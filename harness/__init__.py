"""Train an image classifier with Weights & Biases, see why it works, search its learning rates, share the result.

Everything that the command line does has a function here; each is imported when it is first used:

    import harness

    result = harness.run({"recipe": "digits", "epochs": 4})
    result.summary["result"], result.history[-1]["train/loss"]

The parts below are in `harness.training`, `harness.data`, `harness.models` and `harness.evaluation`.
"""

import os  # loaded by the interpreter itself, like sys
import sys

# `python -m harness` puts the current directory first on the path, so that a file there hides a library of the same name,
# Python's own too. It may be the folder of a run from somewhere else: it leaves the path before anything else is imported,
# `from __future__` included. A directory that this package is imported from stays.
if (
    sys.argv[:1] == ["-m"]  # the value while runpy looks for the module
    and not sys.flags.safe_path
    and any(word.partition(".")[0].endswith("harness") for word in sys.orig_argv[1:])
    and sys.path[0] in ("", os.getcwd())
    and os.getcwd() != os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
):
    del sys.path[0]

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from harness.config.recipe import make_config as make_config
    from harness.config.settings import Config as Config
    from harness.evaluation.trained_model import load_trained_model as load_model
    from harness.reporting.html.pages import write_page as report
    from harness.runs.inference import evaluate as evaluate
    from harness.runs.inference import explain as explain
    from harness.runs.lr_find import find_lr as find_lr
    from harness.runs.predict import predict as predict
    from harness.runs.run import run as run
    from harness.runs.seeds import run_seeds as run_seeds
    from harness.runs.trainer import RunResult as RunResult
    from harness.sweep.run import run_sweep as run_sweep

_PUBLIC = {
    "Config": "harness.config.settings:Config",
    "RunResult": "harness.runs.trainer:RunResult",
    "evaluate": "harness.runs.inference:evaluate",
    "explain": "harness.runs.inference:explain",
    "find_lr": "harness.runs.lr_find:find_lr",
    "load_model": "harness.evaluation.trained_model:load_trained_model",
    "make_config": "harness.config.recipe:make_config",
    "predict": "harness.runs.predict:predict",
    "report": "harness.reporting.html.pages:write_page",
    "run": "harness.runs.run:run",
    "run_seeds": "harness.runs.seeds:run_seeds",
    "run_sweep": "harness.sweep.run:run_sweep",
}
__all__ = [
    "Config",
    "RunResult",
    "evaluate",
    "explain",
    "find_lr",
    "load_model",
    "make_config",
    "predict",
    "report",
    "run",
    "run_seeds",
    "run_sweep",
]

_public = lazy_attributes(__name__, _PUBLIC)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("vision-harness")
    if name == "sweep":  # the package of that name, which can be called
        return import_module("harness.sweep")
    return _public(name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "sweep"]
