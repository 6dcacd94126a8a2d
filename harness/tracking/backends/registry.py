"""The trackers that `--tracker` names beside W&B: what they need, and how they are opened."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config.settings import TRACKERS, WANDB, Config, no_choice
from harness.tracking.backends.backend import Backend, RunLabels
from harness.tracking.backends.tracker import BackendTracker
from harness.tracking.log_intervals import Interval
from harness.tracking.records import Record
from harness.utils.errors import UsageError, first_line
from harness.utils.registry import find_registered, register, registered_names

# Name in `--tracker`, of the module here and of the extra -> the class in that module.
BACKENDS = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "trackio": "Trackio"}


def check_trackers(config: Config) -> None:
    """Import what the trackers of the settings need, before anything is trained.

    Raises:
        UsageError: a package is missing or broken; the message names the extra.
    """
    for kind in other_trackers(config):
        backend_type_of(kind, config.plugin)


def other_trackers(config: Config) -> tuple[str, ...]:
    """Return the trackers beside W&B that the settings name."""
    return tuple(kind for kind in dict.fromkeys(config.tracker) if kind != WANDB)


def open_trackers(
    config: Config,
    folder: Path,
    *,
    run_name: str,
    job_type: str = "",
    is_resumed: bool = False,
    earlier: Iterable[Record] = (),
    intervals: Sequence[Interval] = (),
    extra: Mapping[str, Any] | None = None,
    started: float = 0.0,
    notify: Callable[[str], None],
) -> list[BackendTracker]:
    """Return the trackers beside W&B that the settings name, each opening its run in a thread of its own.

    Args:
        folder: the run directory; each tracker has a folder of its name in it.
        job_type: `config.job_type` when empty.
        is_resumed: continue the runs that began in this directory.
        earlier: the journal's records of a resumed run.
        intervals: as in `JournalContents`, for `earlier`.
        extra: plain values beside the settings: the environment, facts of the data.
        started: as in `RunLabels`.

    Raises:
        UsageError: a package is missing or broken.
    """
    earlier = list(earlier)
    labels = RunLabels(
        folder=Path(folder).resolve(),
        project=config.project,
        name=run_name,
        group=config.group,
        job_type=job_type or config.job_type,
        tags=config.tags,
        notes=config.notes,
        started=started,
    )
    types = {kind: backend_type_of(kind, config.plugin) for kind in other_trackers(config)}
    return [
        BackendTracker(
            kind,
            backend_type,
            labels,
            is_resumed=is_resumed,
            config={**config.to_dict(), **(extra or {})},
            earlier=earlier,
            timeout=config.finish_timeout,
            log_every=config.log_every,
            intervals=intervals,
            notify=notify,
        )
        for kind, backend_type in types.items()
    ]


def register_tracker(backend_type: Any = None, *, name: str = "") -> Any:
    """Register a tracker, a subclass of `Backend`: `--tracker NAME --plugin MODULE` writes runs to it.

    It is made, used and closed in a thread of its own, and may raise anything: what it lacks is in the journal.

    Args:
        name: by default that of the class.

    Raises:
        UsageError: the name is one of a tracker of `harness`, or another module has registered it.
    """
    return register("tracker", backend_type, name=name, taken=TRACKERS)


def backend_type_of(kind: str, modules: Iterable[str] = ()) -> type[Backend]:
    """Return the backend of a tracker.

    Args:
        modules: plug-ins of `--plugin`, which may register it.

    Raises:
        UsageError: its package is missing or broken, and the message names the extra; or there is no such tracker.
    """
    if kind not in BACKENDS:
        return _registered_backend(kind, modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries about each other
            module = importlib.import_module(f"harness.tracking.backends.{kind}")
    except Exception as error:  # an installed package may be broken in any way
        raise UsageError(
            f"--tracker {kind}: its package cannot be imported ({first_line(error)}); pip install 'vision-harness[{kind}]'"
        ) from error
    backend_type: type[Backend] = getattr(module, BACKENDS[kind])
    return backend_type


def _registered_backend(kind: str, modules: Iterable[str]) -> type[Backend]:
    backend_type = find_registered("tracker", kind, modules)
    if backend_type is None:
        raise UsageError(no_choice("tracker", kind, registered_names("tracker")))
    if not (isinstance(backend_type, type) and issubclass(backend_type, Backend)):
        raise UsageError(
            f"tracker={kind!r}: what a plug-in registers as a tracker must be a subclass of harness.tracking.Backend"
        )
    missing = sorted(backend_type.__abstractmethods__)
    if missing or not hasattr(backend_type, "title"):
        raise UsageError(f"tracker={kind!r}: {backend_type.__name__} lacks {', '.join(missing or ['title'])}")
    return backend_type
