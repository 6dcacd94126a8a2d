"""What W&B knows of a run or a sweep that somebody names: by path, by address, or by its run folder."""

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
from harness.tracking.wandb.init import has_api_key
from harness.tracking.wandb.session import in_use, known_run_id, reason, variables
from harness.utils.errors import HarnessError, TrackingError, UsageError

Kind: TypeAlias = Literal["run", "sweep", ""]
FORMS = "ENTITY/PROJECT/RUN_ID, ENTITY/PROJECT/sweeps/ID, its address, or a run folder"
TIMEOUT = 10  # seconds of one question
# A server that is away is said to be within half a minute.
IMPATIENT = {
    "WANDB_SILENT": "true",
    "WANDB_HTTP_TIMEOUT": str(TIMEOUT),
    "WANDB_X_GRAPHQL_RETRY_MAX": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "2",
    "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": str(TIMEOUT),
}


@dataclass(frozen=True)
class Target:
    """What is asked for; an empty `entity` is the user's own, an empty `kind` a run or else a sweep.

    Attributes:
        folder: the run folder that it was named by.
    """

    entity: str
    project: str
    name: str
    kind: Kind = ""
    folder: Path | None = None


@dataclass(frozen=True)
class RunFacts:
    """What W&B has of one run.

    Attributes:
        run_id: W&B's; `name` is the shown one.
        summary: key -> last value; pictures and tables are mappings with a `_type`.
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
    """What W&B has of one sweep.

    Attributes:
        config: the sweep's file.
        runs: how many. best: the best of them by the sweep's metric; None where there is none.
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
    """The target that a word names; no network.

    Raises:
        UsageError: it is none, or the folder was never tracked by W&B.
    """
    folder = Path(target).expanduser()
    if target and folder.is_dir():
        return _of_folder(folder)
    words = [unquote(word) for word in urlsplit(target).path.strip("/").split("/") if word]
    # .../ENTITY/PROJECT/runs/ID, and whatever page of it follows
    marked = [place for place in range(1, len(words) - 1) if words[place] in ("runs", "sweeps")]
    if marked:
        place = marked[-1]
        entity = words[place - 2] if place > 1 else ""
        return Target(entity, words[place - 1], words[place + 1], "run" if words[place] == "runs" else "sweep")
    if "://" not in target and len(words) in (2, 3):
        return Target("" if len(words) == 2 else words[0], words[-2], words[-1])
    raise UsageError(f"{target!r} names no run or sweep of W&B; give {FORMS}")


def _of_folder(folder: Path) -> Target:
    run_id = known_run_id(folder)
    try:
        config = Config(**yaml_io.read_yaml(folder / "config.yaml"))
    except (HarnessError, TypeError):
        raise UsageError(f"{folder} is no run folder; give {FORMS}") from None
    if run_id is None:
        raise UsageError(f"{folder} was not tracked by W&B; bring it there with: harness sync {folder}")
    return Target(config.entity, config.project, run_id, "run", folder)


@contextlib.contextmanager
def wandb_api_errors() -> Iterator[None]:
    """A context in which W&B answers soon or not at all; its own errors become one line with the remedy.

    Raises:
        TrackingError: W&B is not installed, there is no key, or the server can not be had.
    """
    try:
        import wandb
    except ImportError as error:
        raise TrackingError(f"W&B is not installed ({error}); pip install wandb") from error
    ours = not in_use(wandb)
    # W&B makes a folder for every run that is looked up.
    with tempfile.TemporaryDirectory() as folder, variables(**IMPATIENT, WANDB_DIR=folder):
        if not has_api_key():
            raise TrackingError("there is no W&B API key here; try `wandb login`, or set WANDB_API_KEY")
        try:
            yield
        except HarnessError:
            raise
        except Exception as error:
            raise TrackingError(
                f"W&B can not be had ({reason(error)}); look at the network, `wandb login` and WANDB_BASE_URL"
            ) from error
        finally:
            if ours:
                wandb.teardown()


def look_up(target: Target) -> RunFacts | SweepFacts:
    """What W&B has of a target; to be called within `asking`.

    Raises:
        UsageError: there is no such run and no such sweep.
    """
    import wandb

    api = wandb.Api(timeout=TIMEOUT)
    entity = target.entity or str(api.default_entity or "")
    path = f"{entity}/{target.project}/{target.name}"
    if target.kind != "sweep" and (run := _if_there(lambda: api.run(path))) is not None:
        return _run(run, entity, target.project)
    if target.kind != "run" and (sweep := _if_there(lambda: api.sweep(path))) is not None:
        return _sweep(sweep, entity, target.project)
    what = target.kind or "run or sweep"
    remedy = f"; bring it there with: harness sync {target.folder}" if target.folder else f"; give {FORMS}"
    raise UsageError(f"W&B has no {what} {path}{remedy}")


def _if_there(ask: Callable[[], Any]) -> Any:
    """The answer; None where W&B says that there is no such thing."""
    try:
        return ask()
    except Exception as error:
        cause = getattr(error, "exc", error)  # W&B wraps its own
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
