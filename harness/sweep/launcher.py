"""The process of a trial: its command as W&B's agent would give it, its share of the machine, its log, and its last word."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config.settings import canonical_name
from harness.sweep import command, results
from harness.sweep import workers as processes
from harness.sweep.schema import SweepSpec
from harness.sweep.study import Trial, TrialRecord
from harness.tracking import run_dir
from harness.tracking.run_dir import RunState
from harness.utils.files import read_json

FROM_AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_NAME", "WANDB_RUN_GROUP")


class Launcher:
    """Starts the runs of one sweep.

    Args:
        folder: where everything of the sweep goes.
        workers: runs at a time; each has its share of the GPUs and CPU threads.
        fork: start plain ones from a process that has everything imported.
    """

    def __init__(self, sweep: SweepSpec, folder: Path, workers: int, fork: bool) -> None:
        self.sweep, self.folder, self.workers = sweep, folder, workers
        self._environment = {name: value for name, value in os.environ.items() if name not in FROM_AGENTS}
        self._shares = processes.device_environments(workers, self._environment)
        self._forks = fork and hasattr(os, "fork") and len({tuple(share.items()) for share in self._shares}) == 1
        self._nest: processes.ForkServer | None = None

    @property
    def runs(self) -> Path:
        """Where the run folders go."""
        return self.folder / results.RUNS

    def free_share(self, taken: Iterable[int]) -> int:
        """The number of a share that nobody has."""
        return min(set(range(self.workers)) - set(taken))

    def trial(self, proposal: Trial, share: int) -> processes.TrialProcess:
        """The process of a trial; none is needed where an earlier coordinator died between the trial's end and its own word."""
        if run_dir.read_state(self.runs / proposal.name) == RunState.FINISHED:
            return processes.FinishedTrial()
        own: dict[str, Any] = {"job_type": "trial", "gallery": 0, "report": False}
        # Whatever the file says: the final runs read the test set.
        last = {} if self.sweep.metric.name.startswith(("test/", "best/test")) else {"test": False}
        return self._launch(proposal.values, self._words(proposal.name, own, last), proposal.name, share)

    def final(self, best: TrialRecord, seed: int, name: str, share: int) -> processes.TrialProcess:
        """The process of a run that tests the best configuration with a seed of its own."""
        own = self._words(name, {"job_type": "final"}, {"test": True, "seed": seed})
        return self._launch(best.values, own, name, share)

    def _words(self, name: str, own: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
        """What the sweep adds to a command: `own` where neither file nor command line says otherwise, `last` in any case."""
        given = {canonical_name(axis.path[0]) for axis in self.sweep.axes} | set(self.sweep.overrides)
        document = self.sweep.document
        usual = {"wandb": "offline", **own, "group": self.folder.name}
        usual |= {key: str(document[key]) for key in ("project", "entity") if document.get(key)}
        told = {**{key: value for key, value in usual.items() if key not in given}, **self.sweep.overrides, **last}
        told |= {"output": str(self.runs), "name": name, "resume": "auto"}
        return _options(told)

    def _launch(self, values: Mapping[str, Any], own: Sequence[str], name: str, share: int) -> processes.TrialProcess:
        parameters = self.sweep.parameters(values)
        environment = {**self._environment, **self._shares[share]}
        self.runs.mkdir(parents=True, exist_ok=True)
        log = self._log(name)
        here = Path.cwd()
        if self._forks and command.is_plain(self.sweep.command):
            if self._nest is None:
                self._nest = processes.ForkServer(environment)
            return self._nest.start(["run", *command.arguments(parameters), *own], environment, here, log)
        words = [*command.fill(self.sweep.command, parameters, environment), *own]
        return processes.SubprocessTrial(words, environment, here, log)

    def _log(self, name: str) -> Path:
        """Where the output of a process goes."""
        folder = self.folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def why(self, name: str, code: int) -> str:
        """A run's own last word on why it failed."""
        status = read_json(self.runs / name / run_dir.STATUS)
        if status.get("state") == RunState.FAILED and status.get("reason"):
            return str(status["reason"])
        try:
            lines = [line for line in self._log(name).read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
        ended = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        return f"{told[-1]} ({ended})" if told else ended

    def close(self) -> None:
        """End the process that others are forked from."""
        if self._nest is not None:
            self._nest.close()
            self._nest = None


def _options(settings: Mapping[str, Any]) -> list[str]:
    return [
        f"--{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, tuple | list) else value}"
        for name, value in settings.items()
    ]
