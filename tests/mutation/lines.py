"""Which lines of the package each process of a test executes. Started by `sitecustomize.py` in a copy of the tree.

coverage.py traces; what a process has executed is written as JSON when it ends, by the name of the test or of the fixture
that was running: in pytest's own process by `contexts.py`, in the processes that a test starts or forks by CONTEXT.
"""

from __future__ import annotations

import atexit
import json
import os
import uuid
from pathlib import Path
from typing import Any

FOLDER, CONTEXT, ROOT = "HARNESS_MUTATION_LINES", "HARNESS_MUTATION_CONTEXT", Path(__file__).parents[2]
_coverage: list[Any] = []


def start() -> None:
    """Trace this process, and those that are forked from it."""
    _trace()
    os.register_at_fork(after_in_child=_trace)
    atexit.register(save)
    end = os._exit

    def save_and_exit(status: int) -> None:  # how forked processes end
        save()
        end(status)

    os._exit = save_and_exit  # type: ignore[assignment]


def _trace() -> None:
    import coverage

    for former in _coverage:  # the parent's
        former.stop()
    _coverage.clear()
    traced = coverage.Coverage(data_file=None, config_file=False, source=[str(ROOT / "harness")], messages=False)
    traced.set_option(
        "run:disable_warnings", ["no-data-collected", "module-not-measured", "already-imported", "trace-changed"]
    )
    traced.start()
    _coverage.append(traced)


def switch(context: str) -> None:
    """Count what is executed from now on for a test or a fixture."""
    os.environ[CONTEXT] = context
    for traced in _coverage:
        traced.switch_context(context)


def save() -> None:
    """Write the lines of this process so far."""
    folder = os.environ.get(FOLDER)
    if not folder or not _coverage or not Path(folder).is_dir():
        return
    traced = _coverage.pop()
    traced.stop()
    data, lines = traced.get_data(), {}
    for path in data.measured_files():
        name = Path(path).relative_to(ROOT).as_posix()
        for line, contexts in data.contexts_by_lineno(path).items():
            for context in contexts:
                key = context or os.environ.get(CONTEXT, "")
                lines.setdefault(key, {}).setdefault(name, []).append(line)
    lines.pop("", None)
    if lines:
        (Path(folder) / f"lines-{uuid.uuid4().hex}.json").write_text(json.dumps(lines))
