"""The loop against a loop written by hand, and a stopped run against one that was not."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness.config.settings import Config
from harness.training import checkpoint
from harness.training.learner import make_learner
from harness.training.loop import TrainerState, evaluate, fit
from harness.training.schedule import Schedule
from harness.utils.errors import CheckpointError, DivergedError

CPU = torch.device("cpu")


class Batches:
    """Training batches of random pictures: a function of the epoch."""

    def __init__(self, sizes=(8, 8, 5), seed=0):
        self.sizes, self.seed = sizes, seed
        self.steps, self.num_images = len(sizes), sum(sizes)

    def epoch(self, epoch, start=0):
        generator = torch.Generator().manual_seed(100 * self.seed + epoch)
        for index, size in enumerate(self.sizes):
            images = torch.randn(size, 3, 8, 8, generator=generator)
            labels = torch.randint(0, 3, (size,), generator=generator)
            if index >= start:
                yield images, labels


class EvalBatches(list):
    @property
    def num_images(self):
        return sum(len(labels) for _, labels in self)


def net(seed=0, dropout=0.2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(216, 3)
    )


def learner(model, **settings):
    config = Config(**{"precision": "fp32", "channels_last": False, **settings})
    return make_learner(config, model, CPU, None)


def held_out(sizes=(7, 7, 3)):
    generator = torch.Generator().manual_seed(9)
    return EvalBatches(
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in sizes
    )


def schedule(epochs, steps=3):
    return Schedule("one_cycle", epochs * steps, 0.01, 0.1, peak=steps)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_training_is_what_a_loop_written_by_hand_does():
    model = net(dropout=0.0)
    twin = copy.deepcopy(model)
    records = list(fit(learner(model, weight_decay=5e-4), Batches(), schedule(2), epochs=2))

    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4)
    step, losses, rates = 0, [], []
    for epoch in range(2):
        for images, labels in Batches().epoch(epoch):
            rates.append(float(np.interp(step, [0, 3, 6], [0.01, 0.1, 0.01])))
            optimizer.param_groups[0]["lr"] = rates[-1]
            optimizer.zero_grad()
            loss = F.cross_entropy(twin(images), labels)
            loss.backward()
            optimizer.step()
            losses.append((loss.item(), len(labels)))
            step += 1
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    for epoch, record in enumerate(records):
        mine = losses[3 * epoch : 3 * epoch + 3]
        assert record.values["train/loss"] == pytest.approx(
            np.average([a for a, _ in mine], weights=[b for _, b in mine]), rel=1e-5
        )
        assert list(record.steps.x) == [3 * epoch + 1, 3 * epoch + 2, 3 * epoch + 3]
        assert record.steps.lines["lr"] == pytest.approx(rates[3 * epoch : 3 * epoch + 3])
        assert record.values["lr"] == pytest.approx(rates[3 * epoch + 2])
        assert (record.step, record.epoch) == (3 * (epoch + 1), epoch + 1)


@pytest.mark.parametrize(
    "settings", [{}, {"label_smoothing": 0.1}, {"clip_grad": 0.01}, {"optimizer": "adamw"}, {"ema": 0.9}]
)
def test_a_batch_computed_in_parts_gives_the_same_update(settings):
    models = []
    for parts in (1, 3):
        model = net(dropout=0.0)
        model[1] = nn.Identity()  # BatchNorm sees the parts one by one, as everywhere
        list(fit(learner(model, grad_accumulation=parts, **settings), Batches(), schedule(2), epochs=2))
        models.append(weights(model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_norm_of_the_step():
    model = net()
    before = weights(model)
    one = learner(model, clip_grad=1e-3, momentum=0.0, nesterov=False, weight_decay=0.0)
    images, labels = next(Batches().epoch(0))
    one.train_step(images, labels, 0, 1.0, 0.0)
    parameters = dict(model.named_parameters())
    moved = math.sqrt(sum(float((parameters[name].detach() - before[name]).square().sum()) for name in parameters))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_the_moving_average_is_the_recursion_over_the_weights():
    model = net()
    one = learner(model, ema=0.8)
    expected = None
    for step, (images, labels) in enumerate(Batches().epoch(0)):
        one.train_step(images, labels, step, 0.1, 0.9)
        now = weights(model)["0.weight"]
        expected = now if expected is None else 0.8 * expected + 0.2 * now
    torch.testing.assert_close(one.eval_model.state_dict()["0.weight"], expected)
    assert one.eval_model is not model


def test_evaluation_is_exact_for_a_ragged_last_batch_and_leaves_the_model_as_it_was():
    model = net()
    model[1].eval()
    model.train(True)
    model[1].eval()
    batches = held_out()
    before = weights(model)
    scores = evaluate(model, batches, CPU)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = copy.deepcopy(model).eval()(images)
    assert scores["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert scores["acc"] == (logits.argmax(1) == labels).double().mean().item()
    assert_equal(before, weights(model))
    assert model.training
    assert not model[1].training


def test_nothing_leaks_out_of_the_generator():
    for _ in fit(learner(net()), Batches(), schedule(2), epochs=2, evaluations={"val": held_out()}):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "settings", [{}, {"ema": 0.9}, {"optimizer": "adamw"}, {"clip_grad": 0.5, "grad_accumulation": 2}]
)
@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(stop, settings, tmp_path):
    def train(model, progress, on_step=None):
        one = learner(model, **settings)
        if progress is None:
            progress = TrainerState()
            state = checkpoint.load_checkpoint(checkpoint.newest_checkpoint(tmp_path))
            one.load_state_dict(state["learner"])
            progress.load_state_dict(state["progress"], CPU)
        records = []
        try:
            for record in fit(
                one,
                Batches(),
                schedule(3),
                epochs=3,
                evaluations={"val": held_out()},
                progress=progress,
                on_step=on_step,
            ):
                records.append(record)
        except Stop:
            checkpoint.save_checkpoint(
                tmp_path, {"learner": one.state_dict(), "progress": progress.state_dict()}, {"step": progress.step}
            )
        return weights(one.eval_model), records

    whole, expected = train(net(), TrainerState())

    def stopper(tick):
        if tick.step == stop:
            raise Stop

    train(net(), TrainerState(), stopper)
    torch.manual_seed(12345)  # whatever else has drawn in between
    resumed, records = train(net(seed=7), None)
    assert_equal(whole, resumed)
    wall = {"time/epoch_s", "time/train_s", "time/eval_s", "throughput/images_per_s", "memory/peak_gib"}
    for mine, theirs in zip(reversed(records), reversed(expected), strict=False):
        assert {k: v for k, v in mine.values.items() if k not in wall} == {
            k: v for k, v in theirs.values.items() if k not in wall
        }
        assert mine.steps == theirs.steps


def test_a_loss_that_is_not_finite_stops_the_run_before_it_touches_the_weights():
    model = net()

    class Poisoned(Batches):
        def epoch(self, epoch, start=0):
            for index, (images, labels) in enumerate(super().epoch(epoch, start)):
                yield (images * math.nan if (epoch, index) == (1, 1) else images), labels

    progress = TrainerState()
    with pytest.raises(DivergedError, match=r"step 5, learning rate 0\.0"):
        list(fit(learner(model), Poisoned(), schedule(3), epochs=3, progress=progress))
    assert progress.step == 4
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_reader_that_breaks_off_ends_the_training():
    model, seen = net(), []
    for record in fit(learner(model), Batches(), schedule(5), epochs=5):
        seen.append(record.epoch)
        if record.epoch == 2:
            break
    assert seen == [1, 2]


def test_the_plateau_looks_at_the_validation_loss_only():
    plateau = Schedule("plateau", 100, 0.0, 0.1, patience=0, factor=0.5)
    frozen = learner(net(), weight_decay=0.0)
    for group in frozen.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(False)
    model = net(dropout=0.0)
    one = learner(model)
    batches = held_out()
    records = list(fit(one, Batches(), plateau, epochs=6, evaluations={"val": batches}))
    losses = [record.values["val/loss"] for record in records]
    for index, record in enumerate(records):
        assert record.values["lr"] == pytest.approx(plateau.lr(0, losses[:index]))


def saved(folder, step):
    one = learner(net())
    checkpoint.save_checkpoint(
        folder, {"learner": one.state_dict(), "progress": TrainerState(step=step).state_dict()}, {"step": step}
    )


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    saved(tmp_path, 1)
    saved(tmp_path, 2)
    assert checkpoint.checkpoint_info(checkpoint.newest_checkpoint(tmp_path))["step"] == 2
    content = bytearray((tmp_path / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "last.pt").write_bytes(content)
    assert checkpoint.checkpoint_info(checkpoint.newest_checkpoint(tmp_path))["step"] == 1
    assert "last.pt is damaged" in caplog.text
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        checkpoint.newest_checkpoint(tmp_path)


def test_a_save_cut_short_between_any_two_of_its_renames_still_leaves_the_newest(tmp_path):
    saved(tmp_path, 1)
    saved(tmp_path, 2)
    (tmp_path / "last.pt").rename(tmp_path / "incoming.pt")
    assert checkpoint.newest_checkpoint(tmp_path).name == "incoming.pt"
    (tmp_path / "previous.pt").unlink()
    assert checkpoint.newest_checkpoint(tmp_path).name == "incoming.pt"


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_that_carries_code_is_refused_and_the_code_does_not_run(tmp_path):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"learner": Canary(canary), "progress": {}}, path)
    with pytest.raises(CheckpointError, match="refused"):
        checkpoint.load_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 not a zip"])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load_checkpoint(path)


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    model = net()
    other = {**weights(model), "5.weight": torch.zeros(4, 216)}
    with pytest.raises(CheckpointError, match=r"5\.weight \[4, 216\] instead of \[3, 216\]"):
        checkpoint.load_weights_strict(model, other, tmp_path / "x")
