"""Open, reopen and close one W&B run, whose history may lie in several offline run directories.

A resumed run, and one whose W&B process died, gets another offline run directory under the same run id. The `wandb`
module is passed in, so that importing this stays cheap.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from harness.config.settings import Config, setting_fields
from harness.tracking.records import Artifact
from harness.tracking.run_files import JOURNAL
from harness.tracking.wandb import offline_log
from harness.tracking.wandb.client import (
    active_run,
    changed_environment,
    core_process,
    in_sweep,
    in_use,
    reason,
    set_up,
)
from harness.tracking.wandb.finishing import finish_run
from harness.tracking.wandb.variables import environment_changes, own_defaults
from harness.utils.errors import TrackingError
from harness.utils.files import note_json, read_json

State: TypeAlias = Literal["online", "offline", "incomplete"]

INIT_TIMEOUT = 20.0  # seconds that the start of a run waits for a server
CLUSTER_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_COMPLETION_INDEX")  # set in the jobs of a cluster
GIVEN_UP = ("file transfer: upload: failed", "sender: failed to log artifact")  # in W&B's log, after all tries
SENT = "harness-sent.json"  # beside W&B's files: the highest step sent, so that offline run directories never overlap

AXES = ("epoch", "images_seen")  # on every row of a step, beside W&B's own step and time

log = logging.getLogger(__name__)


@dataclass
class Session:
    """One run in W&B, over all its connections and offline run directories.

    Attributes:
        wandb: the module.
        folder: the run directory, absolute.
        arguments: of `wandb.init`; they identify the run.
        link: REGISTRY/COLLECTION that gets the model of the result; empty: none.
        has_new_id: whether the run id was made for this session, so that W&B has no run with it.
        broken: why W&B cannot be used at all; empty where it can.
        why_offline: why the run is offline from the start; empty when it is not, or was requested so.
        notify: receives each line for the user.
        online: whether the run is connected to a server.
        stopped: whether W&B is known to have stopped the run.
        result: W&B's artifact of the model of the result, and what it was made of; None before it is logged.
    """

    wandb: Any
    config: Config
    folder: Path
    arguments: Mapping[str, Any]
    on_stop: Callable[[], None] | None
    notify: Callable[[str], None]
    link: str = ""
    has_new_id: bool = False
    broken: str = ""
    why_offline: str = ""
    online: bool = False
    stopped: bool = False
    result: tuple[Any, Artifact] | None = None
    run_id: str = ""
    is_borrowed: bool = False  # whether the user's code has opened the run, and will close it
    _is_ours: bool = True  # whether W&B's process was started by this session
    _step_lines: set[str] = field(default_factory=set)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def files(self) -> Path:
        """W&B's own directory of this run."""
        return self.folder / "wandb"

    @property
    def finish_timeout(self) -> float:
        """Seconds to wait for W&B at the end of the run."""
        variable = os.environ.get("WANDB_FINISH_TIMEOUT")
        is_default = self.config.finish_timeout == setting_fields()["finish_timeout"].default
        return float(variable if variable and is_default else self.config.finish_timeout)

    def enter(self) -> None:
        """Point W&B at the run directory: an offline run is complete only with its artifacts' files beside it."""
        self._is_ours = not in_use(self.wandb)
        cache = os.environ.get("WANDB_CACHE_DIR") or str(self.files / "cache")
        data = os.environ.get("WANDB_DATA_DIR") or str(self.files / "data")
        self._stack.enter_context(
            changed_environment(**{**environment_changes(), "WANDB_DATA_DIR": data, "WANDB_CACHE_DIR": cache})
        )

    def leave(self) -> None:
        """End W&B's process unless it ran before (with a notebook's runs and login), and restore the environment."""
        if self._is_ours:
            self._teardown()
        self._stack.close()

    def connect(self, online: bool) -> tuple[Any, State]:
        """Return the opened run and its state; offline where the server is unavailable and `wandb=auto` allows it.

        Raises:
            TrackingError: `wandb` is `online` or `offline` by name, and W&B is unavailable in that mode.
        """
        if (run := active_run(self.wandb, self.arguments.get("id"))) is not None:
            return self._borrow(run)
        why = self.why_offline
        if self.broken:
            if self.config.wandb in ("online", "offline"):
                raise TrackingError(f"{self.broken}; mend it, or set --wandb disabled")
            self.notify(f"{self.broken}. The run is not in W&B; its journal is complete.")
            return None, "incomplete"
        if online:
            try:
                return self._open("online"), "online"
            except KeyboardInterrupt:
                self._teardown(kill=True)
                raise
            except Exception as error:  # noqa: BLE001 - W&B raises its own, asyncio's and the system's alike
                self._teardown(kill=True)  # else W&B's process keeps the run id
                if not self._is_ours and self.has_new_id:
                    self.arguments = {**self.arguments, "id": uuid.uuid4().hex[:8]}
                why = reason(error)
            if self.config.wandb == "online":
                raise TrackingError(f"W&B is unavailable ({why}); run `wandb login`, or set --wandb auto")
        try:
            run = self._open("offline")
        except Exception as error:  # noqa: BLE001 - as above
            why = f"W&B cannot write to {self.files} ({reason(error)})"
            if self.config.wandb != "auto":
                raise TrackingError(f"{why}; set --wandb disabled to train without W&B") from None
            self.notify(f"{why}. The run is not in W&B; its journal is complete.")
            return None, "incomplete"
        if why:
            self.notify(f"W&B is offline ({why}). Upload later with: {self.sync_command()}")
        return run, "offline"

    def _borrow(self, run: Any) -> tuple[Any, State]:
        """Add to a run that the user's code has opened; it stays open, under the name and group that it has."""
        if run.offline and self.config.wandb == "online":
            raise TrackingError(f"wandb=online, but the open W&B run {run.id} is offline; set --wandb auto")
        self.is_borrowed = True
        self.run_id, self.online = str(run.id), not run.offline
        # Keys of a sweep are locked: W&B keeps the values that it has drawn, with a warning for each that differs.
        config = self.arguments.get("config", {})
        run.config.update(
            {key: config[key] for key in config if run.config.get(key) != config[key]}, allow_val_change=True
        )
        self._define_metrics(run)
        return run, "online" if self.online else "offline"

    def restart(self) -> Any:
        """Return the run in a new offline run directory, after W&B's process died; None when that fails too."""
        if self.is_borrowed:
            return None
        self._teardown()
        try:
            return self._open("offline")
        except Exception:  # the user has had a message already
            log.debug("no new offline run directory", exc_info=True)
            return None

    def _open(self, mode: Literal["online", "offline"]) -> Any:
        self.files.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = dict(
            root_dir=str(self.folder),
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT") or INIT_TIMEOUT),
            # W&B's own limit cannot grow with what is left to upload; `finish` has one that does.
            finish_timeout=0.0 if self._is_ours else self.finish_timeout,
            finish_timeout_raises=False,
            reinit="create_new",  # never the run that a notebook has open
            **own_defaults(),
        )
        if self.on_stop is not None:
            # A plain function: W&B makes deep copies of its settings, and a method would include this object's threads.
            settings["stop_fn"] = lambda: self._stop()
        set_up(self.wandb, notify=lambda text: None)  # the message was given at the start
        run = self.wandb.init(mode=mode, settings=self.wandb.Settings(**settings), **self.arguments)
        self.run_id, self.online = str(run.id), mode == "online"
        self._define_metrics(run)
        return run

    def _define_metrics(self, run: Any) -> None:
        """Have W&B plot the metrics of epochs over the epoch; those of steps may be plotted over any of `AXES`."""
        for name in AXES:
            run.define_metric(name, hidden=True)
        # No summary= here: it would make the summary's value a mapping, which a sweep cannot read.
        for pattern in (
            "train/*",
            "val/*",
            "test/*",
            "best/*",
            "time/*",
            "throughput*",
            "memory/*",
            "gradients/*",
            "parameters/*",
        ):
            run.define_metric(pattern, step_metric="epoch")
        for name in self._step_lines:
            run.define_metric(name)

    def _stop(self) -> None:
        self.stopped = True
        if self.on_stop is not None:
            self.on_stop()

    def stopped_by_server(self, run: Any) -> bool:
        """Return whether W&B stopped the run (early termination, or a user in the browser); False where it is unknown.

        The SDK learns of it from the replies to its rows, and an agent's SIGTERM comes before them.
        """
        if not self.stopped and self.online and in_sweep():
            try:
                from wandb.sdk.launch.api import LaunchApi  # the only public class of W&B with this query

                api = LaunchApi(timeout=10)
                self.stopped = bool(api.check_stop_requested(run.project, run.entity, run.id))
            except Exception:  # W&B raises its own, asyncio's and the system's alike
                log.debug("W&B did not answer whether it stopped the run", exc_info=True)
        return self.stopped

    def plot_by_step(self, run: Any, names: Iterable[str]) -> None:
        """Have W&B plot these metrics over the step, even where their names match a pattern of epoch metrics."""
        for name in set(names) - self._step_lines:
            run.define_metric(name)
            self._step_lines.add(name)

    def sync_command(self) -> str:
        """Return the command that uploads the run; `harness sync` needs its journal, which an evaluation has not."""
        if (self.folder / JOURNAL).is_file():
            return f"harness sync {shlex.quote(str(self.folder))}"
        folders = sorted(self.files.glob(f"offline-run-*-{self.run_id}*"))
        if len(folders) == 1:
            return f"wandb sync {shlex.quote(str(folders[0]))}"
        return f"wandb sync {shlex.quote(str(self.files))}/offline-run-*-{self.run_id}*"

    def first_step(self, run: Any, resumed_step: int | None) -> int:
        """Return the lowest step that W&B does not have yet."""
        if self.is_borrowed:  # the user's code may have logged rows before; `step` is 0 until the first of them
            return max(int(run.starting_step), int(run.step))
        if self.online:
            return int(run.starting_step)
        sent = read_json(self.files / SENT)
        if self.run_id and sent.get("run_id") == self.run_id and isinstance(sent.get("step"), int):
            return min(int(sent["step"]), self._stored_step(int(sent["step"]))) + 1
        # Nothing is known of an earlier part: W&B has none of it, unless it gave the id to this run before.
        return 0 if resumed_step is None or "WANDB_RUN_ID" not in os.environ else resumed_step + 1

    def _stored_step(self, sent: int) -> int:
        """Return the highest step in the earlier offline run directories; `sent` where a server has some of the run."""
        # The present one is among them, without a row; not the last by name, where clocks disagree.
        folders = list(self.files.glob(f"*run-*-{self.run_id}*"))
        if len(folders) < 2 or any(not folder.name.startswith("offline-") for folder in folders):
            return sent
        logs = [log for folder in folders for log in folder.glob("run-*.wandb")]
        return max((offline_log.last_step(log) for log in logs), default=-1)

    def note_sent(self, step: int) -> None:
        """Store the highest step sent to W&B; nothing where W&B has never opened the run."""
        if self.run_id:
            note_sent(self.files, self.run_id, step)

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """End W&B's process where what is inside takes longer than the finish timeout; W&B asks a dead server for hours.

        Logging an artifact, or a row with a table, is such a request. The call then fails, and the run continues offline.
        """
        core = core_process(self.wandb) if self.online and self._is_ours else None
        timer = threading.Timer(self.finish_timeout, core.kill) if core is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def finish(self, run: Any, exit_code: int) -> str:
        """Finish the run; return why not everything was uploaded, empty where it was.

        A process of W&B that serves other runs as well is not ended: W&B's own limit holds there.
        """
        if not self.online:
            run.finish(exit_code=exit_code)
            return ""
        started, timeout = time.monotonic(), self.finish_timeout
        if self._is_ours:
            late = finish_run(run, exit_code, timeout, lambda: self._teardown(kill=True))
        else:
            run.finish(exit_code=exit_code)
            late = f"not uploaded within {timeout:g} s" if time.monotonic() - started > 0.95 * timeout else ""
        return late or self.refusal(run)

    def refusal(self, run: Any) -> str:
        """Return why W&B gave up uploading rows, a file or an artifact, which only its own log says; empty when it did not."""
        with contextlib.suppress(OSError):
            for line in Path(run.settings.log_internal).read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    entry = json.loads(line)
                    # Beyond ERROR: it will not try again.
                    if str(entry["level"]).startswith("ERROR+") or str(entry["msg"]).startswith(GIVEN_UP):
                        return reason(RuntimeError(entry["msg"]))
        return ""

    def _teardown(self, kill: bool = False) -> None:
        """End W&B's process; with `kill` at once, without waiting for its work.

        One that this session did not start serves runs, a login or an agent of the user's: it is left alone while it lives.
        """
        core = core_process(self.wandb)
        if not self._is_ours and (core is None or core.poll() is None):
            return
        if kill and self._is_ours and core is not None:
            core.kill()
        try:
            self.wandb.teardown()
        except (Exception, SystemExit):  # W&B's process has died already; W&B leaves it as a zombie
            log.debug("W&B failed to shut down", exc_info=True)
            if core is not None:
                core.kill()
                core.wait()


def note_sent(files: Path, run_id: str, step: int) -> None:
    """Store the highest step sent to W&B beside W&B's files; a full disk is no reason to stop."""
    note_json(files / SENT, {"run_id": run_id, "step": step})


def known_run_id(folder: Path) -> str | None:
    """Return the W&B run id of the run in a run directory; None where it was not tracked."""
    run_id = read_json(folder / "wandb" / SENT).get("run_id")
    return run_id if isinstance(run_id, str) and run_id else None


def is_preemption(exit_code: int) -> bool:
    """Return whether a stopped run will be started again: by a sweep, or by a cluster (only clusters send SIGUSR1)."""
    return in_sweep() or exit_code == 138 or any(name in os.environ for name in CLUSTER_JOBS)
