"""What timm asks of a model, for networks of stages in a row, a global pooling and one fully connected layer."""

# No `from __future__ import annotations` here: TorchScript cannot read a traced graph whose annotations are strings.

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d, get_device_dtype
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F


class StagedNet(nn.Module):
    """Stages in a row, global pooling, dropout, and a classifier `fc` whose logits are multiplied by `logit_scale`.

    A subclass sets `num_classes`, `head_bias`, `logit_scale`, `drop_rate`, its stages under the names in `STAGES`,
    `num_features` and `feature_info`, and then calls `set_head`.
    """

    STAGES: tuple[str, ...]  # names of the stages, from the input on
    num_classes: int
    head_bias: bool
    logit_scale: float
    drop_rate: float
    num_features: int
    feature_info: list[dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    def set_head(self, global_pool: str, **factory: Any) -> None:
        """Make pooling and classifier.

        Args:
            global_pool: timm's name of a pooling; empty (without classes): none.
        """
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if self.num_classes > 0 and not global_pool:
            raise ValueError(f"{self.num_classes} classes need a pooling before the classifier; set global_pool")
        self.fc: nn.Module = nn.Identity()
        if self.num_classes > 0:
            self.fc = nn.Linear(self.head_hidden_size, self.num_classes, bias=self.head_bias, **factory)
        self.init_head()

    def init_head(self) -> None:
        """Initialise the classifier further; torch's own initialisation is done."""

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the stages for the backward pass and recompute the rest.

        As in all of timm, the BN statistics of those stages then move twice a step.
        """
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """Return the classifier, or its name."""
        return "fc" if name_only else self.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes: none. `global_pool` None keeps the pooling, empty removes it."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.set_head(pool, **get_device_dtype(self))
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the outputs of some of the stages, after the final output unless `intermediates_only`.

        Args:
            x: images [B, channels, H, W].
            indices: the last n stages when a number, those stages when a list, all when None.
            norm: has no effect: every stage ends normalised.
            stop_early: compute no stage after the last requested one.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"need output_fmt='NCHW', got {output_fmt!r}")
        requested, last = feature_take_indices(len(self.STAGES), indices)
        intermediates: list[Tensor] = []
        for index, name in enumerate(self.STAGES[: last + 1] if stop_early else self.STAGES):
            stage = getattr(self, name)
            x = self._run([stage], x) if index else stage(x)
            if index in requested:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that `forward_intermediates(indices=indices)` does not need; return the requested indices."""
        requested, last = feature_take_indices(len(self.STAGES), indices)
        for name in self.STAGES[last + 1 :]:
            setattr(self, name, nn.Identity())
        # A classifier fits the channels of the last stage, so it is removed with that stage.
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or last + 1 < len(self.STAGES):
            self.reset_classifier(0, "")
        return list(requested)

    def _run(self, stages: Sequence[nn.Module], x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint_seq(list(stages), x)
        for stage in stages:
            x = stage(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's output."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, classes] for the last stage's output; with `pre_logits` the input of the classifier."""
        x = self.global_pool(x)
        if self.drop_rate > 0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        if pre_logits or self.num_classes <= 0:
            return x
        logits = self.fc(x)
        return logits if self.logit_scale == 1 else logits * self.logit_scale

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
