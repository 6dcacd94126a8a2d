"""What a run uses and what it makes, as artifacts: its data set and its model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from harness.config.names import BUILT_IN_DATASETS, FROM_PYTHON, REPORTED_SPLITS, main_metric
from harness.config.settings import Config, setting_fields
from harness.tracking.journal import JournalContents, read_journal
from harness.tracking.records import Artifact, Reference
from harness.tracking.run_files import DATASET
from harness.tracking.wandb.client import in_sweep
from harness.tracking.wandb.session import known_run_id
from harness.utils.errors import DataError
from harness.utils.files import write_json
from harness.utils.plain import sub_mapping
from harness.utils.text import dashed

LogModel: TypeAlias = Literal["end", "best", "never"]

RUN_ALIAS = "run-"  # what the alias of the version that a run has logged begins with
BEST = "best"  # alias of the best version of a collection
MAX_NAME = 128  # characters that W&B takes
# Settings that every version of a model has in its metadata; others are in it where they are not the default.
MAIN_SETTINGS = ("model", "data", "epochs", "batch_size", "lr_max", "lr_min", "optimizer", "weight_decay", "seed")


def log_model_mode(config: Config) -> LogModel:
    """Return when the model of a run becomes an artifact; `auto` is `never` in the trials of a W&B sweep."""
    match config.log_model:
        case "end" | "best" | "never" as mode:
            return mode
    return "never" if in_sweep() else "end"


def collection_name(*parts: str) -> str:
    """Return the name of a collection in characters that W&B takes, its parts joined with dashes."""
    return dashed("-".join(parts)).strip("-")[:MAX_NAME]


def dataset_name(config: Config) -> str:
    """Return the collection that holds the versions of a data set: its name, for image folders with the folder's."""
    if config.data in ("folder", "table"):
        return collection_name(config.data, Path(config.data_dir).expanduser().absolute().name)
    return collection_name(config.data)


def model_name(config: Config) -> str:
    """Return the collection that holds the versions of a model: those of one architecture trained on one data set."""
    return collection_name(config.model, dataset_name(config))


def dataset_artifact(config: Config, folder: Path, facts: Mapping[str, Any]) -> Artifact:
    """Write `dataset.json` to a folder, and return the data set of a run as an artifact that the run uses.

    Its content is the fingerprint and the names of the classes, so that equal data is one version for every run and
    machine. The images are named and not copied; their checksum is the fingerprint, and they are not read again.

    Args:
        facts: `name`, `classes` (names), `images` (number of each split) and `fingerprint`.
    """
    content = {key: facts[key] for key in ("name", "fingerprint", "classes")}
    write_json(folder / DATASET, content)
    address = data_address(config)
    return Artifact(
        name=dataset_name(config),
        kind="dataset",
        files={DATASET: folder / DATASET},
        metadata={
            "fingerprint": facts["fingerprint"],
            "images": dict(facts["images"]),
            "classes": len(facts["classes"]),
            **({"address": address} if address else {}),
        },
        references={"data": Reference(address, facts["fingerprint"])} if address else {},
        is_input=True,
    )


def data_address(config: Config) -> str:
    """Return the URI of the images; empty where they come with a package, or from a user's program."""
    prefix, slash, name = config.data.partition("/")
    folder = Path(config.data_dir).expanduser()
    is_own = not slash and config.data not in BUILT_IN_DATASETS  # its function need not read the folder
    if config.data == "digits" or config.data.startswith(FROM_PYTHON) or (is_own and not folder.exists()):
        return ""
    if prefix.lower() in ("hfds", "hfids") and not os.path.exists(name):
        return f"https://huggingface.co/datasets/{name}"
    return folder.absolute().as_uri()


def model_artifact(
    config: Config,
    files: Mapping[str, Path],
    facts: Mapping[str, Any],
    *,
    is_best: bool = False,
    is_interim: bool = False,
) -> Artifact:
    """Return the model of a run as a version of its collection.

    Args:
        facts: metadata of the version; `epoch` is the one that its weights are of.
        is_best: whether its epoch was selected on held-out images, so that it may be the best version.
        is_interim: whether it is logged during training, to be kept for `model_ttl` days.
    """
    settings = {
        key: value
        for key, value in config.affecting_results().items()
        if key in MAIN_SETTINGS or getattr(config, key) != setting_fields()[key].default
    }
    return Artifact(
        name=model_name(config),
        kind="model",
        files=files,
        aliases=("latest", f"epoch-{facts['epoch']}", *([BEST] if is_best else [])),
        metadata={**facts, "settings": settings},
        is_interim=is_interim,
        keep_days=config.model_ttl if is_interim else 0,
    )


def result_facts(summary: Mapping[str, Any], selected_by: str) -> dict[str, Any]:
    """Return the metadata of the model of a result.

    Args:
        summary: the contents of `summary.json`.
        selected_by: metric that selected the epoch; empty where none did.
    """
    result, data = summary["result"], summary["dataset"]
    is_multilabel = "thresholds" in summary
    main = main_metric(is_multilabel)
    values = [(split, result[f"{split}/{main}"]) for split in REPORTED_SPLITS if f"{split}/{main}" in result]
    split, value = values[0] if values else ("", None)
    return {
        "map" if is_multilabel else "accuracy": value,
        "split": split,
        "epoch": result["epoch"],
        "chosen": result["chosen"],
        **selection_facts(selected_by, summary["best"].get(selected_by)),
        **{key: value for key, value in result.items() if "/" in key},
        "classes": len(data["classes"]),
        "fingerprint": data["fingerprint"],
        "parameters": summary["parameters"],
    }


def selection_facts(selected_by: str, score: float | None) -> dict[str, Any]:
    """Return what versions of a model are compared by; empty where no metric selected the epoch."""
    return {"selected_by": selected_by, "score": score} if selected_by else {}


def leads(version: Mapping[str, Any], former: Mapping[str, Any]) -> bool:
    """Return whether a version takes the alias `best` over from another one, by the metadata of both.

    It does unless both were selected by the same metric on the same data, and the other's is at least as good.
    """
    keys = ("selected_by", "fingerprint")
    try:
        sign = -1 if str(version["selected_by"]).endswith("/loss") else 1
        return any(version[key] != former[key] for key in keys) or bool(
            sign * float(version["score"]) > sign * float(former["score"])
        )
    except (KeyError, TypeError, ValueError):  # the other one is not of this harness
        return True


def model_of_run(folder: Path) -> Artifact | None:
    """Return the model that a run has logged, as an artifact that another run uses; None where W&B has none of it."""
    run_id = known_run_id(folder)
    try:
        journal = read_journal(folder) if run_id else JournalContents()
    except DataError:  # weights that were copied without their run
        return None
    models = [artifact for artifact in journal.artifacts if artifact.kind == "model" and not artifact.is_input]
    if not models or not models[-1].is_complete:
        return None
    config = sub_mapping(journal.header, "config")
    path = [config.get("entity"), config.get("project"), f"{models[-1].name}:{run_alias(str(run_id))}"]
    version = "/".join(str(part) for part in path if part)
    return dataclasses.replace(models[-1], aliases=(), is_input=True, version=version)


def run_alias(run_id: str) -> str:
    """Return the alias of the version that a run has logged."""
    return f"{RUN_ALIAS}{run_id}"
