"""Look up a run or a sweep in W&B by its path, its URL, or its run directory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from harness.config import yaml_io
from harness.config.settings import Config
from harness.config.stored import read_stored_config
from harness.tracking.run_files import CONFIG, SEEDS, SEEDS_RECIPE, SWEEP_COPY
from harness.tracking.wandb.client import changed_environment, in_use, reason, set_up
from harness.tracking.wandb.init import has_api_key
from harness.tracking.wandb.session import known_run_id
from harness.tracking.wandb.variables import environment_changes
from harness.utils.errors import HarnessError, TrackingError, UsageError
from harness.utils.files import read_json

Kind: TypeAlias = Literal["run", "sweep", "group", ""]
FORMS = "ENTITY/PROJECT/RUN_ID, ENTITY/PROJECT/sweeps/ID, ENTITY/PROJECT/groups/NAME, a URL, or the directory of a run, of several seeds or of a sweep"
MAX_RUNS = 50  # of a group, whose facts take a request each
MAX_TRIALS = 1000  # of a sweep for several metrics
PLURALS: Mapping[str, Kind] = {"runs": "run", "sweeps": "sweep", "groups": "group"}
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
        folder: the directory that named it.
        sweep: the file of a sweep that `harness sweep` ran; W&B has its runs as a group.
    """

    entity: str
    project: str
    name: str
    kind: Kind = ""
    folder: Path | None = None
    sweep: Mapping[str, Any] | None = None


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
    group: str = ""


@dataclass(frozen=True)
class RunsFacts:
    """Several runs as W&B has them.

    Attributes:
        name: what they have in common.
        group: the W&B group of all of them; empty where they have none.
    """

    name: str
    runs: tuple[RunFacts, ...]
    group: str = ""


@dataclass(frozen=True)
class SweepFacts:
    """A sweep as W&B has it.

    Attributes:
        sweep_id: W&B's id; empty for a sweep that `harness sweep` ran, whose runs are a group.
        config: the sweep's configuration (its YAML file).
        runs: the number of trials.
        best: the best run by the sweep's metric; None where there is none.
        group: W&B's group of the trials and the final runs.
        finals: runs that trained the best configuration again and read the test set.
        trials: of a sweep for several metrics, each with its summary and config, the oldest first.
    """

    entity: str
    project: str
    sweep_id: str
    name: str
    config: Mapping[str, Any]
    runs: int
    best: RunFacts | None
    url: str = ""
    group: str = ""
    finals: tuple[RunFacts, ...] = ()
    trials: tuple[RunFacts, ...] = ()


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
    markers = [index for index in range(1, len(parts) - 1) if parts[index] in PLURALS]
    if markers:
        index = markers[-1]
        entity = parts[index - 2] if index > 1 else ""
        return Target(entity, parts[index - 1], parts[index + 1], PLURALS[parts[index]])
    if "://" not in target and len(parts) in (2, 3):
        return Target("" if len(parts) == 2 else parts[0], parts[-2], parts[-1])
    raise UsageError(f"{target!r} is no run or sweep of W&B; give {FORMS}")


def _target_of_folder(folder: Path) -> Target:
    if (folder / SEEDS).is_file():
        group = read_json(folder / SEEDS).get("group")
        return _target_of_group(folder, folder / SEEDS_RECIPE, str(group or ""))
    if (folder / SWEEP_COPY).is_file():
        tracked = [path for path in sorted(folder.glob("runs/*")) if known_run_id(path)]
        if not tracked:
            raise UsageError(f"no run of {folder} is in W&B; upload them with: harness sync {folder}/runs/*")
        return _target_of_group(folder, tracked[0] / CONFIG, sweep=yaml_io.read_yaml(folder / SWEEP_COPY, aliases=True))
    run_id = known_run_id(folder)
    config = _config_of(folder, folder / CONFIG)
    if run_id is None:
        raise UsageError(f"{folder} is not in W&B; upload it with: harness sync {folder}")
    return Target(config.entity, config.project, run_id, "run", folder)


def _target_of_group(folder: Path, settings: Path, group: str = "", sweep: Mapping[str, Any] | None = None) -> Target:
    """Return the W&B group of the runs of a directory, with the settings of one of them."""
    config = _config_of(folder, settings)
    if not (group := group or config.group):
        raise UsageError(f"the runs of {folder} have no W&B group; give each run with its own --wandb")
    return Target(config.entity, config.project, group, "group", folder, sweep)


def _config_of(folder: Path, settings: Path) -> Config:
    try:
        return read_stored_config(settings)
    except (HarnessError, TypeError):
        raise UsageError(f"{folder} is no run directory; give {FORMS}") from None


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


def look_up(target: Target) -> RunFacts | RunsFacts | SweepFacts:
    """Return what W&B has of a target; called inside `wandb_api_errors`.

    Raises:
        UsageError: there is no such run or sweep.
    """
    import wandb

    api = wandb.Api(timeout=TIMEOUT)
    entity = target.entity or str(api.default_entity or "")
    path = f"{entity}/{target.project}/{target.name}"
    if target.kind == "group":
        return _group(api, entity, target)
    if target.kind != "sweep" and (run := _or_none(lambda: api.run(path))) is not None:
        return _run(run, entity, target.project)
    if target.kind != "run" and (sweep := _or_none(lambda: api.sweep(path))) is not None:
        return _sweep(api, sweep, entity, target.project)
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
    about = {"state": run.state, "url": run.url, "group": run.group or ""}
    return RunFacts(entity, project, run.id, run.name or run.id, config, summary, charts, **about)


def _group(api: Any, entity: str, target: Target) -> RunsFacts | SweepFacts:
    """Return the runs of a group, or the sweep that `harness sweep` ran as one.

    Raises:
        UsageError: W&B has no run of the group.
    """
    path, group = f"{entity}/{target.project}", target.name
    if target.sweep is not None:
        sweep = dict(target.sweep)
        if not metric_of(sweep)[0]:  # as `harness sweep` reads a file without one
            sweep["metric"] = {"name": "best/val_acc", "goal": "maximize"}
        metric = metric_of(sweep)
        trials = _runs(api, path, {"group": group, "jobType": "trial"}, metric)
        best = _full(trials[0], entity, target.project) if len(trials) else None
        finals = _facts(_runs(api, path, {"group": group, "jobType": "final"}), entity, target.project)
        name = str(sweep.get("name") or group)
        if best is not None or finals:
            every = _trials(api, path, {"group": group, "jobType": "trial"}, sweep, entity, target.project)
            return SweepFacts(
                entity, target.project, "", name, sweep, len(trials), best, group=group, finals=finals, trials=every
            )
    elif runs := _facts(_runs(api, path, {"group": group}), entity, target.project):
        return RunsFacts(f"Group {group}", runs, group)
    remedy = f"upload its runs with: harness sync {target.folder}" if target.folder else f"give {FORMS}"
    raise UsageError(f"W&B has no run of the group {group!r} in {path}; {remedy}")


def metric_of(sweep: Mapping[str, Any]) -> tuple[str, str]:
    """Return the metric of a sweep's configuration and its goal, of several the first; an empty metric where it has none."""
    return next(iter(metrics_of(sweep)), ("", "minimize"))


def metrics_of(sweep: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the metrics of a sweep's configuration, each with its goal."""
    several = sweep.get("metrics")
    metrics = [sweep["metric"]] if sweep.get("metric") else several if isinstance(several, list) else []
    return [
        (str(metric.get("name", "")), str(metric.get("goal", "minimize")))
        for metric in metrics
        if isinstance(metric, Mapping)
    ]


def _trials(
    api: Any, path: str, filters: Mapping[str, Any], sweep: Mapping[str, Any], entity: str, project: str
) -> tuple[RunFacts, ...]:
    """Return the trials of a sweep for several metrics; none for a single metric, which W&B itself sorts by."""
    if len(metrics_of(sweep)) < 2:
        return ()
    runs = api.runs(path, filters=dict(filters), order="+created_at", per_page=MAX_RUNS, lazy=False)
    return tuple(_run(run, entity, project) for run in islice(runs, MAX_TRIALS))


def _runs(api: Any, path: str, filters: Mapping[str, Any], metric: tuple[str, str] = ("", "")) -> Any:
    """Return runs lazily, the best by a sweep's metric and its goal first, or the oldest."""
    name, goal = metric
    order = f"{'-' if goal == 'maximize' else '+'}summary_metrics.{name}" if name else "+created_at"
    return api.runs(path, filters=dict(filters), order=order, per_page=MAX_RUNS)


def _facts(runs: Any, entity: str, project: str) -> tuple[RunFacts, ...]:
    return tuple(_full(run, entity, project) for run in islice(runs, MAX_RUNS))


def _full(run: Any, entity: str, project: str) -> RunFacts:
    run.load_full_data()  # a list of runs has only some of each
    return _run(run, entity, project)


def _sweep(api: Any, sweep: Any, entity: str, project: str) -> SweepFacts:
    order = sweep.order
    best = sweep.best_run() if order and len(sweep.runs) else None
    facts = None if best is None else _full(best, entity, project)
    path = f"{entity}/{project}"
    trials = _trials(api, path, {"sweep": sweep.id}, sweep.config, entity, project)
    # The best configuration, trained again by hand: `harness run --recipe best.yaml --job-type final --group SWEEP_ID`.
    finals = _runs(api, path, {"group": sweep.id, "jobType": "final"})
    return SweepFacts(
        entity,
        project,
        sweep.id,
        sweep.name,
        sweep.config,
        len(sweep.runs),
        facts,
        sweep.url,
        sweep.id,
        _facts(finals, entity, project),
        trials,
    )
