"""What W&B accepts as project, tags, names and ids: its client checks some of it at once, its server the rest at upload."""

from __future__ import annotations

import os

from harness.config.settings import WANDB, Config
from harness.tracking.wandb.variables import OF_SETTINGS
from harness.utils.errors import UsageError

MAX_LENGTHS = {"project": 128, "entity": 128, "name": 128, "group": 128, "job_type": 64}
MAX_TAG, MAX_ID = 64, 128
PROJECT_REFUSES, ID_REFUSES = "/\\#?%:", ":;,#?/'\\%"


def check_wandb_values(config: Config) -> None:
    """Check what names and describes a run in W&B, before it trains; do nothing where W&B is not used.

    Raises:
        UsageError: W&B would refuse a value, so that the run could never be uploaded; the option or variable is named.
    """
    is_off = config.wandb == "auto" and os.environ.get("WANDB_MODE", "").lower() == "disabled"
    if WANDB not in config.tracker or config.wandb == "disabled" or is_off:
        return
    for name in MAX_LENGTHS:
        _check_text(f"--{name.replace('_', '-')}", name, getattr(config, name))
    for variable, name in OF_SETTINGS.items():
        if name in MAX_LENGTHS:
            _check_text(variable, name, os.environ.get(variable, ""))
    for tag in config.tags:
        _check_tag("--tags", tag)
    for tag in os.environ.get("WANDB_TAGS", "").split(","):
        if tag:
            _check_tag("WANDB_TAGS", tag)
    run_id = os.environ.get("WANDB_RUN_ID", "")
    if run_id and (len(run_id) > MAX_ID or run_id != run_id.strip() or set(run_id) & set(ID_REFUSES)):
        raise UsageError(
            f"WANDB_RUN_ID={run_id!r}: W&B takes at most {MAX_ID} characters, without any of {ID_REFUSES} or outer spaces"
        )


def _check_text(option: str, name: str, value: str) -> None:
    if len(value) > MAX_LENGTHS[name]:
        raise UsageError(f"{option}={value!r}: W&B takes at most {MAX_LENGTHS[name]} characters, got {len(value)}")
    if name in ("project", "entity") and (refused := sorted(set(value) & set(PROJECT_REFUSES))):
        raise UsageError(f"{option}={value!r}: W&B does not take the character {refused[0]!r} here")


def _check_tag(option: str, tag: str) -> None:
    if not 1 <= len(tag) <= MAX_TAG:
        raise UsageError(f"{option}: {tag!r}: W&B takes tags of 1 to {MAX_TAG} characters, got {len(tag)}")
