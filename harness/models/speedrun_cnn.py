"""A plain convolutional network that learns small images in about ten epochs, registered with timm: `speedrun_cnn`.

It follows the design of Keller Jordan's airbench94: a narrow first layer that whitens 2x2 patches, three groups of two
convolutions, and convolutions that start as the identity. See "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
https://arxiv.org/abs/2404.00498, sections 3.1 to 3.3.
"""

# No `from __future__ import annotations` here: TorchScript cannot read a traced graph whose annotations are strings.

from collections import OrderedDict
from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from harness.models.cifar_resnet import cifar_cfg
from harness.models.staged import StagedNet

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


class SpeedrunCNN(StagedNet):
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

    STAGES = ("stem", "layer1", "layer2", "layer3")

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
        self.head_bias = False

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
            for depth, (name, count) in enumerate(zip(self.STAGES, channels, strict=True))
        ]
        self._init_convolutions()
        self.set_head(global_pool, **factory)

    def _init_convolutions(self) -> None:
        """Start the 3x3 convolutions as the identity of their first channels, with random filters for the others."""
        if self.conv_init != "dirac":
            return
        stages = (self.layer1, self.layer2, self.layer3)
        for conv in (layer for stage in stages for layer in stage if isinstance(layer, nn.Conv2d)):
            # The identity of as many channels as both sides have; the other filters keep torch's initialisation.
            nn.init.dirac_(conv.weight.data[: min(conv.in_channels, conv.out_channels)])

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

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's output [B, 4 width, h, w] for images [B, channels, H, W]; h is 3 for H = 32."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x)
        return self.layer3(self.layer2(self.layer1(x)))


@register_model
def speedrun_cnn(pretrained: bool = False, **kwargs: Any) -> SpeedrunCNN:
    """Return a plain network of seven convolutions whose first layer whitens patches of 2x2 pixels."""
    feature_cfg = {"out_indices": (0, 1, 2, 3), **(kwargs.pop("feature_cfg", None) or {})}
    return build_model_with_cfg(SpeedrunCNN, "speedrun_cnn", pretrained, feature_cfg=feature_cfg, **kwargs)
