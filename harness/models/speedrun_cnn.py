"""A plain convolutional network that learns small images in about ten epochs, registered with timm: `speedrun_cnn`.

It follows the design of Keller Jordan's airbench94: a narrow first layer that whitens 2x2 patches, three groups of two
convolutions, and convolutions that start as the identity. See "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
https://arxiv.org/abs/2404.00498, sections 3.1 to 3.3.
"""

# No `from __future__ import annotations` here: TorchScript cannot read a traced graph whose annotations are strings.

from collections import OrderedDict
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.cifar_resnet import cifar_cfg

STAGES = ("stem", "layer1", "layer2", "layer3")
CONV_INITS = ("dirac", "default")
KERNEL = 2  # side of the patches that the first layer whitens, in pixels

# timm reads this name when a model is registered, so it must be defined before the entry point.
default_cfgs = generate_default_cfgs({"speedrun_cnn.untrained": cifar_cfg("stem.conv", pool_size=(3, 3))})


def scale_free_norm(channels: int, momentum: float, **factory: Any) -> nn.BatchNorm2d:
    """Return a batch normalisation with a trained bias, whose weight stays 1.

    The running statistics are averages over about 1 / `momentum` batches, few because training is short.
    """
    norm = nn.BatchNorm2d(channels, momentum=momentum, **factory)
    norm.weight.requires_grad_(False)
    return norm


def conv_group(channels_in: int, channels_out: int, momentum: float, **factory: Any) -> nn.Sequential:
    """Return convolution, max pooling that halves the sides, BN, GELU, convolution, BN, GELU; 3x3 without bias."""
    layers: list[tuple[str, nn.Module]] = []
    for number, channels in ((1, channels_in), (2, channels_out)):
        conv = nn.Conv2d(channels, channels_out, 3, padding=1, bias=False, **factory)
        layers.append((f"conv{number}", conv))
        if number == 1:
            layers.append(("pool", nn.MaxPool2d(2)))
        layers += [(f"bn{number}", scale_free_norm(channels_out, momentum, **factory)), (f"act{number}", nn.GELU())]
    return nn.Sequential(OrderedDict(layers))


class SpeedrunCNN(nn.Module):
    """A network of seven convolutions for images of 32 x 32 pixels; 1,972,792 parameters with ten classes.

    stem: a 2x2 convolution without padding, of 24 channels (two for each value of a 2x2 patch of RGB pixels), and GELU.
    layer1 to layer3: see `conv_group`. Then global max pooling and a fully connected layer without bias.

    Args:
        global_pool: timm's name of a pooling: max, avg, avgmax, catavgmax; empty (without classes): none.
        width: channels of layer1; layer2 and layer3 have four times as many.
        bn_momentum: weight of a batch in the running statistics, as in `nn.BatchNorm2d`.
        logit_scale: the logits are multiplied by this.
        conv_init: `dirac` starts every 3x3 convolution as the identity of its first channels.
        drop_rate: dropout before the classifier.

    Raises:
        ValueError: `width` below 1, or an unknown `conv_init`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "max",
        width: int = 64,
        bn_momentum: float = 0.4,
        logit_scale: float = 1 / 9,
        conv_init: str = "dirac",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"need a whole width >= 1, got width={width!r}")
        if conv_init not in CONV_INITS:
            raise ValueError(f"need conv_init in {', '.join(CONV_INITS)}, got conv_init={conv_init!r}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.logit_scale = float(logit_scale)
        self.conv_init = conv_init
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        patches = 2 * in_chans * KERNEL**2
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(in_chans, patches, KERNEL, **factory), act=nn.GELU()))
        self.layer1 = conv_group(patches, width, bn_momentum, **factory)
        self.layer2 = conv_group(width, 4 * width, bn_momentum, **factory)
        self.layer3 = conv_group(4 * width, 4 * width, bn_momentum, **factory)
        self.num_features = 4 * width
        channels = (patches, width, 4 * width, 4 * width)
        self.feature_info = [
            {"num_chs": count, "reduction": 2**depth, "module": name}
            for depth, (name, count) in enumerate(zip(STAGES, channels, strict=True))
        ]
        self._init_convolutions()
        self._set_head(global_pool, **factory)

    def _init_convolutions(self) -> None:
        """Start the 3x3 convolutions as the identity of their first channels, with random filters for the others."""
        if self.conv_init != "dirac":
            return
        stages = (self.layer1, self.layer2, self.layer3)
        for conv in (layer for stage in stages for layer in stage if isinstance(layer, nn.Conv2d)):
            # The identity of as many channels as both sides have; the other filters keep torch's initialisation.
            nn.init.dirac_(conv.weight.data[: min(conv.in_channels, conv.out_channels)])

    def _set_head(self, global_pool: str, **factory: Any) -> None:
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if self.num_classes > 0 and not global_pool:
            raise ValueError(f"{self.num_classes} classes need a pooling before the classifier; set global_pool")
        self.fc: nn.Module = nn.Identity()
        if self.num_classes > 0:
            self.fc = nn.Linear(self.head_hidden_size, self.num_classes, bias=False, **factory)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Reinitialise all weights and reset the BN statistics."""
        for module in self.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self._init_convolutions()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of parameter names, from input to output, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(?:conv|bn)(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the stages for the backward pass and recompute the rest."""
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
        self._set_head(pool, **get_device_dtype(self))
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
        """Return the outputs of some stages (stem, layer1, layer2, layer3), after the final output unless `intermediates_only`.

        Args:
            x: images [B, 3, H, W].
            indices: the last n stages when a number, those stages when a list, all when None.
            norm: has no effect: every stage ends normalised.
            stop_early: compute no stage after the last requested one.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"need output_fmt='NCHW', got {output_fmt!r}")
        requested, last = feature_take_indices(len(STAGES), indices)
        intermediates: list[Tensor] = []
        for index, name in enumerate(STAGES[: last + 1] if stop_early else STAGES):
            x = getattr(self, name)(x)
            if index in requested:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that `forward_intermediates(indices=indices)` does not need; return the requested indices."""
        requested, last = feature_take_indices(len(STAGES), indices)
        for name in STAGES[last + 1 :]:
            setattr(self, name, nn.Identity())
        # A classifier fits the channels of the last stage, so it is removed with that stage.
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or last + 1 < len(STAGES):
            self.reset_classifier(0, "")
        return list(requested)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's output [B, 4 width, h, w] for images [B, 3, H, W]; h is 3 for H = 32."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, classes] for the last stage's output; with `pre_logits` the input of the classifier."""
        x = self.global_pool(x)
        if self.drop_rate > 0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        if pre_logits or self.num_classes <= 0:
            return x
        return self.fc(x) * self.logit_scale

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model
def speedrun_cnn(pretrained: bool = False, **kwargs: Any) -> SpeedrunCNN:
    """Return a plain network of seven convolutions whose first layer whitens patches of 2x2 pixels."""
    feature_cfg = {"out_indices": (0, 1, 2, 3), **(kwargs.pop("feature_cfg", None) or {})}
    return build_model_with_cfg(SpeedrunCNN, "speedrun_cnn", pretrained, feature_cfg=feature_cfg, **kwargs)
