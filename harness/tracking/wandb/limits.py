"""What W&B accepts as project, tags, names and ids: its client checks some of it at once, its server the rest at upload."""

from __future__ import annotations

import os

from harness.config.settings import WANDB, Config
from harness.tracking.wandb.variables import OF_SETTINGS
from harness.utils.errors import UsageError

MAX_LENGTHS = {"project": 128, "entity": 128, "name": 128, "group": 128, "job_type": 64}
MAX_TAG, MAX_ID, MAX_LINK = 64, 128, 100
LINK_REFUSES = "\\#?%:"
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
    check_link(config.link)
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


def check_link(link: str) -> None:
    """Check the registry collection that a model is linked to; an empty text is none.

    Raises:
        UsageError: it is not REGISTRY/COLLECTION, or has characters that W&B does not take.
    """
    parts = link.split("/")
    is_usable = len(parts) == 2 and all(
        0 < len(part) <= MAX_LINK and not set(part) & set(LINK_REFUSES) for part in parts
    )
    if link and not is_usable:
        raise UsageError(
            f"--link={link!r}: need REGISTRY/COLLECTION, each of 1 to {MAX_LINK} characters without any of {LINK_REFUSES}"
        )


def _check_tag(option: str, tag: str) -> None:
    if not 1 <= len(tag) <= MAX_TAG:
        raise UsageError(f"{option}: {tag!r}: W&B takes tags of 1 to {MAX_TAG} characters, got {len(tag)}")
