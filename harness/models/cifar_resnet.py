"""Two residual networks for small images, registered with timm: `custom_resnet` and `resnet18_cifar`.

Importing this module registers them, so that `timm.create_model("custom_resnet")` works. Both support all that timm
asks of a model: features, intermediate outputs, another classifier, gradient checkpointing, TorchScript, FX, meta device.
"""

# No `from __future__ import annotations` here: TorchScript cannot read a traced graph whose annotations are strings.

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from harness.models.staged import StagedNet

ORDERS = ("conv-pool-bn-relu", "conv-bn-relu-pool")
HEAD_INITS = ("default", "zero")
PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]


def cifar_cfg(first_conv: str, **more: Any) -> dict[str, Any]:
    """Return timm's pretrained configuration of a model without weights, for images of 32 x 32 pixels.

    Args:
        first_conv: name of the first convolution.
        more: entries that differ.
    """
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        # Mean and standard deviation over all pixels of CIFAR-10's training images, 0..1 scale.
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": first_conv,
        "classifier": "fc",
        **more,
    }


# timm reads this name when a model is registered, so it must be defined before the entry points.
default_cfgs = generate_default_cfgs(
    {"custom_resnet.untrained": cifar_cfg("prep.conv"), "resnet18_cifar.untrained": cifar_cfg("conv1")}
)


def conv_block(
    channels_in: int, channels_out: int, *, order: str = "", padding_mode: PaddingMode = "zeros", **factory: Any
) -> nn.Sequential:
    """Return a bias-free 3x3 convolution, BN and ReLU; with an `order`, also a max pooling that halves the sides.

    The layers have the same names in both orders, so weights of one fit the other.
    """
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False, padding_mode=padding_mode, **factory),
        "bn": nn.BatchNorm2d(channels_out, **factory),
        "relu": nn.ReLU(inplace=True),
        "pool": nn.MaxPool2d(2),
    }
    return nn.Sequential(OrderedDict((name, layers[name]) for name in (order or "conv-bn-relu").split("-")))


class Residual(nn.Module):
    """x + R(x) with R two convolution blocks; the sum is the output (no ReLU after it)."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__()
        self.block1 = conv_block(channels, channels, **kwargs)
        self.block2 = conv_block(channels, channels, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(self.block1(x))


class CustomResNet(StagedNet):
    """The nine-layer residual network of the one-cycle CIFAR-10 exercise; 6,573,130 parameters by default.

    prep: conv BN ReLU. layer1: conv pool BN ReLU, plus a residual block. layer2: conv pool BN ReLU. layer3: as
    layer1. Then global max pooling (MaxPool 4 at 32x32) and a fully connected layer. It returns logits; the softmax
    belongs to the loss.

    Args:
        global_pool: timm's name of a pooling: max, avg, avgmax, catavgmax; empty (without classes): none.
        width: channels of the first convolution; the stages have 1, 2, 4 and 8 times as many.
        order: position of the pooling in a block; `conv-bn-relu-pool` is David Page's DAWNBench order.
        padding_mode: padding of the convolutions, as in `nn.Conv2d`.
        logit_scale: the logits are multiplied by this (Page: 0.125, with `head_bias=False`).
        head_init: `zero` initialises weights and bias of the classifier to 0, so that the first loss is ln(classes).
        head_init_scale: the initial weights and bias of the classifier are multiplied by this.
        drop_rate: dropout before the classifier.

    Raises:
        ValueError: `width` below 1, or an unknown `order` or `head_init`.

    Source: David Page, "How to Train Your ResNet", https://github.com/davidcpage/cifar10-fast.
    """

    STAGES = ("prep", "layer1", "layer2", "layer3")

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "max",
        width: int = 64,
        order: str = ORDERS[0],
        padding_mode: PaddingMode = "zeros",
        logit_scale: float = 1.0,
        head_bias: bool = True,
        head_init: str = "default",
        head_init_scale: float = 1.0,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(width, order, head_init)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.logit_scale = float(logit_scale)
        self.head_bias = head_bias
        self.head_init = head_init
        self.head_init_scale = float(head_init_scale)
        self.drop_rate = drop_rate

        same: dict[str, Any] = {"padding_mode": padding_mode, "device": device, "dtype": dtype}
        down = {"order": order, **same}
        self.prep = conv_block(in_chans, width, **same)
        self.layer1 = _stage(conv_block(width, 2 * width, **down), Residual(2 * width, **same))
        self.layer2 = _stage(conv_block(2 * width, 4 * width, **down))
        self.layer3 = _stage(conv_block(4 * width, 8 * width, **down), Residual(8 * width, **same))
        self.num_features = 8 * width
        self.feature_info = [
            {"num_chs": width * 2**depth, "reduction": 2**depth, "module": name}
            for depth, name in enumerate(self.STAGES)
        ]
        self.set_head(global_pool, device=device, dtype=dtype)

    def init_head(self) -> None:
        """Scale the initial weights and bias of the classifier."""
        scale = 0.0 if self.head_init == "zero" else self.head_init_scale
        if scale != 1:
            with torch.no_grad():
                for parameter in self.fc.parameters():
                    parameter.mul_(scale)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Reinitialise all weights (torch's own initialisation) and reset the BN statistics."""
        for module in self.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self.init_head()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of parameter names, from input to output, for layer-wise learning rates."""
        if coarse:
            return {"stem": r"^prep", "blocks": r"^layer(\d+)"}
        # The number after a pattern orders the layers of a stage.
        return {"stem": r"^prep", "blocks": [(r"^layer(\d+)\.down", (0,)), (r"^layer(\d+)\.residual", (1,))]}

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's output [B, 8 width, H / 8, W / 8] for images [B, channels, H, W]."""
        x = self.prep(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x)
        return self.layer3(self.layer2(self.layer1(x)))


def _check(width: int, order: str, head_init: str) -> None:
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"need a whole width >= 1, got width={width!r}")
    if order not in ORDERS:
        raise ValueError(f"need order in {', '.join(ORDERS)}, got order={order!r}")
    if head_init not in HEAD_INITS:
        raise ValueError(f"need head_init in {', '.join(HEAD_INITS)}, got head_init={head_init!r}")


def _stage(down: nn.Module, residual: nn.Module | None = None) -> nn.Sequential:
    layers = [("down", down)] if residual is None else [("down", down), ("residual", residual)]
    return nn.Sequential(OrderedDict(layers))


class CifarResNet(ResNet):
    """timm's ResNet for small images: a 3x3 convolution replaces the 7x7 stride-2 stem and its max pooling.

    Args:
        global_pool: timm's name of a pooling: avg, max, avgmax, catavgmax.
        channels: of the four stages.
        drop_rate: dropout before the classifier. drop_path_rate: stochastic depth.
        zero_init_last: start each block as the identity (its last BN weight is 0).
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: tuple[int, ...],
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        channels: Sequence[int] = (64, 128, 256, 512),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            block,
            layers,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            channels=tuple(channels),
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            zero_init_last=zero_init_last,
            device=device,
            dtype=dtype,
        )
        self.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False, device=device, dtype=dtype)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's other layers
        self.maxpool = nn.Identity()
        for depth, info in enumerate(self.feature_info):
            info["reduction"] = 2 ** max(depth - 1, 0)  # the stem and layer1 keep the image's size


def _build(cls: type[nn.Module], name: str, levels: int, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    # A caller may pass its own feature_cfg, which would collide with a literal beside **kwargs.
    feature_cfg = {"out_indices": tuple(range(levels)), **(kwargs.pop("feature_cfg", None) or {})}
    return build_model_with_cfg(cls, name, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def custom_resnet(pretrained: bool = False, **kwargs: Any) -> CustomResNet:
    """Return a network of conv-pool-BN-ReLU stages of 64 to 512 channels, two residual blocks, global max pooling."""
    return _build(CustomResNet, "custom_resnet", 4, pretrained, kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Return a ResNet-18 with a 3x3 stem and no stem pooling; 11,173,962 parameters."""
    return _build(CifarResNet, "resnet18_cifar", 5, pretrained, {"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs})
