"""A checked sweep: what its trials are, their settings, the points of its grid, and what identifies the search."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.config.recipe import make_config
from harness.config.settings import Config, canonical_name, setting_fields
from harness.config.words import settings_of
from harness.sweep import command
from harness.sweep.distributions import Parameter, nested
from harness.sweep.hyperband import Hyperband
from harness.sweep.metric import Metric
from harness.sweep.source import SchedulerBlock
from harness.utils.errors import UsageError


@dataclass(frozen=True)
class SweepSpec:
    """A checked sweep.

    Attributes:
        method: grid, random or bayes.
        metrics: one, or several that are optimised at once.
        parameters: fixed and searched ones, in the order of the file; none where the user's code draws them.
        document: the YAML as it was read.
        fixed: settings that the words of `command` give every trial.
        overrides: settings given on the command line, under their names; they win over the file's constants.
        scheduler: the user's code that the file names.
    """

    name: str
    method: str
    metrics: tuple[Metric, ...]
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    hyperband: Hyperband | None
    run_cap: int | None
    document: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    scheduler: SchedulerBlock = SchedulerBlock()

    @property
    def metric(self) -> Metric:
        """Return the metric, of several the first."""
        return self.metrics[0]

    @property
    def seed_parameter(self) -> str:
        """Return the name of the seed among the parameters of a grid; empty where it is not one of them.

        Other searches draw a configuration once, so there is no mean over seeds.
        """
        if self.method != "grid":
            return ""
        return next((each.name for each in self.searched if setting_of(each)[0] == "seed"), "")

    def searched_names(self, values: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return the names of the searched parameters.

        Args:
            values: of the trials so far, which have them where the user's code draws the parameters.
        """
        drawn = dict.fromkeys(name for each in values for name in each) if self.scheduler.search_space else {}
        return [*(parameter.name for parameter in self.searched), *drawn]

    @property
    def settings(self) -> set[str]:
        """Return the settings that the file or the command line gives."""
        return {setting_of(parameter)[0] for parameter in self.parameters} | set(self.fixed) | set(self.overrides)

    @property
    def searched(self) -> list[Parameter]:
        """Return the parameters that have more than one value."""
        return [parameter for parameter in self.parameters if not parameter.is_fixed]

    def trial_parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of one trial, nested as an agent passes them on.

        Args:
            values: the searched values by dotted name.
        """
        if self.scheduler.search_space:  # W&B passes on what that function returns and nothing else
            return dict(values)
        return nested(
            {
                parameter.path: parameter.spec["value"] if parameter.is_fixed else values[parameter.name]
                for parameter in self.parameters
            }
        )

    def config(self, values: Mapping[str, Any]) -> Config:
        """Return the settings of one trial.

        Raises:
            UsageError: they contradict each other.
        """
        return make_config({**settings_of(self.trial_parameters(values)), **self.fixed, **self.overrides})

    def sample_config(self) -> Config:
        """Return the settings of the middle of the search space, or of another point where the middle is no valid run.

        Raises:
            UsageError: the middle and a hundred other points are no valid runs; it says what is wrong with the middle.
        """
        if self.scheduler.search_space:
            return make_config({**self.fixed, **self.overrides})
        draw = random.Random(0)  # noqa: S311 - no secret
        points = [[0.5] * len(self.searched), *([draw.random() for _ in self.searched] for _ in range(100))]
        first_error: UsageError | None = None
        for quantiles in points:
            pairs = zip(self.searched, quantiles, strict=True)
            try:
                return self.config({parameter.name: parameter.at(u) for parameter, u in pairs})
            except UsageError as error:
                first_error = first_error or error
        raise UsageError(f"no trial could run: {first_error}")

    def destination(self) -> dict[str, str]:
        """Return the project and entity of the file, which its trials have unless a parameter or an option says other."""
        given = self.settings
        return {
            key: str(self.document[key]) for key in ("project", "entity") if self.document.get(key) and key not in given
        }

    def grid(self, in_file_order: bool = False) -> list[dict[str, Any]]:
        """Return every point of the grid, in W&B's order: the parameters sorted by name, the last one varies fastest.

        Args:
            in_file_order: as before there was W&B's order: the parameters as the file has them, equal values repeated.
        """
        if in_file_order:
            lists = {each.name: each.choices or each.points() for each in self.searched}
        else:
            lists = {each.name: each.points() for each in sorted(self.searched, key=lambda each: each.path)}
        return [dict(zip(lists, point, strict=True)) for point in itertools.product(*lists.values())]

    def digest(self) -> str:
        """Return 8 hexadecimal digits that identify what is searched, whatever the cap, the place and the name."""
        document = dict(self.document)
        if tuple(document.get("command") or ()) == command.START_RUN:  # so that sweeps begun before are still found
            document["command"] = list(command.FORMER_START_RUN)
        searched = {
            key: value
            for key, value in document.items()
            if key not in ("run_cap", "name", "description", "project", "entity")
        }
        overrides = {
            name: value for name, value in self.overrides.items() if setting_fields()[name].metadata["affects_results"]
        }
        text = json.dumps([searched, overrides], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def setting_of(parameter: Parameter) -> tuple[str, int]:
    """Return the setting that a parameter stands for, and how many names of its path lead to it.

    Names before it are those of groups, which mean nothing to a run; names behind it are of arguments of the model.

    Raises:
        UsageError: no name of the path is a setting.
    """
    for index, name in enumerate(parameter.path, 1):
        with contextlib.suppress(UsageError):
            return canonical_name(name), index
    try:
        return canonical_name(parameter.path[-1]), len(parameter.path)
    except UsageError as error:
        raise UsageError(f"parameters.{parameter.name}: {error}") from None
