"""Starts the runs of a sweep: the trials, and afterwards the final runs of the best configuration."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.settings import Config, setting_fields
from harness.config.stored import read_stored_config
from harness.config.sweep_values import differing_values
from harness.config.words import settings_of
from harness.sweep import command, results
from harness.sweep.fork_server import ForkServer
from harness.sweep.metric import reads_test_set
from harness.sweep.selection import TrialRecord
from harness.sweep.spec import SweepSpec
from harness.sweep.study import Trial
from harness.sweep.workers import FinishedTrial, SubprocessTrial, TrialProcess, device_environments, stop_all
from harness.tracking import run_dir
from harness.tracking.run_dir import RunState
from harness.utils.errors import HarnessError, ResourceError, UsageError, first_line
from harness.utils.files import read_json, read_regular, write_json
from harness.utils.signals import StopRequests
from harness.utils.text import percent

if TYPE_CHECKING:
    from harness.runs.seeds import SeedRun, SeedsResult

AGENT_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_NAME", "WANDB_RUN_GROUP")
PLACE = ("output", "name", "resume")  # settings that say where a run is; the launcher gives them
FULL_DISK = "free some space"  # in the message of a run that cannot write
PROBE_SIZE = 2**18  # bytes
POLL_INTERVAL = 0.1  # seconds between two checks of the final runs


class Launcher:
    """Starts the runs of one sweep.

    Args:
        folder: of the sweep.
        workers: runs at a time; each has its share of the GPUs and CPU threads.
        fork: fork plain trials from a process that has imported everything.
    """

    def __init__(self, sweep: SweepSpec, folder: Path, workers: int, fork: bool) -> None:
        self.sweep, self.folder, self.workers = sweep, folder, workers
        self._environment = {name: value for name, value in os.environ.items() if name not in AGENT_VARIABLES}
        self._shares = device_environments(workers, self._environment)
        self._forks = fork and hasattr(os, "fork") and len({tuple(share.items()) for share in self._shares}) == 1
        self._server: ForkServer | None = None

    @property
    def runs(self) -> Path:
        """Return where the run directories go."""
        return self.folder / results.RUNS

    def free_share(self, taken: Iterable[int]) -> int:
        """Return the index of a worker's share that is not taken."""
        return min(set(range(self.workers)) - set(taken))

    def start_trial(self, trial: Trial, share: int) -> TrialProcess:
        """Start a trial; nothing is started where it finished under a scheduler that died before it stored that."""
        if run_dir.read_state(self.runs / trial.name) == RunState.FINISHED:
            return FinishedTrial()
        defaults: dict[str, Any] = {"job_type": "trial", "gallery": 0, "report": False, "log_model": "never"}
        options = self._options(trial.name, trial.values, defaults, self._forced_on_trials)
        return self._start(trial.values, options, trial.name, share)

    @property
    def _forced(self) -> Mapping[str, Any]:
        """Whatever the file says, only the final runs read the test set, unless the metric is one of it."""
        return {} if any(reads_test_set(metric.name) for metric in self.sweep.metrics) else {"test": False}

    @property
    def _forced_on_trials(self) -> Mapping[str, Any]:
        """The model of the final runs is linked, and none of a trial."""
        return {**self._forced, "link": ""}

    def why_not_its_run(self, name: str, values: Mapping[str, Any]) -> str:
        """Return why a run that has ended well is not that of its trial: it has other parameters than its row shows, or
        the program has left none; empty where it is."""
        try:
            config = read_stored_config(self.runs / name / run_dir.CONFIG)
        except (HarnessError, TypeError) as error:
            return f"the command has left no run that can be read: {first_line(error)}"
        replaced = {*PLACE, *self._forced_on_trials}
        parameters = {
            key: value for key, value in settings_of(self.sweep.trial_parameters(values)).items() if key not in replaced
        }
        differing = differing_values(parameters, config)
        return f"the run did not have the sweep's parameters: {'; '.join(differing)}" if differing else ""

    def config_of(self, record: TrialRecord) -> Config:
        """Return the settings of a trial: of a wrapper script, which may add some, those that its run had."""
        if command.start_of_run(self.sweep.command) is None:
            with contextlib.suppress(UsageError):  # its run is on another machine
                return read_stored_config(self.runs / record.name / run_dir.CONFIG)
        return self.sweep.config(record.values)

    def start_final(self, best: TrialRecord, seed: int, name: str, share: int) -> TrialProcess:
        """Start a run that trains the best configuration with another seed, reads the test set and explains the result.

        Galleries and page are made whatever the file says for its trials, as from `best.yaml`.
        """
        explained = {
            key: setting_fields()[key].default for key in ("gallery", "report") if key not in self.sweep.overrides
        }
        options = self._options(name, best.values, {"job_type": "final"}, {"test": True, "seed": seed, **explained})
        return self._start(best.values, options, name, share)

    def _options(
        self, name: str, values: Mapping[str, Any], defaults: Mapping[str, Any], forced: Mapping[str, Any]
    ) -> list[str]:
        """Return the options of a run beside its parameters.

        Args:
            values: of the searched parameters.
            defaults: settings that hold unless the file or the command line gives them.
            forced: settings that hold in any case.
        """
        given = self.sweep.settings | set(settings_of(self.sweep.trial_parameters(values)))
        defaults = {"wandb": "offline", **defaults, "group": self.folder.name}
        defaults |= self.sweep.destination()
        settings = {key: value for key, value in defaults.items() if key not in given}
        settings |= {**self.sweep.overrides, **forced}
        settings |= dict(zip(PLACE, (str(self.runs), name, "auto"), strict=True))
        return [
            f"--{key.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, tuple | list) else value}"
            for key, value in settings.items()
        ]

    def _start(self, values: Mapping[str, Any], options: Sequence[str], name: str, share: int) -> TrialProcess:
        parameters = self.sweep.trial_parameters(values)
        environment = {**self._environment, **self._shares[share]}
        self.runs.mkdir(parents=True, exist_ok=True)
        log, json_file = self._log(name), self._json_file(name, parameters)
        options = [*command.omitted(self.sweep.command, parameters), *options]
        if self._forks and command.is_plain(self.sweep.command):
            if self._server is None:
                self._server = ForkServer(environment)
            arguments = [*command.run_arguments(self.sweep.command, parameters, environment, json_file), *options]
            return self._server.start(arguments, environment, Path.cwd(), log)
        line = [*command.fill(self.sweep.command, parameters, environment, json_file), *options]
        return SubprocessTrial(line, environment, Path.cwd(), log)

    def _json_file(self, name: str, parameters: Mapping[str, Any]) -> Path | None:
        """Write the parameters of a run for `${args_json_file}`; None where the command does not have it."""
        if "${args_json_file}" not in self.sweep.command:
            return None
        path = (self.folder / "parameters" / f"{name}.json").absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {key: value for key, value in parameters.items() if key != "plugin"})
        return path

    def _log(self, name: str) -> Path:
        """Return the file that the output of a run goes to."""
        folder = self.folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def failure_reason(self, name: str, code: int) -> str:
        """Return why a run failed: from its status, or else the last line of its log."""
        status = read_json(self.runs / name / run_dir.STATUS)
        if status.get("state") == RunState.FAILED and status.get("reason"):
            return str(status["reason"])
        try:
            lines = [
                line for line in read_regular(self._log(name)).decode(errors="replace").splitlines() if line.strip()
            ]
        except OSError:
            lines = []
        messages = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
        ending = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        return f"{messages[-1]} ({ending})" if messages else ending

    def disk_was_full(self, name: str, code: int) -> bool:
        """Return whether a run ended with this exit status because nothing can be written, and not for lack of memory."""
        if code != ResourceError.exit_code:
            return False
        if FULL_DISK in self.failure_reason(name, code):
            return True
        probe = self.folder / ".probe"
        try:  # on a full disk its reason may be lost
            probe.unlink(missing_ok=True)  # what lies there may be a link
            with open(probe, "xb") as file:
                file.write(bytes(PROBE_SIZE))
        except OSError:
            return True
        finally:
            probe.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Stop the fork server."""
        if self._server is not None:
            self._server.close()
            self._server = None


@dataclass(frozen=True)
class _FinalRun:
    seed: int
    name: str
    process: TrialProcess
    share: int


def final_runs(
    launcher: Launcher, best: TrialRecord | None, seeds: int, stop_requests: StopRequests, notify: Callable[[str], None]
) -> SeedsResult:
    """Train the best configuration over several seeds, as many at a time as there are workers, and test each.

    The result is also written to the sweep's summary. Runs that finished under an earlier command are not repeated.

    Raises:
        HarnessError: there is no best configuration, or a final run failed.
    """
    from harness.runs.seeds import SeedsResult

    if best is None:
        raise HarnessError("no trial logged the metric, so there is no best configuration to test")
    waiting = [(seed, f"final-{best.name.removeprefix('trial-')}-s{seed}") for seed in range(seeds)]
    running: list[_FinalRun] = []
    finished: list[SeedRun] = []
    try:
        while waiting or running:
            stop_requests.check()
            while waiting and len(running) < launcher.workers:
                seed, name = waiting.pop(0)
                if run_dir.read_state(launcher.runs / name) == RunState.FINISHED:
                    finished.append(_seed_run(launcher.runs / name, seed))
                    continue
                share = launcher.free_share(run.share for run in running)
                running.append(_FinalRun(seed, name, launcher.start_final(best, seed, name, share), share))
            for run in list(running):
                code = run.process.poll()
                if code is None:
                    continue
                running.remove(run)
                if code:
                    reason = launcher.failure_reason(run.name, code)
                    raise HarnessError(f"the final run with seed {run.seed} failed: {reason}")
                finished.append(_seed_run(launcher.runs / run.name, run.seed))
                result_of_seed = finished[-1].result
                name = "mAP" if "test/acc" not in result_of_seed and "test/map" in result_of_seed else "accuracy"
                reached = result_of_seed.get("test/map" if name == "mAP" else "test/acc")
                notify(f"final run, seed {run.seed}: test {name} {'-' if reached is None else percent(reached, 2)}")
            time.sleep(POLL_INTERVAL)
    finally:
        stop_all([run.process for run in running])
        launcher.close()
    finished.sort(key=lambda run: run.seed)
    result = SeedsResult(launcher.folder, launcher.config_of(best), tuple(finished))
    summary = launcher.folder / results.SUMMARY
    write_json(summary, {**read_json(summary), "final": results.final_summary(best.name, result)})
    return result


def _seed_run(folder: Path, seed: int) -> SeedRun:
    from harness.runs.seeds import SeedRun

    result = run_dir.read_summary(folder).get("result", {})
    return SeedRun(seed, RunState.FINISHED, f"{results.RUNS}/{folder.name}", result)
