"""Upload a log with W&B's own `wandb sync`, in a process of its own that is ended when it takes too long."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.tracking.wandb.client import reason
from harness.tracking.wandb.finishing import patience
from harness.tracking.wandb.offline_log import encode_log
from harness.tracking.wandb.run_logs import ArtifactKey, RunContent, select
from harness.tracking.wandb.variables import OF_ANOTHER_RUN, environment_changes
from harness.utils.plain import json_text

# What W&B's command does not get: what describes another run, and this process's own output and service.
NOT_PASSED = (*OF_ANOTHER_RUN, "WANDB_SILENT", "WANDB_QUIET", "WANDB_SERVICE", "WANDB_RUN_DIR")


def upload(
    content: RunContent,
    run_id: str,
    folder: Path,
    *,
    rows: Iterable[int],
    files: Iterable[str],
    artifacts: Iterable[ArtifactKey],
    after: float,
    changes: Mapping[str, Any],
    timeout: float,
) -> str:
    """Send a part of a run to W&B; return why W&B did not accept it, empty where nothing is known against it.

    Args:
        folder: W&B's folder of the run directory; the log is written below it, and removed again.
        timeout: seconds beyond what its bytes need.
    """
    files, artifacts = list(files), list(artifacts)
    size = content.bytes_of(files, artifacts)
    with (
        tempfile.TemporaryDirectory(prefix=".sync-", dir=folder) as temporary,
        _placed(content, Path(temporary), files),
    ):
        log = Path(temporary, f"run-{run_id}.wandb")
        for number, key in enumerate(artifacts):
            if key in content.manifests:
                manifest = Path(temporary, f"manifest-{number}.json")
                manifest.write_text(json_text(content.manifests[key]))
                content.artifacts[key].manifest.manifest_file_path = str(manifest)
        selected = select(content, rows=rows, files=files, artifacts=artifacts, after=after, changes=changes)
        payloads = []
        for number, record in enumerate(selected, start=1):
            record.num = number
            record.ClearField("control")
            payloads.append(record.SerializeToString())
        log.write_bytes(encode_log(payloads))
        return _wandb_sync(log, content, patience(timeout, size + log.stat().st_size))


@contextlib.contextmanager
def _placed(content: RunContent, folder: Path, files: Iterable[str]) -> Iterator[None]:
    """Have the run's files where W&B looks for them: beside the log, under the names that they have in W&B."""
    for name in files:
        target = folder / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(content.files[name], target, follow_symlinks=False)
        except OSError:  # another file system, or one without links
            shutil.copyfile(content.files[name], target, follow_symlinks=False)
    (folder / "files").mkdir(exist_ok=True)
    yield


def _wandb_sync(log: Path, content: RunContent, seconds: float) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED}
    for name, value in environment_changes().items():
        if name not in NOT_PASSED and value is None:
            environment.pop(name, None)
    environment |= {"WANDB_DIR": str(log.parent), "PYTHONSAFEPATH": "1"}
    program = content.environment.program if content.environment is not None else ""
    if not any(record.HasField("output_raw") for record in content.events):
        environment["WANDB_CONSOLE"] = "off"  # as it was in the run; else W&B makes a file of the lines as well
    environment["WANDB_PROGRAM"] = program or "harness"  # else W&B would note its own command
    command = [sys.executable, "-m", "wandb", "sync", "--no-skip-online", "--no-skip-synced", str(log)]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        command,
        cwd=log.parent,  # without a settings file that names another server
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not uploaded within {seconds:.0f} s"
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    lines = [line.strip() for line in output.splitlines() if "ERROR" in line or "error" in line]
    return reason(RuntimeError(lines[-1])) if lines or process.returncode else ""
