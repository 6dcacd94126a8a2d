"""Data sets, image folders, augmentation and loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from harness.data.augment import Augment as Augment
    from harness.data.augment import make_augment as make_augment
    from harness.data.dataset import Dataset as Dataset
    from harness.data.dataset import Split as Split
    from harness.data.dataset import in_memory as in_memory
    from harness.data.loaders import make_eval_loader as make_eval_loader
    from harness.data.loaders import make_loaders as make_loaders
    from harness.data.own_datasets import register_dataset as register_dataset
    from harness.data.own_transforms import register_transform as register_transform
    from harness.data.preprocess import Preprocess as Preprocess
    from harness.data.preprocess import make_preprocess as make_preprocess
    from harness.data.registry import load_dataset as load_dataset

_MODULES = {
    "Augment": "harness.data.augment",
    "Dataset": "harness.data.dataset",
    "Preprocess": "harness.data.preprocess",
    "Split": "harness.data.dataset",
    "in_memory": "harness.data.dataset",
    "load_dataset": "harness.data.registry",
    "make_augment": "harness.data.augment",
    "make_eval_loader": "harness.data.loaders",
    "make_loaders": "harness.data.loaders",
    "make_preprocess": "harness.data.preprocess",
    "register_dataset": "harness.data.own_datasets",
    "register_transform": "harness.data.own_transforms",
}
__all__ = [
    "Augment",
    "Dataset",
    "Preprocess",
    "Split",
    "in_memory",
    "load_dataset",
    "make_augment",
    "make_eval_loader",
    "make_loaders",
    "make_preprocess",
    "register_dataset",
    "register_transform",
]

__getattr__ = lazy_attributes(__name__, _MODULES)
