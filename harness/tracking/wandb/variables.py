"""The variables WANDB_* of the environment: W&B's client reads most of them itself; here are those that need a hand."""

from __future__ import annotations

import os
from collections.abc import Mapping

# An option that is given wins over the variable, and the variable over the default of the setting.
OF_SETTINGS = {
    "WANDB_PROJECT": "project",
    "WANDB_ENTITY": "entity",
    "WANDB_NAME": "name",
    "WANDB_RUN_GROUP": "group",
    "WANDB_JOB_TYPE": "job_type",
    "WANDB_TAGS": "tags",
    "WANDB_NOTES": "notes",
    "WANDB_MODE": "wandb",
    "WANDB_FINISH_TIMEOUT": "finish_timeout",
}
# W&B's defaults of these do not suit a run of harness: its own hold unless the variable is set.
OWN_DEFAULTS: Mapping[str, tuple[str, object]] = {
    "WANDB_CONSOLE": ("console", "off"),  # a progress bar writes thousands of console lines
    "WANDB_SILENT": ("silent", True),
    "WANDB_SAVE_CODE": ("save_code", False),
    "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": ("x_transaction_log_flush_interval", 1.0),  # seconds that a kill loses
    "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": ("x_file_stream_transmit_interval", 5.0),
}
NOT_USED = {
    "WANDB_DIR": "W&B's files are in the run directory, which can be resumed and uploaded; set --output",
    "WANDB_RESUME": "a W&B run is resumed exactly when its run directory is; set --resume",
    "WANDB_RESUME_FROM": "a run is resumed from its own checkpoint; set --resume",
    "WANDB_FORK_FROM": "a run is resumed from its own checkpoint; set --resume",
    "WANDB_REINIT": "a run that is open stays open, and that of a sweep is used",
    "WANDB_CONFIG_PATHS": "W&B would show settings that the run does not have; give the file as --recipe",
    "WANDB_DISABLED": "W&B's client does not know it any more; set WANDB_MODE=disabled",
    "WANDB_DESCRIPTION": "W&B's client does not know it any more; set WANDB_NOTES",
    "WANDB_LOG_MODEL": "it is one of other libraries; set --log-model end, best or never",
    "WANDB_WATCH": "it is one of other libraries; set --watch",
}
REMOVED = ("WANDB_RESUME_FROM", "WANDB_FORK_FROM", "WANDB_CONFIG_PATHS")  # W&B's client would follow them
SET_BY_AGENT = ("WANDB_DIR",)
# They describe the run of the process that has them, not one that this process uploads.
OF_ANOTHER_RUN = (
    "WANDB_MODE", "WANDB_RUN_ID", "WANDB_NAME", "WANDB_NOTES", "WANDB_TAGS", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE",
    "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME", "WANDB_HOST",
)  # fmt: skip


def unused_lines() -> list[str]:
    """Return one line for each variable that is set and not used, with the reason and the remedy."""
    is_in_sweep = bool(os.environ.get("WANDB_SWEEP_ID"))
    lines = [
        f"{name}={os.environ[name]} is not used: {why}"
        for name, why in NOT_USED.items()
        if os.environ.get(name) and not (is_in_sweep and name in SET_BY_AGENT)
    ]
    if os.environ.get("WANDB_MODE", "").lower() == "shared":
        lines.append("WANDB_MODE=shared is not used: a single process writes the run")
    return lines


def environment_changes() -> dict[str, str | None]:
    """Return the changes of the environment under which W&B's client is used: name -> value, None to remove it."""
    changed: dict[str, str | None] = {name: None for name in REMOVED if name in os.environ}
    mode = os.environ.get("WANDB_MODE", "")
    if mode.lower() == "shared":
        changed["WANDB_MODE"] = None
    elif mode != mode.lower():  # W&B's client refuses OFFLINE
        changed["WANDB_MODE"] = mode.lower()
    return {"WANDB_SILENT": os.environ.get("WANDB_SILENT") or "true", **changed}


def own_defaults() -> dict[str, object]:
    """Return the arguments of `wandb.Settings` that hold where no variable is set."""
    return {setting: value for name, (setting, value) in OWN_DEFAULTS.items() if not os.environ.get(name)}
