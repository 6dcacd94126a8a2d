"""The captured update against the plain one, on a CPU, where all but the capture itself is the same code.

On a GPU `benchmarks/gpu.py` compares the captured update with the plain one.
"""

import copy

import pytest
import torch

from harness.config.settings import Config
from harness.training.cuda_graph import WARMUP_STEPS, GraphedStep
from harness.training.learner import make_learner
from harness.training.loop import TrainerState, fit
from harness.utils.errors import ResourceError, UsageError
from tests.support.training import CPU, Batches, assert_equal, learner, net, schedule, weights


class RecordingStep(GraphedStep):
    """A graphed step that lists the sizes of the batches of its warm-up and its captures, and may fail to capture."""

    def __init__(self, *args, error=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.warmed_up, self.captured, self.error = [], [], error

    def warm_up(self, images, labels, targets):
        self.warmed_up.append(len(images))
        return super().warm_up(images, labels, targets)

    def capture(self, images, labels, targets):
        if self.error is not None:
            raise self.error
        self.captured.append(len(images))
        return super().capture(images, labels, targets)


def with_graph(plain, **options):
    plain.graph = RecordingStep(plain.update, plain.optimizer, plain.device, **options)
    return plain


def values_of(records):
    return [(record.values["train/loss"], record.values["train/acc"], record.steps.lines) for record in records]


@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 8, 5), (5, 8, 8)])
@pytest.mark.parametrize("settings", [{}, {"clip_grad": 0.5, "grad_accumulation": 2}, {"ema": 0.9, "nesterov": False}])
def test_a_captured_update_is_bit_identical_to_the_plain_one_for_every_batch_shape(sizes, settings):
    model = net()
    plain, captured = learner(model, **settings), with_graph(learner(copy.deepcopy(model), **settings))
    expected = list(fit(plain, Batches(sizes), schedule(3), epochs=3))
    records = list(fit(captured, Batches(sizes), schedule(3), epochs=3))
    assert values_of(records) == values_of(expected)
    assert_equal(weights(plain.eval_model), weights(captured.eval_model))
    assert captured.graph.captured == [8]


def test_the_graph_uses_the_learning_rates_of_the_schedule():
    captured = with_graph(learner(net(dropout=0.0)))
    lrs = []
    step = captured.optimizer.step
    captured.optimizer.step = lambda: (lrs.append(float(captured.optimizer.param_groups[0]["lr"])), step())
    list(fit(captured, Batches((8, 8, 8)), schedule(3), epochs=3))
    assert lrs == pytest.approx([schedule(3).lr(step) for step in range(9)], rel=1e-6)
    assert all(isinstance(group["lr"], float) for group in captured.optimizer.param_groups)


def test_a_run_resumed_with_captured_updates_ends_bit_identical():
    model = net()
    uninterrupted = with_graph(learner(copy.deepcopy(model)))
    list(fit(uninterrupted, Batches((8, 8, 8)), schedule(4), epochs=4))
    resumed, state = with_graph(learner(copy.deepcopy(model))), TrainerState()
    records = fit(resumed, Batches((8, 8, 8)), schedule(4), epochs=4, state=state)
    next(records), next(records)
    stored, stored_state = copy.deepcopy(resumed.state_dict()), copy.deepcopy(state.state_dict())
    next(records)  # an epoch after the checkpoint, of which loading must leave nothing in the buffers
    assert resumed.graph.captured == [8]
    resumed.load_state_dict(stored)
    restored = TrainerState()
    restored.load_state_dict(stored_state, CPU)
    list(fit(resumed, Batches((8, 8, 8)), schedule(4), epochs=4, state=restored))
    assert resumed.graph.captured == [8, 8]
    assert_equal(weights(uninterrupted.model), weights(resumed.model))


def test_results_stay_valid_when_the_buffers_are_used_again():
    captured = with_graph(learner(net(dropout=0.0)))
    batches = [batch for epoch in range(3) for batch in Batches((8, 8, 8)).epoch(epoch)]
    results = [captured.train_step(*batch, step, 0.05, 0.9) for step, batch in enumerate(batches)]
    assert len({result.loss.data_ptr() for result in results[WARMUP_STEPS:]}) == len(results) - WARMUP_STEPS
    assert len({float(result.loss) for result in results}) == len(results)


@pytest.mark.parametrize("sizes", [(8, 5), (5, 8), (5, 8, 5), (8, 8, 8, 5)])
def test_only_batches_of_the_full_size_warm_up_and_are_captured(sizes):
    captured = with_graph(learner(net()))
    list(fit(captured, Batches(sizes), schedule(6, len(sizes)), epochs=6))
    assert captured.graph.captured == [8]
    assert captured.graph.warmed_up[-WARMUP_STEPS:] == [8] * WARMUP_STEPS
    assert captured.graph.warmed_up.count(8) == WARMUP_STEPS


def test_training_continues_without_a_graph_where_the_step_cannot_be_captured_and_the_graph_is_optional(caplog):
    model, error = net(), ResourceError("it cannot be captured")
    plain = learner(model)
    optional = with_graph(learner(copy.deepcopy(model)), is_optional=True, error=error)
    expected = list(fit(plain, Batches((8, 8, 8)), schedule(3), epochs=3))
    records = list(fit(optional, Batches((8, 8, 8)), schedule(3), epochs=3))
    assert values_of(records) == values_of(expected)
    assert_equal(weights(plain.model), weights(optional.model))
    assert caplog.text.count("training without a CUDA graph: it cannot be captured") == 1
    with pytest.raises(ResourceError):
        list(fit(with_graph(learner(net()), error=error), Batches((8, 8, 8)), schedule(3), epochs=3))


def test_calls_of_other_threads_do_not_end_a_capture(monkeypatch):
    settings = {}

    class Graph:
        def __init__(self, graph, **given):
            settings.update(given)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    captured = with_graph(learner(net()))
    images, labels = next(Batches().epoch(0))
    captured.graph._stream = object()
    captured.graph.capture(images, labels, labels)
    assert settings["capture_error_mode"] == "thread_local"


@pytest.mark.parametrize(
    ("setting", "images_on_device", "has_graph"),
    [(None, True, True), (None, False, False), (False, True, False), (True, False, True)],
)
def test_a_graph_is_the_default_where_it_is_possible_and_the_images_are_on_the_device(
    setting, images_on_device, has_graph, monkeypatch
):
    monkeypatch.setattr("harness.training.learner.why_not_captured", lambda config, learner: None)
    made = make_learner(Config(cuda_graph=setting), net(), CPU, None, images_on_device=images_on_device)
    assert (made.graph is not None) == has_graph
    assert made.graph is None or made.graph.is_optional == (setting is None)


def test_without_cuda_there_is_no_graph_by_default():
    assert make_learner(Config(), net(), CPU, None, images_on_device=True).graph is None


@pytest.mark.parametrize(
    "settings", [{}, {"compile": True}, {"auto_batch": True}, {"momentum_min": 0.8}, {"optimizer": "adamw"}]
)
def test_an_update_that_cannot_be_captured_is_refused_in_one_line(settings):
    with pytest.raises(UsageError, match=r"cuda_graph=True, but .*; leave --cuda-graph out"):
        make_learner(Config(cuda_graph=True, **settings), net(), CPU, None)


def test_a_graph_on_a_gpu_equals_the_plain_update():
    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    device, losses = torch.device("cuda"), []
    for cuda_graph in (False, True):
        made = make_learner(Config(cuda_graph=cuda_graph, precision="fp32"), net(dropout=0.0), device, None)
        batches = [
            (images.to(device), labels.to(device))
            for epoch in range(3)
            for images, labels in Batches((8, 8, 8)).epoch(epoch)
        ]
        losses.append([float(made.train_step(*batch, step, 0.05, 0.9).loss) for step, batch in enumerate(batches)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
