"""Values that are NaN or infinite are found wherever a learner has tensors."""

import math

import pytest
import torch

from harness.training.ema import EMAModel
from harness.training.finite import first_not_finite, infinite_buffers
from tests.support.training import Batches, learner, net


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found_in_each_tensor_of_a_learner(value):
    one = learner(net(), momentum=0.9)
    one.ema = EMAModel(one.model, 0.9)
    one.train_step(*next(Batches().epoch(0)), 0, 0.01, 0.9)
    assert first_not_finite(one.state_dict()) == ""

    def tensors(state, path=""):
        if isinstance(state, torch.Tensor):
            return {path: state} if state.is_floating_point() else {}
        items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
        return {name: tensor for key, part in items for name, tensor in tensors(part, f"{path}.{key}").items()}

    state = one.state_dict()
    every = tensors(state)
    assert {name.split(".")[1] for name in every} == {"model", "optimizer", "ema"}
    for name, tensor in every.items():
        former = tensor.flatten()[-1].item()
        tensor.view(-1)[-1] = value
        assert first_not_finite(state) == name.removeprefix(".")
        tensor.view(-1)[-1] = former
    assert first_not_finite(state) == ""


def test_buffers_that_are_infinite_by_design_are_left_alone():
    model = net()
    model.register_buffer("mask", torch.full((2,), -math.inf))
    assert infinite_buffers(model) == {"mask"}
    assert first_not_finite({"model": model.state_dict()}, {"mask"}) == ""
    assert first_not_finite({"model": model.state_dict()}) == "model.mask"
