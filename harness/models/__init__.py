"""Models: the CIFAR ResNets in timm's registry, and any other timm model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from harness.models.cifar_resnet import CifarResNet as CifarResNet
    from harness.models.cifar_resnet import CustomResNet as CustomResNet
    from harness.models.cifar_resnet import custom_resnet as custom_resnet
    from harness.models.cifar_resnet import resnet18_cifar as resnet18_cifar
    from harness.models.factory import count_parameters as count_parameters
    from harness.models.factory import create_model as create_model
    from harness.models.factory import model_names as model_names

_MODULES = {
    "CifarResNet": "harness.models.cifar_resnet",
    "CustomResNet": "harness.models.cifar_resnet",
    "count_parameters": "harness.models.factory",
    "create_model": "harness.models.factory",
    "custom_resnet": "harness.models.cifar_resnet",
    "model_names": "harness.models.factory",
    "resnet18_cifar": "harness.models.cifar_resnet",
}
__all__ = [
    "CifarResNet",
    "CustomResNet",
    "count_parameters",
    "create_model",
    "custom_resnet",
    "model_names",
    "resnet18_cifar",
]

__getattr__ = lazy_attributes(__name__, _MODULES)
