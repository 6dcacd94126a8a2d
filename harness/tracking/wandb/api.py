"""Look up a run or a sweep in W&B by its path, its URL, or its run directory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from harness.config import yaml_io
from harness.config.settings import Config
from harness.tracking.wandb.client import changed_environment, in_use, reason, set_up
from harness.tracking.wandb.init import has_api_key
from harness.tracking.wandb.session import known_run_id
from harness.tracking.wandb.variables import environment_changes
from harness.utils.errors import HarnessError, TrackingError, UsageError

Kind: TypeAlias = Literal["run", "sweep", ""]
FORMS = "ENTITY/PROJECT/RUN_ID, ENTITY/PROJECT/sweeps/ID, a URL, or a run directory"
TIMEOUT = 10  # seconds of one request
# An unavailable server is reported within half a minute.
SHORT_TIMEOUTS = {
    "WANDB_HTTP_TIMEOUT": str(TIMEOUT),
    "WANDB_X_GRAPHQL_RETRY_MAX": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "2",
    "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": str(TIMEOUT),
}


@dataclass(frozen=True)
class Target:
    """A run or sweep that the user named.

    Attributes:
        entity: empty: the user's default entity.
        kind: empty: a run, or else a sweep.
        folder: the run directory that named it.
    """

    entity: str
    project: str
    name: str
    kind: Kind = ""
    folder: Path | None = None


@dataclass(frozen=True)
class RunFacts:
    """A run as W&B has it.

    Attributes:
        run_id: W&B's id; `name` is the displayed name.
        summary: key -> last value; images and tables are mappings with a `_type`.
        charts: key -> `panel_config` of each chart that the run logged with `wandb.plot`.
    """

    entity: str
    project: str
    run_id: str
    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    charts: Mapping[str, Any]
    state: str = "finished"
    url: str = ""


@dataclass(frozen=True)
class SweepFacts:
    """A sweep as W&B has it.

    Attributes:
        config: the sweep's configuration (its YAML file).
        runs: the number of runs.
        best: the best run by the sweep's metric; None where there is none.
    """

    entity: str
    project: str
    sweep_id: str
    name: str
    config: Mapping[str, Any]
    runs: int
    best: RunFacts | None
    url: str = ""


def parse(target: str) -> Target:
    """Return the run or sweep that a path, URL or run directory names; no network.

    Raises:
        UsageError: it names none, or the directory's run was never tracked in W&B.
    """
    folder = Path(target).expanduser()
    if target and folder.is_dir():
        return _target_of_folder(folder)
    parts = [unquote(part) for part in urlsplit(target).path.strip("/").split("/") if part]
    # .../ENTITY/PROJECT/runs/ID, with any page of it after that
    markers = [index for index in range(1, len(parts) - 1) if parts[index] in ("runs", "sweeps")]
    if markers:
        index = markers[-1]
        entity = parts[index - 2] if index > 1 else ""
        return Target(entity, parts[index - 1], parts[index + 1], "run" if parts[index] == "runs" else "sweep")
    if "://" not in target and len(parts) in (2, 3):
        return Target("" if len(parts) == 2 else parts[0], parts[-2], parts[-1])
    raise UsageError(f"{target!r} is no run or sweep of W&B; give {FORMS}")


def _target_of_folder(folder: Path) -> Target:
    run_id = known_run_id(folder)
    try:
        config = Config(**yaml_io.read_yaml(folder / "config.yaml"))
    except (HarnessError, TypeError):
        raise UsageError(f"{folder} is no run directory; give {FORMS}") from None
    if run_id is None:
        raise UsageError(f"{folder} is not in W&B; upload it with: harness sync {folder}")
    return Target(config.entity, config.project, run_id, "run", folder)


@contextlib.contextmanager
def wandb_api_errors() -> Iterator[None]:
    """Shorten W&B's timeouts inside the context, and turn its exceptions into one line with the remedy.

    Raises:
        TrackingError: W&B is not installed, there is no API key, or the server is unavailable.
    """
    try:
        import wandb
    except ImportError as error:
        raise TrackingError(f"W&B is not installed ({error}); pip install wandb") from error
    is_ours = not in_use(wandb)
    # W&B makes a folder for every run that is looked up.
    with (
        tempfile.TemporaryDirectory() as folder,
        changed_environment(**{**environment_changes(), **SHORT_TIMEOUTS, "WANDB_DIR": folder}),
    ):
        if not has_api_key():
            raise TrackingError("no W&B API key was found; run `wandb login`, or set WANDB_API_KEY")
        try:
            set_up(wandb)
            yield
        except HarnessError:
            raise
        except Exception as error:
            raise TrackingError(
                f"W&B is unavailable ({reason(error)}); check the network, `wandb login` and WANDB_BASE_URL"
            ) from error
        finally:
            if is_ours:
                wandb.teardown()


def look_up(target: Target) -> RunFacts | SweepFacts:
    """Return what W&B has of a target; called inside `wandb_api_errors`.

    Raises:
        UsageError: there is no such run or sweep.
    """
    import wandb

    api = wandb.Api(timeout=TIMEOUT)
    entity = target.entity or str(api.default_entity or "")
    path = f"{entity}/{target.project}/{target.name}"
    if target.kind != "sweep" and (run := _or_none(lambda: api.run(path))) is not None:
        return _run(run, entity, target.project)
    if target.kind != "run" and (sweep := _or_none(lambda: api.sweep(path))) is not None:
        return _sweep(sweep, entity, target.project)
    remedy = f"upload it with: harness sync {target.folder}" if target.folder else f"give {FORMS}"
    raise UsageError(f"W&B has no {target.kind or 'run or sweep'} {path}; {remedy}")


def _or_none(request: Callable[[], Any]) -> Any:
    """Return the result of a request; None where W&B answers that it does not exist."""
    try:
        return request()
    except Exception as error:
        cause = getattr(error, "exc", error)  # W&B wraps its exceptions
        if isinstance(cause, ValueError) and "could not find" in str(cause).lower():
            return None
        raise


def _run(run: Any, entity: str, project: str) -> RunFacts:
    internal = run.rawconfig.get("_wandb") or {}
    charts = {key: chart.get("panel_config") or {} for key, chart in (internal.get("visualize") or {}).items()}
    config = {key: value for key, value in run.config.items() if not key.startswith("_")}
    summary = dict(run.summaryMetrics or {})
    return RunFacts(entity, project, run.id, run.name or run.id, config, summary, charts, run.state, run.url)


def _sweep(sweep: Any, entity: str, project: str) -> SweepFacts:
    order = sweep.order
    best = sweep.best_run() if order and len(sweep.runs) else None
    if best is not None:
        best.load_full_data()
    facts = None if best is None else _run(best, entity, project)
    return SweepFacts(entity, project, sweep.id, sweep.name, sweep.config, len(sweep.runs), facts, sweep.url)
