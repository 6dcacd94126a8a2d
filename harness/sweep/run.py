"""Run a sweep file from Python, as `harness sweep` does from the command line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.settings import Config, canonical_name, coerce
from harness.sweep import schema, search
from harness.sweep.sampling import PRUNERS, SAMPLERS
from harness.sweep.source import load_functions
from harness.sweep.spec import SweepSpec
from harness.utils import plugins
from harness.utils.errors import UsageError, did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
        folder: the sweep's directory, with `trials.csv`, `best.yaml`, `sweep.json` and the figures.
        summary: trials, best configuration and times, as text.
    """

    folder: Path
    summary: str


def run_sweep(
    file: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
    workers: int = 1,
    storage: str = "",
    final: int = 0,
    search_seed: int = 0,
    choose_on_test: bool = False,
    fork: bool = True,
    sampler: str = "auto",
    pruner: str = "none",
    trust: bool = False,
) -> SweepResult:
    """Run a W&B sweep file on this machine, with no server: the same as `harness sweep FILE`.

    Args:
        file: a sweep in W&B's format whose command starts `harness run`.
        settings: replace constants of the file; `output` and `name` name the sweep's directory.
        count: trials in all; None: the file's `run_cap`.
        workers: trials at a time; they share the GPUs and the CPU threads.
        storage: a database URL that several machines share, or a SQLite file; empty: one in the sweep's directory.
        final: seeds to train and test the best configuration with; 0: none.
        search_seed: seed of the search.
        choose_on_test: allow a metric of the test set.
        fork: fork trials from a process that has torch and timm imported.
        sampler: of a Bayesian search: auto (tpe), tpe, gp, nsga2, qmc or random, of Optuna.
        pruner: what stops trials early: none, median, asha or patient, of Optuna.
        trust: run the Python code that the file's `scheduler:` names.

    Raises:
        UsageError: the file, a setting or the database URL is wrong, or the search would never end.
        Interrupted: a signal stopped it; the same call resumes the sweep.
        HarnessError: no trial could run, or a final run failed.
    """
    settings = {canonical_name(name): value for name, value in (settings or {}).items()}
    output = Path(str(settings.pop("output", Config().output))).expanduser()
    name = str(settings.pop("name", ""))
    spec = schema.read_sweep_file(Path(file), settings, on_test=choose_on_test)
    _check_search(spec, sampler, pruner)
    if not final and (link := spec.sample_config().link):
        log.warning(
            "link=%s: only final runs are linked, and there are none; set --final 1 to train the best one", link
        )
    is_trusted = trust or plugins.are_files_trusted()
    functions = load_functions(spec.scheduler, spec.document, spec.metrics, trusted=is_trusted)
    folder, summary = search.run_search(
        spec,
        Path(file).read_bytes(),
        output=output,
        name=name,
        count=count,
        workers=workers,
        storage=storage,
        final=final,
        seed=search_seed,
        fork=fork,
        sampler=sampler,
        pruner=pruner,
        functions=functions,
    )
    if coerce("report", settings.get("report", True)):
        from harness.reporting.html.pages import write_run_page

        write_run_page(folder, log.warning)
    return SweepResult(folder, summary)


def _check_search(spec: SweepSpec, sampler: str, pruner: str) -> None:
    """Check that a sampler and a pruner suit a sweep.

    Raises:
        UsageError: there is no such one, or the file has its own.
    """
    for option, name, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if name not in known:
            raise UsageError(f"{option}={name!r}: need one of {', '.join(known)}{did_you_mean(name, known)}")
    if sampler != "auto" and (spec.method != "bayes" or spec.scheduler.optimizer):
        owner = "the study of its optimizer:" if spec.scheduler.optimizer else f"method: {spec.method}"
        raise UsageError(f"sampler={sampler}: the file has {owner}; leave --sampler out, or set method: bayes")
    if pruner == "none":
        return
    if spec.hyperband is not None or spec.scheduler.optimizer:
        raise UsageError(f"pruner={pruner}: the file stops trials by its own rule; leave --pruner out")
    if len(spec.metrics) > 1:
        raise UsageError(f"pruner={pruner}: Optuna stops no trial of a search for several metrics; leave --pruner out")
