"""Log the model of a run as an artifact: that of the result, and on request each new best epoch during training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.models import factory
from harness.runs.components import Components
from harness.tracking import run_dir
from harness.tracking.lineage import log_model_mode, model_artifact, result_facts, selection_facts
from harness.tracking.run_dir import RunDir
from harness.tracking.tracker import Tracker

WEIGHTS = "model.safetensors"
INTERVAL = 600.0  # seconds between two models that are logged during training


@dataclass
class ModelLog:
    """Logs the model of one run when `log_model` says so."""

    components: Components
    directory: RunDir
    tracker: Tracker
    logged_at: float = field(default_factory=time.monotonic)

    def log_result(self, summary: Mapping[str, Any]) -> None:
        """Log the model of the result.

        Args:
            summary: the contents of `summary.json`.
        """
        config, split = self.components.config, self.components.selection_split
        if log_model_mode(config) != "never":
            facts = result_facts(summary, f"{split}/{config.select_by}" if split else "")
            is_candidate = facts.get("score") is not None
            self.tracker.artifact(model_artifact(config, self._files(), facts, is_best=is_candidate))

    def log_best(self, epoch: int, acc: float, score: float, write: Callable[[], None]) -> None:
        """Log the model of a new best epoch, at most every `INTERVAL` seconds: the run may never reach its end.

        Args:
            acc: accuracy on the split that selects, or mAP where images have several labels.
            score: of the epoch there, by the metric that selects.
            write: waits until the files of the model are on the disk.
        """
        components, now = self.components, time.monotonic()
        config, split = components.config, components.selection_split
        if epoch == config.epochs or now - self.logged_at < INTERVAL or log_model_mode(config) != "best":
            return
        self.logged_at = now
        write()
        facts = {
            **({"map": acc} if config.is_multilabel else {"accuracy": acc}),
            "split": split,
            "epoch": epoch,
            "classes": len(components.dataset.classes),
            **selection_facts(f"{split}/{config.select_by}", score),
            "fingerprint": components.dataset.fingerprint,
        }
        files = {name: path for name, path in self._files().items() if name in (WEIGHTS, "model.json")}
        self.tracker.artifact(model_artifact(config, files, facts, is_interim=True))

    def _files(self) -> dict[str, Path]:
        """Return the files that make the model of the run: name in the artifact -> file."""
        folder = self.directory.checkpoints
        names = (WEIGHTS, "model.json", "config.json", "README.md", factory.CLASS_MAP)
        files = {name: folder / name for name in names if (folder / name).exists()}
        return {**files, run_dir.CONFIG: self.directory.path / run_dir.CONFIG}
