"""The recipe `finetune`: its phases against a plain loop with timm's own parts, models, resuming, sweeps, refusals."""

import signal

import pytest
import timm
import torch
from timm import optim as timm_optim
from timm.utils import ModelEmaV3
from torch import nn

import harness
from harness.config import yaml_io
from harness.config.automatic import choose_settings, with_choices
from harness.config.recipe import make_config
from harness.models.freezing import head_names
from harness.runs.components import build_components
from harness.training.learner import make_learner
from harness.training.loop import fit
from harness.training.optimizer import parameter_groups
from harness.training.schedule import make_schedule
from tests.config.test_automatic import facts
from tests.support.commands import command as plain_command
from tests.support.forked import harness as command
from tests.support.image_folders import make_class_folders
from tests.support.resume import contents_of
from tests.support.sweeps import read_trials, sweep_folder, write_sweep
from tests.support.training import CPU, assert_equal, weights

MODELS = ["test_resnet", "test_convnext", "test_vit"]
QUIET = {"wandb": "disabled", "report": False, "gallery": 0, "cam": "none", "threads": 1, "precision": "fp32", "workers": 0}  # fmt: skip
WORDS = [
    *("--recipe", "finetune", "--data", "digits", "--init", "source", "--name", "r", "--epochs", "3", "--batch-size", "128"),
    *("--checkpoint-every", "4", "--gallery", "0", "--cam", "none", "--workers", "0", "--threads", "1", "--precision", "fp32"),
    *("--wandb", "disabled", "--report", "false", "--eval-batch-size", "200", "--device", "cpu"),
]  # fmt: skip


class Batches:
    """Batches of random images of 32 x 32 pixels as a function of the epoch."""

    steps, num_images = 4, 24

    def epoch(self, epoch, start=0):
        generator = torch.Generator().manual_seed(epoch)
        batches = [
            (torch.randn(6, 3, 32, 32, generator=generator), torch.randint(0, 3, (6,), generator=generator))
            for _ in range(self.steps)
        ]
        yield from batches[start:]


def settings_for(model, **more):
    """Return the settings of the recipe for a model, chosen for 640 images of two classes."""
    config = make_config(
        {"recipe": "finetune", "data": "folder", "init": "weights.pth", "model": model, **QUIET, **more}
    )
    return with_choices(config, choose_settings(config, facts(640)))


def network(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **({"img_size": 32} if name == "test_vit" else {}))


def train_with_timm(config, model, epochs):
    """Train with timm's optimizer and moving average: in the first epoch the classifier alone; return the average's weights."""
    optimizer = timm_optim.create_optimizer_v2(
        model, "adamw", lr=config.lr_max, weight_decay=config.weight_decay, layer_decay=config.layer_decay,
        eps=config.optimizer_args["eps"], betas=(config.momentum, 0.999),
    )  # fmt: skip
    average, loss = ModelEmaV3(model, decay=config.ema, use_warmup=True), nn.CrossEntropyLoss(label_smoothing=0.1)
    schedule, head, step = make_schedule(config, Batches.steps), model.get_classifier(), 0
    for epoch in range(epochs):
        model.train().requires_grad_(epoch > 0)
        head.requires_grad_(True)
        if epoch == 0:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        for images, labels in Batches().epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr(step) * group["lr_scale"]
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            step += 1
            average.update(model, step)
    return weights(average.module)


@pytest.mark.parametrize("name", MODELS)
def test_the_recipe_trains_the_classifier_first_and_then_all_layers_as_a_plain_loop_with_timms_parts(name):
    # The gradient of the bias of a ViT's keys is zero up to rounding, which AdamW would enlarge.
    config = settings_for(name, epochs=3, lr_max=0.01, optimizer_args={"eps": 1e-3}, channels_last=False)
    model, before = network(name), weights(network(name))
    one = make_learner(config, model, CPU, None)
    schedule = make_schedule(config, Batches.steps)
    records = fit(one, Batches(), schedule, epochs=3)
    next(records)
    after = weights(model)
    head = head_names(model)
    assert {key for key in before if not torch.equal(before[key], after[key])} == head  # no running statistics either
    list(records)
    after = weights(model)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key for key, _ in model.named_parameters()} <= moved
    assert all((key in moved) for key in before if "running" in key)
    other = network(name)
    average = train_with_timm(config, other, 3)
    torch.testing.assert_close(after, weights(other), rtol=1e-4, atol=1e-5)
    averaged = {key: value for key, value in weights(one.eval_model).items() if value.is_floating_point()}
    torch.testing.assert_close(averaged, {key: average[key] for key in averaged}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [*MODELS, "resnet18d", "resnet50", "vit_tiny_patch16_224", "convnext_atto", "custom_resnet", "resnet18_cifar"],
)
def test_every_parameter_has_the_rate_and_the_weight_decay_that_timm_gives_it(name):
    config = settings_for(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    ours = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(config, model)
        for parameter in group["params"]
    }
    excluded = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = timm_optim.param_groups_layer_decay(
        model, config.weight_decay, no_weight_decay_list=excluded, layer_decay=config.layer_decay
    )
    timms = {
        id(parameter): (group["lr_scale"], group["weight_decay"]) for group in groups for parameter in group["params"]
    }
    assert ours == timms and len(ours) == len(list(model.parameters()))
    assert len({scale for scale, _ in ours.values()}) > 4 and {decay for _, decay in ours.values()} == {0.0, 0.05}


def test_the_rate_still_rises_when_the_other_layers_follow_and_any_length_is_allowed():
    for epochs in (1, 2, 3, 5, 40):
        config = settings_for("test_resnet", epochs=epochs)
        schedule = make_schedule(config, 20)
        peak = max(range(20 * epochs), key=schedule.lr)
        assert config.freeze_epochs < config.peak_epoch < epochs or epochs == 1
        assert peak >= 20 or epochs == 1, (epochs, peak)
        assert schedule.lr(20) < config.lr_max or epochs == 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of images of 32 and of 224 pixels, and a file of weights of each model, of seven classes."""
    root = tmp_path_factory.mktemp("finetune")
    for side in (32, 224):
        make_class_folders(root / str(side), classes=("cat", "dog"), count=4, size=(side, side))
    for name in MODELS:
        torch.manual_seed(1)
        torch.save(timm.create_model(name, num_classes=7).state_dict(), root / f"{name}.pth")
    return root


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", MODELS)
def test_any_model_of_timm_starts_from_a_file_for_images_of_any_size(folders, name, side):
    given = {
        "recipe": "finetune",
        "data_dir": str(folders / str(side)),
        "init": str(folders / f"{name}.pth"),
        "model": name,
    }
    components = build_components(make_config({**given, **QUIET, "epochs": 2}))
    config, model = components.config, components.learner.model
    assert (config.model, config.pretrained, config.optimizer) == (name, False, "adamw")
    assert components.preprocess.size == timm.create_model(name).pretrained_cfg["input_size"][1]
    former = torch.load(folders / f"{name}.pth", weights_only=True)
    head = head_names(model)
    assert_equal(
        {key: value for key, value in weights(model).items() if key not in head},
        {key: value for key, value in former.items() if key not in head},
    )
    assert [len(model.state_dict()[key]) for key in head] == [2, 2]
    (record, *_) = fit(components.learner, components.loaders.train, components.schedule, epochs=1, seed=0)
    assert torch.isfinite(torch.tensor(record.values["train/loss"]))


@pytest.mark.slow
def test_a_run_on_other_images_starts_from_a_run_by_one_command(tmp_path):
    source(tmp_path)
    make_class_folders(tmp_path / "pictures", classes=("cat", "dog", "cow"), count=6, size=(32, 32))
    words = [
        "run",
        "--recipe",
        "finetune",
        "--init",
        "source",
        "--data-dir",
        "pictures",
        "--epochs",
        "2",
        "--name",
        "r",
    ]
    ended = command(*words, "--wandb", "disabled", "--device", "cpu", cwd=tmp_path, check=0)
    assert "Weights from source: " in ended.err and "head (10 classes) replaced by one of 3" in ended.err
    config = yaml_io.read_yaml(tmp_path / "runs/r/config.yaml")
    assert (config["model"], config["model_args"], config["pretrained"]) == ("custom_resnet", {"width": 4}, False)
    assert (config["freeze_epochs"], config["layer_decay"], config["recipe"]) == (1, 0.75, "finetune")


def test_a_network_of_this_package_gets_a_higher_rate_than_one_of_timm():
    rates = {
        name: settings_for(name, batch_size=64).lr_max for name in ("custom_resnet", "resnet18_cifar", "resnet18d")
    }
    assert rates == {"custom_resnet": 0.005, "resnet18_cifar": 0.005, "resnet18d": 0.0003}


def test_the_settings_of_a_run_with_another_model_have_rates_chosen_for_that_one(tmp_path):
    config = settings_for("custom_resnet")
    assert not config.undecided
    path = tmp_path / "config.yaml"
    path.write_text(yaml_io.dump_yaml(config.to_dict()))
    same, other = (make_config({"recipe": str(path), "model": model}) for model in ("custom_resnet", "test_vit"))
    assert same.lr_max == config.lr_max and not same.undecided
    assert other.undecided == {"lr_max", "lr_min", "weight_decay"} and other.optimizer == "adamw"


def source(folder):
    """Write a run of a narrow network, trained for an epoch on the digits, as `source` in a folder."""
    settings = {
        **QUIET,
        "recipe": "digits",
        "model_args": {"width": 4},
        "epochs": 1,
        "peak_epoch": 1,
        "batch_size": 256,
    }
    made = harness.run(make_config({**settings, "output": str(folder / "made"), "name": "source"}))
    made.folder.rename(folder / "source")


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 11, 12, 17])  # in the classifier's own epoch, at its end, after it
def test_a_killed_run_resumes_bit_identically_across_the_release_of_the_layers(tmp_path, step):
    contents = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        source(tmp_path / name)
        if name == "killed":
            ended = command("run", *WORDS, cwd=tmp_path / name, fault=f"kill@step={step}")
            assert ended.code == -signal.SIGKILL, ended.err
        command("run", *WORDS, cwd=tmp_path / name, check=0)
        contents.append(contents_of(tmp_path / name / "runs/r"))
    for part, value in contents[0].items():
        assert contents[1][part] == value, part


@pytest.mark.slow
def test_a_sweep_searches_the_recipes_rates(tmp_path):
    source(tmp_path)
    values = {"recipe": "finetune", "data": "digits", "init": "source", "workers": 0, "lr_min": "auto"}
    parameters = {name: {"value": value} for name, value in values.items()}
    write_sweep(
        tmp_path,
        method="grid",
        parameters={**parameters, "lr_max": {"values": [0.001, 0.01]}, "layer_decay": {"values": [0.65]}},
    )
    plain_command("sweep", "sweep.yaml", "--count", 2, cwd=tmp_path, check=0)
    folder = sweep_folder(tmp_path)
    rows = read_trials(folder)
    assert [row["state"] for row in rows] == ["complete"] * 2
    configs = [yaml_io.read_yaml(folder / row["folder"] / "config.yaml") for row in rows]
    assert {config["layer_decay"] for config in configs} == {0.65} and {config["init"] for config in configs} == {
        "source"
    }
    assert {(config["lr_max"], config["lr_min"]) for config in configs} == {(0.001, 1e-5), (0.01, 1e-4)}


@pytest.mark.parametrize("words", [(), ("--model", "resnet50.a1_in1k"), ("--model", "custom_resnet")])
def test_weights_that_cannot_be_had_are_refused_in_one_line_that_names_the_other_way(tmp_path, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_class_folders(tmp_path / "pictures", count=4, size=(96, 96))
    words = ["run", "--recipe", "finetune", "--data-dir", "pictures", "--wandb", "disabled", *words]
    ended = plain_command(*words, cwd=tmp_path)
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error")]
    assert ended.returncode in (2, 3) and "--init RUN_OR_FILE" in line, ended.stderr
    assert not (tmp_path / "runs").exists()
