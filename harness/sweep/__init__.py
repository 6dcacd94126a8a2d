"""W&B sweeps on this machine: the same YAML, on Optuna, with no server. `harness.sweep(FILE)` runs one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.sweep.run import SweepResult


class _CallablePackage(ModuleType):
    """This package, which is also the function of the same name in the Python API."""

    def __call__(self, *args: Any, **kwargs: Any) -> SweepResult:
        """Run a sweep: see `harness.sweep.run.run_sweep`."""
        from harness.sweep.run import run_sweep

        return run_sweep(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
