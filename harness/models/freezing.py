"""Parameters that are not trained, by the names that they have in a model."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

from torch import nn

from harness.models.pretrained import classifier_names, is_in
from harness.utils.errors import UsageError, did_you_mean

ALL_BUT_HEAD = "all-but-head"


def head_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of the classifier; empty where the model does not name it, as timm's models do."""
    modules = classifier_names(model)
    return frozenset(name for name, _ in model.named_parameters() if is_in(name, modules))


def frozen_names(model: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    """Return the names of the parameters that the patterns of the setting `freeze` name.

    A pattern is a name of a parameter or of a module that holds it, or has `*`, `?` and `[...]` as in the names of files.

    Raises:
        UsageError: a pattern names no parameter, or the model does not name its classifier.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        if pattern == ALL_BUT_HEAD:
            matched = set(names) - require_head(model, f"freeze={ALL_BUT_HEAD}")
        else:
            matched = {name for name in names if is_in(name, [pattern]) or fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            modules = [name for name, _ in model.named_modules() if name]
            raise UsageError(
                f"freeze={pattern!r} names no parameter of the model{did_you_mean(pattern, [*modules, *names])}; need a name such as {names[0]!r}, a module, or a pattern such as {names[0].split('.')[0]}.*"
            )
        frozen |= matched
    return frozenset(frozen)


def require_head(model: nn.Module, setting: str) -> frozenset[str]:
    """Return the names of the parameters of the classifier.

    Raises:
        UsageError: the model does not name it.
    """
    if not (head := head_names(model)):
        raise UsageError(f"{setting} needs a model that names its classifier, as timm's get_classifier() does")
    return head


def set_trained(model: nn.Module, names: Collection[str], is_trained: bool) -> None:
    """Let the named parameters have gradients, or none."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(is_trained)


def freeze_running_statistics(model: nn.Module, names: Collection[str]) -> None:
    """Put normalisation layers of a model that trains into evaluation mode, where all of their parameters are in `names`.

    Of a layer without parameters those of the module before it count, whose outputs it normalises.
    """
    parameters: list[str] = []  # of the last module that has some
    for prefix, module in model.named_modules():
        direct = [name for name, _ in module.named_parameters(prefix, recurse=False)]
        parameters = direct or parameters
        if isinstance(module, nn.modules.batchnorm._NormBase) and parameters and set(parameters) <= set(names):
            module.eval()
