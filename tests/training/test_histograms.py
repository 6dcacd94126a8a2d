"""Histograms of gradients and parameters, on request."""

import io
import math

import numpy as np
import pytest
import torch

from harness.config.recipe import make_config
from harness.runs.progress import LineReporter
from harness.runs.run import run
from harness.tracking.journal import read_journal
from harness.tracking.records import Histogram
from harness.training.histograms import BINS, model_histograms, tensor_histogram


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_a_histogram_counts_as_numpy_does(scale):
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * scale
    histogram = tensor_histogram(values.reshape(50, 100))
    counts, edges = np.histogram(values.double().numpy(), bins=BINS)
    assert np.allclose(histogram.edges, edges, rtol=1e-12, atol=0)
    # A value on an edge may fall on either side of it, by rounding.
    assert sum(histogram.counts) == 5000 and np.abs(np.array(histogram.counts) - counts).sum() <= 4


def test_values_that_are_not_finite_are_left_out_and_equal_ones_have_a_range():
    assert sum(tensor_histogram(torch.tensor([1.0, math.nan, math.inf, 2.0])).counts) == 2
    assert tensor_histogram(torch.tensor([math.nan])) is None
    constant = tensor_histogram(torch.full((7,), 3.0))
    assert (constant.edges[0], constant.edges[-1], sum(constant.counts)) == (2.5, 3.5, 7)


def test_frozen_parameters_and_missing_gradients_have_none():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    model[1](torch.ones(1, 2)).sum().backward()
    assert set(model_histograms(model, gradients=True, parameters=True)) == {
        "parameters/0/bias", "parameters/1/weight", "parameters/1/bias", "gradients/1/weight", "gradients/1/bias"
    }  # fmt: skip


@pytest.mark.slow
def test_watching_changes_no_result_and_records_the_parameters_that_are_saved(tmp_path):
    settings = {
        "recipe": "digits", "model_args": "width=4", "threads": 1, "precision": "fp32", "batch_size": 128, "gallery": 0,
        "epochs": 2, "peak_epoch": 1, "report": False, "wandb": "disabled", "output": tmp_path,
    }  # fmt: skip
    plain, watched = (
        run(make_config({**settings, "watch": watch, "name": watch}), LineReporter(io.StringIO()))
        for watch in ("none", "all")
    )
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name]), name
    *_, last = (record for record in read_journal(watched.folder).records if record.kind == "epoch")
    trained = {name for name, parameter in watched.model.named_parameters() if parameter.requires_grad}
    for name, parameter in watched.model.named_parameters():
        key = name.replace(".", "/")
        assert last.values[f"parameters/{key}"] == tensor_histogram(parameter)
        assert sum(last.values[f"gradients/{key}"].counts) == parameter.numel()
    assert sum(isinstance(value, Histogram) for value in last.values.values()) == 2 * len(trained)
    assert not any(
        isinstance(value, Histogram)
        for record in read_journal(plain.folder).records
        for value in record.values.values()
    )
