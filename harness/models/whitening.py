"""Initialise a model's first convolution so that it whitens the patches of the training images.

Source: Tysam Balsam, https://github.com/tysam-code/hlb-CIFAR10, and Keller Jordan, https://arxiv.org/abs/2404.00498,
section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.utils.errors import UsageError

CHUNK = 256  # images whose patches are in memory at once
REGULARISATION = 5e-4  # added to the eigenvalues: patches hardly vary along the last eigenvectors, which would be noise


def first_convolution(model: nn.Module, channels: int = 3) -> nn.Conv2d:
    """Return the model's first convolution, in the order of its modules.

    Args:
        channels: of the images.

    Raises:
        UsageError: the first layer with weights is not a convolution of the images.
    """
    layer = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if layer is None or layer.in_channels != channels or layer.groups != 1:
        raise UsageError(
            f"whitening=True needs a model whose first layer is a convolution of images of {channels} channel{'s' * (channels != 1)}; set --whitening False"
        )
    return layer


def whitening_filters(images: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return filters whose outputs on the patches of the images are uncorrelated and have variance 1 (about).

    Args:
        images: float [N, C, H, W], normalised.
        kernel_size: height and width of a patch in pixels.

    Returns:
        float32 [C * height * width, C, height, width], from the direction of the largest variance to the smallest.
    """
    products, count = torch.zeros((), dtype=torch.float64), 0
    for chunk in images.float().split(CHUNK):
        patches = F.unfold(chunk, kernel_size).transpose(0, 1).flatten(1)  # [D, patches]
        products = products + (patches @ patches.T).cpu().double()
        count += patches.shape[1]
    # [D, D], around 0, because the images are normalised; the eigenvalues rise.
    eigenvalues, eigenvectors = torch.linalg.eigh(products / count)
    filters = eigenvectors.T / (eigenvalues[:, None] + REGULARISATION).sqrt()
    return filters.flip(0).reshape(-1, images.shape[1], *kernel_size).float()


@torch.no_grad()
def whiten_first_layer(model: nn.Module, images: Tensor) -> None:
    """Give the first convolution whitening filters and their negatives, which training does not change.

    A layer of F filters gets the F/2 filters of the largest variance (at most one for each value of a patch), and their
    negatives; further filters keep their initialisation, and the bias is trained.

    Args:
        images: float [N, C, H, W], training images, normalised.

    Raises:
        UsageError: the model's first layer does not fit.
    """
    layer = first_convolution(model, images.shape[1])
    height, width = layer.kernel_size
    filters = whitening_filters(images, (height, width))[: layer.out_channels // 2].to(layer.weight)
    count = len(filters)
    layer.weight[:count] = filters
    layer.weight[count : 2 * count] = -filters
    if layer.bias is not None:
        layer.bias.zero_()
    layer.weight.requires_grad_(False)
