"""What all segments of one run in W&B share: where its files go, how it is opened, opened again, and closed.

The `wandb` module is handed in; only `wandb_run` imports it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from harness.config.settings import Config
from harness.tracking.wandb import offline_log
from harness.utils.errors import TrackingError
from harness.utils.files import read_json

State: TypeAlias = Literal["online", "offline", "incomplete"]

INIT_TIMEOUT = 20.0  # seconds that the start of a run waits for a server
CLUSTER_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_COMPLETION_INDEX")  # set in the jobs of a cluster
SENT = "harness-sent.json"  # beside W&B's files: the highest step handed over, so that segments never overlap

log = logging.getLogger(__name__)


@dataclass
class Session:
    """One run in W&B over all its segments.

    Attributes:
        wandb: the module.
        folder: the run folder, absolute.
        arguments: of `wandb.init`: which run this is.
        why_offline: what to tell the user where the run is offline from the start.
        say: takes each line meant for the user.
        online: whether the present segment has a server.
        stopped: whether W&B is known to have stopped the run.
    """

    wandb: Any
    config: Config
    folder: Path
    arguments: Mapping[str, Any]
    on_stop: Callable[[], None] | None
    say: Callable[[str], None]
    why_offline: str = ""
    online: bool = False
    stopped: bool = False
    run_id: str = ""
    _ours: bool = True
    _step_lines: set[str] = field(default_factory=set)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def files(self) -> Path:
        """Where W&B's own files of this run lie."""
        return self.folder / "wandb"

    def enter(self) -> None:
        """Point W&B at the run folder: an offline run is whole only with its artifacts' files beside it."""
        self._ours = not in_use(self.wandb)
        cache = os.environ.get("WANDB_CACHE_DIR") or str(self.files / "cache")
        folders = {"WANDB_DATA_DIR": str(self.files / "data"), "WANDB_CACHE_DIR": cache}
        self._stack.enter_context(variables(**folders, WANDB_SILENT="true"))

    def leave(self) -> None:
        """End W&B's process, unless it was there before (with a notebook's runs and login), and restore the environment."""
        if self._ours:
            self._teardown()
        self._stack.close()

    def connect(self, online: bool) -> tuple[Any, State]:
        """The opened run and its state; offline where the server can not be had and `wandb=auto` allows it.

        Raises:
            TrackingError: `wandb` is `online` or `offline` by name and the run can not be had so.
        """
        why = self.why_offline
        if online:
            try:
                return self._open("online"), "online"
            except KeyboardInterrupt:
                self._teardown(kill=True)
                raise
            except Exception as error:  # noqa: BLE001 - W&B raises its own, asyncio's and the system's alike
                self._teardown(kill=True)  # else W&B's process holds on to the run id
                why = f"W&B can not be had online ({reason(error)})"
            if self.config.wandb == "online":
                raise TrackingError(f"{why}; try `wandb login`, or set --wandb auto")
        try:
            run = self._open("offline")
        except Exception as error:  # noqa: BLE001 - as above
            why = f"W&B can not write to {self.files} ({reason(error)})"
            if self.config.wandb != "auto":
                raise TrackingError(f"{why}; set --wandb disabled to do without") from None
            self.say(f"{why}, so the run is not tracked by it; the journal has everything")
            return None, "incomplete"
        if why:
            self.say(f"{why}, so the run is tracked offline; upload it later with: {self.sync_command()}")
        return run, "offline"

    def restart(self) -> Any:
        """A new offline segment after W&B's process died; None when even that can not be had."""
        self._teardown()
        try:
            return self._open("offline")
        except Exception:  # the user was told already
            log.debug("no new segment", exc_info=True)
            return None

    def _open(self, mode: Literal["online", "offline"]) -> Any:
        self.files.mkdir(parents=True, exist_ok=True)
        chosen: dict[str, Any] = dict(
            root_dir=str(self.folder),
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT") or INIT_TIMEOUT),
            finish_timeout=float(self.config.finish_timeout),
            finish_timeout_raises=False,
            x_transaction_log_flush_interval=1.0,  # what a killed run loses; 15 s by default
            x_file_stream_transmit_interval=5.0,
            console="off",  # a progress bar makes thousands of console lines
            silent=True,
            save_code=False,
            reinit="create_new",  # never the run that a notebook has open
        )
        if self.on_stop is not None:
            # A plain function: W&B copies its settings deeply, and a method would bring this object and its threads along.
            chosen["stop_fn"] = lambda: self._stop()
        run = self.wandb.init(mode=mode, settings=self.wandb.Settings(**chosen), **self.arguments)
        self.run_id, self.online = str(run.id), mode == "online"
        run.define_metric("epoch", hidden=True)
        # No summary= here: it would make the summary's value a mapping, which a sweep can not read.
        for pattern in ("train/*", "val/*", "test/*", "best/*", "time/*", "throughput*"):
            run.define_metric(pattern, step_metric="epoch")
        run.define_metric("memory/*", step_metric="epoch", summary="max")
        for name in self._step_lines:
            run.define_metric(name)
        return run

    def _stop(self) -> None:
        self.stopped = True
        if self.on_stop is not None:
            self.on_stop()

    def stopped_by_server(self, run: Any) -> bool:
        """Whether W&B stopped the run: early termination, or somebody in the browser. No, where it can not be asked.

        The SDK hears of it with the answers to its rows, which an agent's SIGTERM comes before.
        """
        if not self.stopped and self.online and in_sweep():
            try:
                from wandb.sdk.launch.api import LaunchApi  # the one place that W&B has this question in

                asker = LaunchApi(timeout=10)
                self.stopped = bool(asker.check_stop_requested(run.project, run.entity, run.id))
            except Exception:  # W&B raises its own, asyncio's and the system's alike
                log.debug("W&B did not say whether it stopped the run", exc_info=True)
        return self.stopped

    def by_step(self, run: Any, names: Iterable[str]) -> None:
        """Have W&B draw these over the step, also those whose names are like the ones drawn over the epoch."""
        for name in set(names) - self._step_lines:
            run.define_metric(name)
            self._step_lines.add(name)

    def sync_command(self) -> str:
        """What uploads every offline segment of the run."""
        segments = sorted(self.files.glob(f"offline-run-*-{self.run_id}*"))
        if len(segments) == 1:
            return f"wandb sync {shlex.quote(str(segments[0]))}"
        return f"wandb sync {shlex.quote(str(self.files))}/offline-run-*-{self.run_id}*"

    def first_step(self, run: Any, resumed_step: int | None) -> int:
        """The lowest step that W&B was not given by an earlier segment."""
        if self.online:
            return int(run.starting_step)
        sent = read_json(self.files / SENT)
        if sent.get("run_id") == self.run_id and isinstance(sent.get("step"), int):
            return min(int(sent["step"]), self._kept(int(sent["step"]))) + 1
        return 0 if resumed_step is None else resumed_step + 1

    def _kept(self, sent: int) -> int:
        """The highest step that the offline segments before this one really hold; `sent` where a server has some."""
        earlier = sorted(self.files.glob(f"*run-*-{self.run_id}*"))[:-1]
        if not earlier or any(not folder.name.startswith("offline-") for folder in earlier):
            return sent
        return max(offline_log.last_step(log) for folder in earlier for log in folder.glob("run-*.wandb"))

    def note_sent(self, step: int) -> None:
        """Remember the highest step handed to W&B."""
        temporary = self.files / f".{SENT}.tmp"
        with contextlib.suppress(OSError):  # W&B's folder may be full; the run goes on
            temporary.write_text(json.dumps({"run_id": self.run_id, "step": step}))
            os.replace(temporary, self.files / SENT)

    def refusal(self, run: Any) -> str:
        """Why W&B gave up uploading, which it tells only its own log; empty when it did not."""
        with contextlib.suppress(OSError):
            for line in Path(run.settings.log_internal).read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    entry = json.loads(line)
                    if str(entry["level"]).startswith("ERROR+"):  # beyond ERROR: it will not try again
                        return reason(RuntimeError(entry["msg"]))
        return ""

    def _teardown(self, kill: bool = False) -> None:
        """End W&B's process; with `kill` without waiting for what it is doing, which is nothing that counts."""
        core = _core(self.wandb)
        if kill and self._ours and core is not None:
            core.kill()
        try:
            self.wandb.teardown()
        except (Exception, SystemExit):  # W&B's process is gone already; W&B leaves it as a zombie
            log.debug("W&B did not end in good order", exc_info=True)
            if core is not None:
                core.kill()
                core.wait()


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Environment variables that are set while it lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def known_run_id(folder: Path) -> str | None:
    """The W&B run id of the run that was tracked in a run folder before."""
    known = read_json(folder / "wandb" / SENT).get("run_id")
    return known if isinstance(known, str) and known else None


def in_use(wandb: Any) -> bool:
    """Whether W&B has been set up in this process already. It has no public word for it; False is the safe guess."""
    return getattr(getattr(wandb.sdk, "wandb_setup", None), "_singleton", None) is not None


def _core(wandb: Any) -> subprocess.Popen[bytes] | None:
    """W&B's process, where it can be found."""
    found: Any = wandb.sdk
    for name in ("wandb_setup", "_singleton", "_connection", "_proc", "_process"):
        found = getattr(found, name, None)
    return found if isinstance(found, subprocess.Popen) else None


def in_sweep() -> bool:
    """Whether a W&B sweep agent started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def is_preemption(exit_code: int) -> bool:
    """Whether somebody runs a stopped run again: a sweep, or a cluster that needed the machine (only one sends SIGUSR1)."""
    return in_sweep() or exit_code == 138 or any(name in os.environ for name in CLUSTER_JOBS)


def reason(error: BaseException) -> str:
    """The first line of an error, without the API key."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    key = os.environ.get("WANDB_API_KEY")
    return (text.replace(key, "***") if key else text)[:300]
