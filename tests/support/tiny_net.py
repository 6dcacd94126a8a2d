"""A small convolutional network and images for it, for tests of class-activation maps."""

import torch
from torch import nn


class TinyNet(nn.Module):
    """Two convolutions, a global pool, a linear layer; ReLU in place, as in most networks; four classes."""

    def __init__(self, pool="max", channels=6):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.second = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.drop = nn.Dropout(0.3)
        self.pool = nn.AdaptiveMaxPool2d(1) if pool == "max" else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        return self.head(self.drop(self.pool(self.second(self.first(images))).flatten(1)))


def tiny_net(seed=0, **options):
    """Return the network with BN statistics unlike those of a new one."""
    torch.manual_seed(seed)
    model = TinyNet(**options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


def random_images(count=5, side=16, width=None, seed=1):
    return torch.randn(count, 3, side, width or side, generator=torch.Generator().manual_seed(seed))
