"""The database of a search, which several schedulers may share, and who owns its trials."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from harness.sweep.locked_database import connect_arguments
from harness.utils.errors import UsageError

HEARTBEAT, GRACE = 10, 45  # seconds between two heartbeats; seconds without one after which a trial's scheduler is dead
OPEN_ATTEMPTS = 4


def open_study(
    url: str,
    name: str,
    *,
    digest: str,
    maximise: Sequence[bool],
    on_stale: Callable[[FrozenTrial], None],
    notify: Callable[[str], None],
) -> tuple[RDBStorage, optuna.Study, bool]:
    """Open a study in a database, and create it where there is none.

    Args:
        digest: of the search, stored with a study that is created.
        maximise: for each metric, whether more is better.
        on_stale: called with every trial that Optuna fails because its heartbeat has stopped.
        notify: receives each line for the user, about a SQLite file that another process has locked.

    Returns:
        the storage, the study, and whether this call created it.

    Raises:
        UsageError: the database cannot be opened.
    """
    attempts_left = OPEN_ATTEMPTS
    while True:
        attempts_left -= 1
        try:
            with quiet():
                storage = RDBStorage(
                    url,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    failed_trial_callback=lambda study, trial: on_stale(trial),
                    engine_kwargs={"connect_args": connect_arguments(notify)} if url.startswith("sqlite") else None,
                )
                return storage, *_create_or_load(storage, name, digest, maximise)
        except Exception as error:  # SQLAlchemy's, the driver's, Optuna's
            if not attempts_left:
                raise UsageError(
                    f"cannot open the storage {_without_password(url)}: {describe_error(error)}"
                ) from error
            # Two processes that create the tables of an empty database at once fail each other's statements.
            time.sleep(0.5 + random.random())  # noqa: S311 - no secret


def _create_or_load(storage: RDBStorage, name: str, digest: str, maximise: Sequence[bool]) -> tuple[optuna.Study, bool]:
    sampler = optuna.samplers.RandomSampler(seed=0)  # replaced for each trial
    pruner = optuna.pruners.NopPruner()
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=["maximize" if each else "minimize" for each in maximise],
            sampler=sampler,
            pruner=pruner,
        )
    except optuna.exceptions.DuplicatedStudyError:
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner), False
    study.set_user_attr("digest", digest)
    return study, True


def owner_id() -> str:
    """Return what names this process as the owner of a trial: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(owner: str) -> bool:
    """Return whether an owner is a process of this host that has ended; False for one of another host."""
    host, _, pid = owner.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's warnings about experimental features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def describe_error(error: Exception) -> str:
    """Return the first line of a storage's own error, without what SQLAlchemy writes around it."""
    error = error if error.__cause__ is None or not isinstance(error.__cause__, Exception) else error.__cause__
    text = str(getattr(error, "orig", None) or error).strip()
    return (text.splitlines() or [type(error).__name__])[0][:300]


def _without_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    scheme, _, user = before.partition("://")
    return f"{scheme}://{user.split(':')[0]}:***@{after}" if at else url
