"""Seeds are functions of all that they are made of: each argument, changed alone, changes what is drawn."""

import ast
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import harness
from harness.config.settings import Config
from harness.data import augment
from harness.data.augment import Erasing
from harness.data.balance import balanced_order
from harness.data.dataset import hold_out, in_memory
from harness.data.device_loader import epoch_order
from harness.data.erasing import TimmCutout, TimmErasing
from harness.data.image_transforms import TimmTransform
from harness.data.mixup import make_mixup
from harness.data.preprocess import Preprocess
from harness.data.worker_loader import AugmentedDataset
from harness.evaluation.selection import choose_images
from harness.lr_finder.range_test import LRRange, curve_of_seed
from harness.runs.run import restore_state
from harness.training.distributed import SingleProcess
from harness.training.loop import TrainerState, fit
from harness.training.optimizer import make_optimizer, seed_optimizer
from harness.training.schedule import Schedule
from harness.utils.seeding import seed_for
from tests.support.predictions import random_predictions
from tests.support.training import Batches, learner, net


@given(st.lists(st.one_of(st.integers(0, 20), st.text("ab1", max_size=3)), min_size=1, max_size=4))
def test_keys_of_the_same_letters_but_other_parts_have_other_seeds(parts):
    joined = "".join(map(str, parts))
    seeds = {seed_for(0, *parts), seed_for(0, joined), seed_for(0, *joined)}
    keys = {tuple(map(str, parts)), (joined,), tuple(joined)}
    assert len(seeds) == len(keys)
    assert seed_for(1, *parts) != seed_for(0, *parts) and 0 <= min(seeds) <= max(seeds) < 2**63


def test_seeds_are_those_of_earlier_versions_on_every_machine():
    assert seed_for(0, "order", 0) == 5724104768301139219
    assert seed_for(7, "augment", 3) == 3706586058026386699


class FirstEpochs(Batches):
    """The same batch in every epoch, so that only dropout makes a difference."""

    def epoch(self, epoch, start=0):
        return super().epoch(0, start)


def dropout_in_training(seed, epoch, rank):
    """Return the losses of an epoch at a learning rate of zero, of a model whose weights stay as they are."""
    one = learner(net(dropout=0.5), weight_decay=0.0)
    one.processes = process(rank)
    state = TrainerState(history=[{}] * epoch)
    constant = Schedule("constant", 9, 0.0, 0.0)
    (record,) = fit(one, FirstEpochs(), constant, epochs=epoch + 1, seed=seed, state=state)
    return record.steps.lines["train/step_loss"]


def process(rank):
    one = SingleProcess()
    one.rank = rank
    return one


def dropout_in_a_range_test(seed, epoch):
    lr_range = LRRange(1e-30, 1e-29, 10)
    curve = curve_of_seed(
        lambda seed: learner(net(dropout=0.5), weight_decay=0.0), lambda seed: FirstEpochs(), lr_range,
        seed=seed, momentum=0.0, uniform_loss=1.1,
    )  # fmt: skip
    return curve.losses[3 * epoch : 3 * epoch + 3].tolist()


def parameters_of_augmentation(seed, epoch):
    drawn = augment.draw_parameters(augment.Augment("pad", 4, "constant", True, 8), 32, 50, seed, epoch)
    return [values.tolist() for values in vars(drawn).values()]


def pixels_of_a_worker(seed, epoch, index, repetition):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    split = in_memory("train", np.broadcast_to(picture, (2, 32, 32, 3)), np.zeros(2, int), ["0", "1"])
    preprocess = Preprocess(32, (0.5,) * 3, (0.2,) * 3, 1.0, "bicubic")
    transform = TimmTransform(augment.Augment("pad", 4, "constant", True, 0), preprocess)
    return AugmentedDataset(split.source, transform, seed)[epoch, index, repetition][0].tolist()


def cutouts_of_a_batch(seed, epoch, batch):
    cutout = TimmCutout(8, 32, seed, torch.device("cpu"))
    cutout.start(epoch, batch)
    return cutout(torch.ones(4, 3, 32, 32)).tolist()


def erased_images(seed, epoch, batch):
    erasing = TimmErasing(Erasing(0.9, "pixel", 3, (0.02, 0.3)), seed, torch.device("cpu"))
    erasing.start(epoch, batch)
    return erasing(torch.ones(4, 3, 16, 16)).tolist()


def mixed_images(seed, step):
    images = torch.arange(8.0)[:, None, None, None].expand(-1, 3, 4, 4)
    return make_mixup(Config(seed=seed, mixup=0.8), 4)(images, torch.arange(8) % 4, step)[0].tolist()


def signs_of_adahessian(step):
    """Return what timm's second-order optimizer draws in an update, from a generator of its own."""
    optimizer = make_optimizer(Config(optimizer="adahessian"), net())
    seed_optimizer(optimizer, step)
    return torch.randint(0, 2, (64,), generator=optimizer.generator).tolist()


def gallery(seed, wrong):
    predictions = random_predictions()
    chosen = choose_images(predictions, wrong=bool(wrong), rule="random", count=20, seed=seed)
    positions = np.flatnonzero(predictions.correct != bool(wrong))
    return np.searchsorted(positions, chosen).tolist()


def held_out(name):
    split = in_memory("train", np.zeros((200, 2, 2, 3), np.uint8), np.arange(200) % 2, list(map(str, range(200))))
    return list(hold_out(split, 0.1, ["val", "test"][name], "val_fraction")[1].ids)


def resumed(seed, step, rank):
    """Return what a process other than the main one draws after a resume."""
    one = learner(net())
    one.processes = process(1 + rank)
    saved = TrainerState(step=step)
    components = type("Components", (), {"config": Config(seed=seed), "learner": one})
    restore_state(components, {"learner": one.state_dict(), "progress": saved.state_dict()})
    return torch.rand(4).tolist()


# What is drawn for each purpose, as a function of small numbers.
DRAWS = {
    "order": lambda seed, epoch: epoch_order(50, seed, epoch).tolist(),
    "balanced order": lambda seed, epoch: balanced_order(np.arange(50) % 3, seed, epoch).tolist(),
    "augment": parameters_of_augmentation,
    "augment an image": pixels_of_a_worker,
    "flip": lambda seed, epoch: augment.alternating_flips(50, seed, epoch).tolist(),
    "cutout": cutouts_of_a_batch,
    "erase": erased_images,
    "mix": mixed_images,
    "second-order optimizer": signs_of_adahessian,
    "epoch": dropout_in_training,
    "epoch of a range test": dropout_in_a_range_test,
    "gallery": gallery,
    "hold out": held_out,
    "resumed": resumed,
}


@pytest.mark.parametrize("purpose", DRAWS)
def test_each_argument_changed_alone_changes_the_draw_and_the_same_ones_repeat_it(purpose):
    draw = DRAWS[purpose]
    names = draw.__code__.co_varnames[: draw.__code__.co_argcount]
    base = dict.fromkeys(names, 0)
    first = draw(**base)
    random.random(), np.random.random(), torch.rand(3)  # other users of the global generators
    assert draw(**base) == first
    for name in names:
        assert draw(**{**base, name: 1}) != first, name


def test_every_purpose_of_a_seed_is_in_the_table_above():
    """The purposes that the code names; that of a sweep's sampler is tested with the search."""
    purposes = set()
    for path in Path(harness.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "seed_for":
                purpose = node.args[1]
                purposes.add(purpose.value if isinstance(purpose, ast.Constant) else "hold out")
    assert purposes - {"sweep"} == set(DRAWS) - {"augment an image", "epoch of a range test", "second-order optimizer"}
