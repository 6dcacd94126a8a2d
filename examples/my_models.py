"""Register your own model with timm: `harness run --plugin my_models --model shape_net`.

A plug-in is any importable Python module. The models that it registers can be trained, searched, explained and exported
like every other timm model. `harness` passes `num_classes` and `in_chans`; the other arguments come from `--model-args`.
"""

from itertools import pairwise
from typing import Any

from timm.models import register_model
from torch import Tensor, nn


class ShapeNet(nn.Module):
    """Three convolutions, each halving the image size, and a linear head.

    Args:
        width: channels of the first convolution; the others have twice and four times as many.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, width: int = 8) -> None:
        super().__init__()
        self.num_classes = num_classes
        sizes = (in_chans, width, 2 * width, 4 * width)
        self.stages = nn.Sequential(*(_stage(inputs, outputs) for inputs, outputs in pairwise(sizes)))
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, classes] of float images [B, C, H, W]."""
        return self.head(self.stages(images).mean((2, 3)))


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    """Return a strided convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


@register_model
def shape_net(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a `ShapeNet`; `--model-args width=16` makes it wider."""
    if pretrained:
        raise ValueError("shape_net has no pretrained weights; omit --pretrained")
    names = ("num_classes", "in_chans", "width")
    return ShapeNet(**{name: settings[name] for name in names if settings.get(name) is not None})
