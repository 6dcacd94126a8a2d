"""Which parameters are trained in which epoch: not those that `freeze` names, and at first only the classifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from harness.config.settings import Config
from harness.models.freezing import freeze_running_statistics, frozen_names, require_head, set_trained


@dataclass
class Freezing:
    """The parameters that are frozen, by name.

    Attributes:
        always: those of `freeze`.
        at_first: those that are frozen in the first `epochs` epochs, besides.
        is_applied: whether `at_first` are frozen now.
    """

    always: frozenset[str] = frozenset()
    at_first: frozenset[str] = frozenset()
    epochs: int = 0
    is_applied: bool = False

    def apply(self, model: nn.Module, epoch: int) -> bool:
        """Freeze or release the parameters for an epoch, and return whether what is trained has changed."""
        is_first = bool(self.at_first) and epoch < self.epochs
        if is_first == self.is_applied:
            return False
        self.is_applied = is_first
        set_trained(model, self.at_first, not is_first)
        return True

    def freeze_statistics(self, model: nn.Module, epoch: int) -> None:
        """Keep the running statistics of frozen modules of a model in training mode."""
        if frozen := self.always | (self.at_first if epoch < self.epochs else frozenset()):
            freeze_running_statistics(model, frozen)


def make_freezing(config: Config, model: nn.Module) -> Freezing:
    """Return what the settings freeze in a model, of which `freeze` is frozen already.

    Raises:
        UsageError: the model does not name its classifier, or all of that is frozen.
    """
    always = frozen_names(model, config.freeze)
    if not config.freeze_epochs:
        return Freezing(always)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = require_head(model, f"freeze_epochs={config.freeze_epochs}")
    return Freezing(always, frozenset(trained - head), config.freeze_epochs)
