"""Names of runs and of their directories, made from settings."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from harness.config.names import data_name
from harness.config.recipe import read_recipe
from harness.config.settings import AUTO, Config, setting_fields
from harness.tracking.run_files import CONFIG
from harness.utils.errors import HarnessError


def slug(name: str) -> str:
    """Return `name` as 1 to 80 letters, digits, `.`, `_` and `-`, the first of them no `.` or `-`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-")[:80].rstrip(".-") or "run"


def default_name(config: Config) -> str:
    """Return `<recipe>-<data>-s<seed>-<digest>`: equal settings give equal names, so a rerun finds its run.

    With another model than the recipe's, the model's name replaces the recipe's. The recipe `auto` is left out while the model
    is `auto` too: the data, which decide the model, have not been read yet.
    """
    return slug(f"{_prefix(config)}-s{config.seed}-{config.digest()}")


def name_without_seed(config: Config) -> str:
    """Return `<recipe>-<data>-<digest>`: equal for all seeds of the same settings."""
    return slug(f"{_prefix(config)}-{config.replace(seed=0).digest()}")


def _prefix(config: Config) -> str:
    start, data = Path(config.recipe).stem, data_name(config.data, config.data_dir)
    if start == AUTO and "model" in config.undecided:
        return data[:60]
    try:
        model = read_recipe(config.recipe).get("model", setting_fields()["model"].default)
    except HarnessError:  # its file is gone
        model = None
    if model != config.to_dict()["model"] or start == Path(CONFIG).stem:  # `config.yaml` is a run's settings
        start = config.model.rsplit("/", 1)[-1]
    return f"{start[:40]}-{data[:20]}"  # a name has 80 characters, with its digest
