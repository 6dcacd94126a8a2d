"""Frozen parameters and modules, and training the classifier first, against a reference PyTorch loop."""

import copy
import io
import signal

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from harness.config.settings import Config
from harness.models import factory
from harness.models.freezing import frozen_names, head_names
from harness.tracking.journal import read_journal
from harness.training.cuda_graph import GraphedStep
from harness.training.learner import make_learner
from harness.training.loop import TrainerState, evaluate_batches, fit
from harness.training.optimizer import set_lr_and_momentum
from harness.utils.errors import UsageError
from tests.support.forked import TINY
from tests.support.forked import harness as command
from tests.support.training import CPU, Batches, assert_equal, eval_batches, schedule, weights
from tests.training.test_distributed import SMOOTH, losses, ranks

BODY = ("conv1", "bn1")


class Net(nn.Module):
    """Two convolutions with batch normalisation, and a classifier that has timm's name."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False)
        self.fc = nn.Linear(64, 3)

    def forward(self, images):
        images = self.bn1(self.conv1(images)).relu()
        return self.fc(self.bn2(self.conv2(images)).relu().flatten(1))

    def get_classifier(self):
        return self.fc


def network():
    torch.manual_seed(0)
    return Net()


def made(model, **settings):
    config = Config(precision="fp32", channels_last=False, lr_max=0.1, lr_min=0.01, **settings)
    factory.set_trained(model, frozen_names(model, config.freeze), False)
    return make_learner(config, model, CPU, None)


def trained(model, one, epochs, state=None):
    list(fit(one, Batches(), schedule(4), epochs=epochs, evaluations={"test": eval_batches()}, state=state))
    return weights(model)


def reference(frozen_in, epochs=3):
    """Train with a loop of PyTorch's own in which `frozen_in(epoch)` are the names of the modules that are frozen."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    step = 0
    for epoch in range(epochs):
        frozen = frozen_in(epoch)
        model.train()
        for name, module in model.named_children():
            module.requires_grad_(name not in frozen)
            if name in frozen:
                module.eval()
        for images, labels in Batches().epoch(epoch):
            set_lr_and_momentum(optimizer, schedule(4).lr(step), 0.9)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            step += 1
    return weights(model)


def test_frozen_modules_keep_their_weights_and_running_statistics_and_the_rest_trains_as_in_a_plain_loop():
    model, before = network(), weights(network())
    after = trained(model, made(model, freeze=BODY), 3)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith(BODY)}
    torch.testing.assert_close(after, reference(lambda epoch: BODY))


def test_the_classifier_is_trained_first_and_then_everything_as_in_a_plain_loop():
    body = ("conv1", "bn1", "conv2", "bn2")
    model = network()
    first = trained(model, one := made(model, freeze_epochs=1), 1)
    before = weights(network())
    assert {name for name in before if not torch.equal(before[name], first[name])} == {"fc.weight", "fc.bias"}
    model = network()
    after = trained(model, made(model, freeze_epochs=1), 3)
    torch.testing.assert_close(after, reference(lambda epoch: body if epoch < 1 else ()))
    assert one.freezing.at_first == {name for name, _ in model.named_parameters() if not name.startswith("fc")}


def test_what_is_frozen_for_good_stays_so_after_the_classifier_was_trained_first():
    model = network()
    after = trained(model, made(model, freeze=BODY, freeze_epochs=1), 3)
    body = (*BODY, "conv2", "bn2")
    torch.testing.assert_close(after, reference(lambda epoch: body if epoch < 1 else BODY))


@pytest.mark.parametrize("done", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_a_run_that_trains_the_classifier_first_is_resumed_bit_identically(done, optimizer):
    settings = {"freeze_epochs": 2, "freeze": ("bn1",), "optimizer": optimizer}
    model, other = network(), network()
    whole = trained(model, made(model, **settings), 4)
    state, one = TrainerState(), made(other, **settings)
    trained(other, one, done, state)
    file = io.BytesIO()
    torch.save({"learner": one.state_dict(), "progress": state.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    third, state = network(), TrainerState()
    resumed = made(third, **settings)
    resumed.load_state_dict(saved["learner"])
    state.load_state_dict(saved["progress"], CPU)
    assert_equal(trained(third, resumed, 4, state), whole)


def test_a_captured_update_is_captured_again_when_everything_trains():
    settings = {"freeze_epochs": 2}
    model, other = network(), network()
    one = made(model, **settings)
    captures = []

    class Recorded(GraphedStep):
        def capture(self, *inputs):
            captures.append(sum(parameter.requires_grad for parameter in model.parameters()))
            return super().capture(*inputs)

    one.graph = Recorded(one.update, one.optimizer, CPU)
    assert_equal(trained(model, one, 4), trained(other, made(other, **settings), 4))
    assert captures == [2, 8]


def test_an_evaluation_does_not_release_the_running_statistics():
    model = network()
    one = made(model, freeze=BODY)
    one.begin_epoch(0)
    evaluate_batches(model, eval_batches(), CPU)
    assert (model.bn1.training, model.bn2.training, model.training) == (False, True, True)


def test_patterns_are_names_modules_and_wildcards():
    model = network()
    assert frozen_names(model, ["conv1"]) == {"conv1.weight", "conv1.bias"}
    assert frozen_names(model, ["*.bias"]) == {"conv1.bias", "bn1.bias", "conv2.bias", "fc.bias"}
    assert frozen_names(model, ["conv?.weight"]) == {"conv1.weight", "conv2.weight"}
    names = {name for name, _ in model.named_parameters()}
    assert frozen_names(model, ["all-but-head"]) == names - {"fc.weight", "fc.bias"}
    timm_model = timm.create_model("test_resnet")
    body = frozen_names(timm_model, ["all-but-head"])
    assert (
        {name for name, _ in timm_model.named_parameters()} - body == head_names(timm_model) == {"fc.weight", "fc.bias"}
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"freeze": ("conv3",)}, "did you mean 'conv"), ({"freeze": ("layer*",)}, "names no parameter")],
)
def test_a_pattern_that_names_nothing_is_refused(settings, reason):
    with pytest.raises(UsageError, match=reason):
        made(network(), **settings)


@pytest.mark.parametrize("settings", [{"freeze": ("all-but-head",)}, {"freeze_epochs": 1}])
def test_a_model_that_does_not_name_its_classifier_is_refused(settings):
    with pytest.raises(UsageError, match="get_classifier"):
        made(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 3)), **settings)


def test_the_kernels_of_the_custom_resnet_are_not_used_for_frozen_layers():
    config = Config(freeze=("all-but-head",), fused=True, precision="bf16")
    with pytest.raises(UsageError, match=r"frozen|not a CUDA GPU"):
        factory.make_training_forward(config, network(), torch.device("cuda"))


def test_the_running_statistics_are_those_of_timms_own_freezing():
    """`timm.utils.freeze` replaces the layers by frozen ones, which compute the same."""
    model = timm.create_model("test_resnet", num_classes=3)
    other = copy.deepcopy(model)
    timm.utils.freeze(other, ["conv1", "bn1", "layer1"])
    one = made(model, freeze=("conv1", "bn1", "layer1"))
    one.begin_epoch(0)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(images), other.train()(images))


@pytest.mark.slow
def test_a_killed_run_that_trains_the_head_first_resumes_and_logs_the_rate_of_each_group(tmp_path):
    words = ["run", *TINY, "--freeze-epochs", "1", "--head-lr-scale", "4", "--bias-lr-scale", "2", "--name", "r"]
    contents = []
    for name, fault in (("whole", ""), ("killed", "kill@step=14")):
        (tmp_path / name).mkdir()
        ended = command(*words, "--checkpoint-every", "4", cwd=tmp_path / name, fault=fault)
        if fault:
            assert ended.code == -signal.SIGKILL
            ended = command(*words, "--checkpoint-every", "4", cwd=tmp_path / name)
        assert ended.code == 0, ended.err
        contents.append(load_file(tmp_path / name / "runs/r/checkpoints/model.safetensors"))
    assert_equal(*contents)
    record = next(record for record in read_journal(tmp_path / "whole/runs/r").records if record.kind == "epoch")
    lr = record.values["lr"]
    assert record.steps.lines["lr"][-1] == lr
    assert (record.values["lr/body"], record.values["lr/bias"], record.values["lr/head"]) == (lr, 2 * lr, 4 * lr)


@pytest.mark.slow
def test_two_processes_train_the_classifier_first_as_one_does(tmp_path):
    words = ["run", *TINY, *SMOOTH, "--freeze-epochs", "1", "--freeze", "stem", "--name", "r"]
    del words[words.index("--model-args") : words.index("--model-args") + 2]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    command(*words, cwd=tmp_path / "one", check=0)
    ended = ranks(*words, cwd=tmp_path / "two")
    assert [process.code for process in ended] == [0, 0], ended
    torch.testing.assert_close(
        *(torch.tensor(losses(tmp_path / name / "runs/r")) for name in ("one", "two")), rtol=1e-4, atol=1e-4
    )
