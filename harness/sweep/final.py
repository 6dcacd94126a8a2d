"""After a search: its best configuration trained over several seeds, and the test set read once for each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from harness.sweep import results, workers
from harness.sweep.launcher import Launcher
from harness.sweep.study import TrialRecord
from harness.tracking import run_dir
from harness.tracking.run_dir import RunState
from harness.utils.errors import HarnessError
from harness.utils.files import read_json, write_json
from harness.utils.signals import StopRequests

POLL_INTERVAL = 0.1  # seconds between two looks at the runs


def final_runs(
    launcher: Launcher, best: TrialRecord | None, seeds: int, stop_requests: StopRequests, say: Callable[[str], None]
) -> dict[str, Any]:
    """What the best configuration comes to over several seeds; kept in the sweep's summary too.

    Raises:
        HarnessError: no trial came to an end, or a final run failed.
    """
    if best is None:
        raise HarnessError("no trial logged the metric, so there is no best configuration to test")
    waiting = [(seed, f"final-{best.name.removeprefix('trial-')}-s{seed}") for seed in range(seeds)]
    running: list[tuple[int, str, workers.TrialProcess, int]] = []
    told: list[dict[str, Any]] = []
    try:
        while waiting or running:
            stop_requests.check()
            while waiting and len(running) < launcher.workers:
                seed, name = waiting.pop(0)
                if read_json(launcher.runs / name / run_dir.STATUS).get("state") != RunState.FINISHED:
                    share = launcher.free_share(item[3] for item in running)
                    running.append((seed, name, launcher.final(best, seed, name, share), share))
                else:
                    told.append({"seed": seed, **results.result_of(launcher.runs / name)})
            for item in list(running):
                seed, name, process, _ = item
                code = process.poll()
                if code is None:
                    continue
                running.remove(item)
                if code:
                    raise HarnessError(f"the final run with seed {seed} failed: {launcher.why(name, code)}")
                told.append({"seed": seed, **results.result_of(launcher.runs / name)})
                accuracy = 100 * float(told[-1].get("test/acc", float("nan")))
                say(f"final run, seed {seed}: test accuracy {accuracy:.2f} %")
            time.sleep(POLL_INTERVAL)
    finally:
        workers.stop_all([item[2] for item in running])
        launcher.close()
    table = {"trial": best.name, **results.final_table(sorted(told, key=lambda row: row["seed"]))}
    summary = launcher.folder / results.SUMMARY
    write_json(summary, {**read_json(summary), "final": table})
    return table
