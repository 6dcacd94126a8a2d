"""The recorded update against the plain one, on a CPU, where all but the recording itself is the same code.

On a GPU `benchmarks/gpu.py` holds the recording against the plain update.
"""

import copy

import pytest
import torch

from harness.config.settings import Config
from harness.training.cuda_graph import WARM, GraphedStep
from harness.training.learner import make_learner
from harness.training.loop import TrainerState, fit
from harness.utils.errors import UsageError
from tests.training.test_loop import CPU, Batches, assert_equal, learner, net, schedule, weights


def graphed(plain):
    plain.graph = GraphedStep(plain._change, plain.optimizer, plain.device)
    return plain


def seen(records):
    return [(record.values["train/loss"], record.values["train/acc"], record.steps.lines) for record in records]


@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 8, 5), (5, 8, 8)])
@pytest.mark.parametrize("settings", [{}, {"clip_grad": 0.5, "grad_accumulation": 2}, {"ema": 0.9, "nesterov": False}])
def test_a_recorded_update_is_to_the_bit_the_plain_one_for_every_batch_shape(sizes, settings):
    model = net()
    plain, recorded = learner(model, **settings), graphed(learner(copy.deepcopy(model), **settings))
    one = list(fit(plain, Batches(sizes), schedule(3), epochs=3))
    other = list(fit(recorded, Batches(sizes), schedule(3), epochs=3))
    assert seen(one) == seen(other)
    assert_equal(weights(plain.eval_model), weights(recorded.eval_model))
    assert recorded.graph._replay is not None  # it did come to that


def test_the_rates_that_the_graph_used_are_those_of_the_schedule():
    recorded = graphed(learner(net(dropout=0.0)))
    used = []
    step = recorded.optimizer.step
    recorded.optimizer.step = lambda: (used.append(float(recorded.optimizer.param_groups[0]["lr"])), step())
    list(fit(recorded, Batches((8, 8, 8)), schedule(3), epochs=3))
    assert used == pytest.approx([schedule(3).lr(step) for step in range(9)], rel=1e-6)
    assert all(isinstance(group["lr"], float) for group in recorded.optimizer.param_groups)


def test_a_run_resumed_with_recorded_updates_ends_in_the_same_bits():
    model = net()
    whole = graphed(learner(copy.deepcopy(model)))
    list(fit(whole, Batches((8, 8, 8)), schedule(4), epochs=4))
    first, progress = graphed(learner(copy.deepcopy(model))), TrainerState()
    records = fit(first, Batches((8, 8, 8)), schedule(4), epochs=4, progress=progress)
    next(records), next(records)
    state, kept = copy.deepcopy(first.state_dict()), copy.deepcopy(progress.state_dict())
    next(records)  # further than what was kept: loading must not leave anything of it in the buffers
    again = TrainerState()
    first.load_state_dict(state)
    again.load_state_dict(kept, CPU)
    assert first.graph._replay is None
    list(fit(first, Batches((8, 8, 8)), schedule(4), epochs=4, progress=again))
    assert_equal(weights(whole.model), weights(first.model))


def test_results_are_kept_when_the_buffers_are_used_again():
    recorded = graphed(learner(net(dropout=0.0)))
    batches = [batch for epoch in range(3) for batch in Batches((8, 8, 8)).epoch(epoch)]
    outcomes = [recorded.train_step(*batch, step, 0.05, 0.9) for step, batch in enumerate(batches)]
    assert len({outcome.loss.data_ptr() for outcome in outcomes[WARM:]}) == len(outcomes) - WARM
    assert len({float(outcome.loss) for outcome in outcomes}) == len(outcomes)


@pytest.mark.parametrize(
    "settings", [{}, {"compile": True}, {"auto_batch": True}, {"momentum_min": 0.8}, {"optimizer": "adamw"}]
)
def test_what_can_not_be_recorded_is_refused_in_one_line(settings):
    with pytest.raises(UsageError, match=r"cuda_graph=True, but .*; leave --cuda-graph out"):
        make_learner(Config(cuda_graph=True, **settings), net(), CPU, None)


def test_a_graph_of_a_gpu_equals_the_plain_update():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda")
    found = []
    for cuda_graph in (False, True):
        made = make_learner(Config(cuda_graph=cuda_graph, precision="fp32"), net(dropout=0.0), device, None)
        batches = [(i.to(device), k.to(device)) for epoch in range(3) for i, k in Batches((8, 8, 8)).epoch(epoch)]
        found.append([float(made.train_step(*batch, step, 0.05, 0.9).loss) for step, batch in enumerate(batches)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
