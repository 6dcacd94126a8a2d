"""Runs that start from the weights of another run, a file or an export."""

import json
import shutil
import signal

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import harness
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.evaluation.initial_weights import InitialWeights, give_initial_weights, read_initial_weights
from harness.lr_finder.finder import LRFinder, LRFinderOptions
from harness.runs import export
from harness.runs.components import build_components
from harness.runs.lr_find import finder_inputs
from harness.runs.run import resumed_preprocess
from harness.tracking.journal import read_journal
from harness.training.checkpoint import save_checkpoint
from harness.training.distributed import SingleProcess
from harness.training.loop import TrainerState
from harness.utils.errors import CheckpointError, UsageError
from harness.utils.files import write_json
from tests.runs.test_precision import StopAfter
from tests.support.forked import TINY
from tests.support.forked import harness as command
from tests.support.image_folders import make_class_folders
from tests.support.lineage_server import LineageServer
from tests.support.reporters import Lines
from tests.support.shared import make_once
from tests.support.training import assert_equal, learner, net
from tests.support.wandb_server import KEY
from tests.training.test_distributed import ranks

QUIET = {"wandb": "disabled", "report": False, "gallery": 0, "cam": "none", "threads": 1, "precision": "fp32"}
SOURCE = {**QUIET, "recipe": "digits", "model_args": {"width": 4}, "batch_size": 256, "epochs": 1, "peak_epoch": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The directory of a finished run on the digits."""
    words = ["run", *TINY, "--image-size", "32", "--name", "source", "--epochs", "1", "--peak-epoch", "1"]
    _, folder = make_once(tmp_path_factory, "weights", lambda folder: command(*words, cwd=folder, check=0))
    return folder / "runs/source"


def start(init, tmp_path, **settings):
    """Return the result of a run that does not train, and the lines that it shows."""
    reporter = Lines()
    options = {**QUIET, "recipe": "digits", "init": str(init), "epochs": 0, "output": str(tmp_path / "out"), **settings}
    return harness.run(make_config(options), reporter=reporter), reporter.lines


def predictions(folder):
    return (folder / "predictions.csv").read_bytes()


def as_torch(folder, path, wrap=lambda state: state, prefix=""):
    state = load_file(folder / "checkpoints/model.safetensors")
    torch.save(wrap({f"{prefix}{name}": tensor for name, tensor in state.items()}), path)
    return path


def test_a_run_that_starts_from_another_has_its_model_and_its_predictions(source, tmp_path):
    result, lines = start(source, tmp_path)
    assert predictions(result.folder) == predictions(source)
    (warning,) = (line for line in result.summary["warnings"] if "nothing is trained (epochs=0)" in line)
    assert f"Warning: {warning}" in lines
    total = len(load_file(source / "checkpoints/model.safetensors"))
    assert lines[0] == f"Weights from {source}: {total} of {total} tensors; head of 10 classes kept."
    config = make_config({"recipe": str(result.folder / "config.yaml")})
    assert (config.init, config.model, config.model_args) == (str(source), "custom_resnet", {"width": 4})
    assert read_journal(result.folder).header["initial_weights"] == lines[0][:-1]


MORE_FORMS = [pytest.param(form, marks=pytest.mark.slow) for form in ("safetensors", "pth", "parallel")]


@pytest.mark.parametrize("form", ["result", "last.pt", "timm", "export", *MORE_FORMS])
def test_every_form_of_the_same_weights_gives_the_same_predictions(source, tmp_path, form):
    match form:
        case "result":
            path = source / "checkpoints/model.safetensors"
        case "last.pt":
            path = source / "checkpoints/last.pt"
        case "safetensors":
            path = tmp_path / "weights.safetensors"
            save_file(load_file(source / "checkpoints/model.safetensors"), path)
        case "pth":
            path = as_torch(source, tmp_path / "weights.pth")
        case "timm":
            path = as_torch(source, tmp_path / "weights.pth.tar", lambda state: {"state_dict_ema": state, "epoch": 2})
        case "parallel":
            path = as_torch(source, tmp_path / "weights.bin", prefix="module._orig_mod.")
        case "export":
            path = tmp_path / "export"
            export.export_timm(source, path, {})
    knows_model = form in ("result", "last.pt", "export")
    # A plain file does not tell what its images were normalised by: for the same data it is the same.
    result, _ = start(path, tmp_path, **({} if knows_model else {"model_args": {"width": 4}}))
    assert predictions(result.folder) == predictions(source)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    return make_class_folders(root, classes=("a", "b", "c", "d", "e"), count=4, size=(32, 32))


def test_a_head_of_another_size_is_replaced_and_everything_else_is_kept(source, tmp_path, pictures):
    result, lines = start(source, tmp_path, data="folder", data_dir=str(pictures), batch_size=10, workers=0)
    former, weights = load_file(source / "checkpoints/model.safetensors"), dict(result.model.state_dict())
    head = [name for name in weights if weights[name].shape != former[name].shape]
    assert head and all(len(weights[name]) == 5 for name in head)
    counts = f"{len(weights) - len(head)} of {len(weights)} tensors"
    assert lines[0] == f"Weights from {source}: {counts}; head (10 classes) replaced by one of 5."
    body = {name: tensor for name, tensor in weights.items() if name not in head}
    assert_equal(body, {name: former[name] for name in body})
    stored = json.loads((result.folder / "checkpoints/model.json").read_text())["preprocess"]
    assert (
        stored == json.loads((source / "checkpoints/model.json").read_text())["preprocess"]
    )  # not that of the pictures


def test_the_images_are_resized_to_the_size_of_the_weights_unless_one_is_named(source, tmp_path):
    weights = read_initial_weights(str(source))
    other = make_class_folders(tmp_path / "large", classes=("a", "b"), count=2, size=(48, 40))
    settings = {**QUIET, "init": str(source), "data": "folder", "data_dir": str(other), "batch_size": 2, "workers": 0}
    assert build_components(make_config(settings)).preprocess.size == weights.preprocess.size == 32
    assert build_components(make_config({**settings, "image_size": 40})).preprocess.size == 40


def network(classes, seed, name="test_resnet"):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes).eval()


def give(weights, names, classes, model):
    return give_initial_weights(model, InitialWeights("w", weights, tuple(names)), classes, "test_resnet")


def test_the_outputs_are_put_into_the_order_of_the_data():
    first, second, images = network(3, 0), network(3, 1), torch.randn(2, 3, 64, 64)
    assert "put into the order of the data" in give(first.state_dict(), "cab", "abc", second)
    with torch.no_grad():
        torch.testing.assert_close(second(images), first(images)[:, [1, 2, 0]])


@pytest.mark.parametrize("names", ["abx", "aab", "ab"])
def test_a_head_of_other_classes_is_replaced(names):
    first, second = network(3, 0), network(3, 1)
    fresh = second.get_classifier().weight.clone()
    line = give(first.state_dict(), names, "abc", second)
    assert "replaced by one for the classes of the data" in line
    assert torch.equal(second.get_classifier().weight, fresh)
    torch.testing.assert_close(second.conv1[0].weight, first.conv1[0].weight)


def test_weights_without_a_head_get_one():
    backbone = network(0, 0).state_dict()
    assert "a new head of 3 classes" in give(backbone, (), "abc", network(3, 1))


def test_position_embeddings_of_another_image_size_are_resized_as_timm_does():
    weights = timm.create_model("test_vit").state_dict()
    model, other = (timm.create_model("test_vit", img_size=96, num_classes=3) for _ in range(2))
    line = give(weights, (), "abc", model)
    assert "converted by timm" in line and "head (1000 classes) replaced by one of 3" in line
    expected = timm.models.vision_transformer.checkpoint_filter_fn(dict(weights), other)["pos_embed"]
    assert torch.equal(model.pos_embed, expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("conv1.0.weight"), "conv1.0.weight missing"),
        (lambda state: state.update(more=torch.ones(2)), "more unknown"),
        (lambda state: state.update({"conv1.0.weight": torch.ones(2)}), r"conv1.0.weight \[2\] instead of \["),
        (lambda state: state.update({"conv1.0.weight": torch.ones(1).to_sparse()}), "instead of a dense tensor"),
        (lambda state: state["conv1.0.weight"].fill_(float("nan")), "conv1.0.weight .* is NaN or infinite"),
        (lambda state: state.clear(), "missing.* more"),
    ],
)
def test_weights_that_do_not_fit_beyond_the_head_are_refused_with_their_names_and_change_nothing(change, reason):
    weights, model = dict(network(3, 0).state_dict()), network(3, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(weights)
    with pytest.raises(CheckpointError, match=reason) as caught:
        give(weights, (), "abc", model)
    assert "\n" not in str(caught.value)
    assert_equal(dict(model.state_dict()), before)


def test_half_precision_weights_become_those_of_the_model():
    weights, model = network(3, 0).half().state_dict(), network(3, 1)
    give(weights, (), "abc", model)
    assert model.conv1[0].weight.dtype == torch.float32
    assert torch.equal(model.conv1[0].weight, weights["conv1.0.weight"].float())


def test_the_model_of_the_weights_is_used_unless_one_is_named(source, tmp_path):
    assert make_config({"init": str(source)}).model_args == {"width": 4}
    named = make_config({"init": str(source), "model": "test_resnet"})
    assert (named.model, named.model_args) == ("test_resnet", {})
    exported = tmp_path / "export"
    save_for_hf(timm.create_model("test_vit", num_classes=2), str(exported), safe_serialization=True)
    assert make_config({"init": str(exported)}).model == "test_vit"
    assert make_config({"init": f"local-dir:{exported}", "recipe": "resnet18"}).model == "test_vit"
    assert make_config({"init": "hf-hub:timm/test_vit.r160_in1k"}).model == "hf-hub:timm/test_vit.r160_in1k"
    (tmp_path / "config.yaml").write_text("model: resnet18_cifar\n")  # beside a file that has nothing to do with it
    (tmp_path / "w.pth").write_bytes(b"")
    assert make_config({"init": str(tmp_path / "w.pth")}).model == Config().model


def test_an_option_for_weights_replaces_those_of_the_recipe(source, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("pretrained: true\nmodel: resnet18\n")
    assert not make_config({"recipe": str(recipe), "init": str(source)}).pretrained
    recipe.write_text(f"init: {source}\nmodel: resnet18\n")
    assert not make_config({"recipe": str(recipe), "pretrained": True}).init
    assert Config(init="x").starts_from_weights and Config(pretrained=True).starts_from_weights
    assert not Config().starts_from_weights
    with pytest.raises(UsageError, match="both name weights"):
        Config(init="x", pretrained=True)


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [("missing", 4, "no such file or folder"), ("empty", 4, "has no checkpoints"), ("w.pth", 4, "is empty")],
)
def test_weights_that_cannot_be_had_are_refused_in_one_line_before_anything_is_written(tmp_path, name, code, reason):
    (tmp_path / "empty").mkdir()
    (tmp_path / "w.pth").touch()
    ended = command("run", *TINY, "--init", name, cwd=tmp_path)
    assert ended.code == code and len(ended.errors) == 1 and reason in ended.errors[0], ended.err
    assert not (tmp_path / "runs").exists()


def test_links_in_place_of_the_files_of_a_run_are_refused(source, tmp_path):
    copied = shutil.copytree(source, tmp_path / "copied")
    weights = copied / "checkpoints/model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="is a symbolic link"):
        read_initial_weights(str(copied))


def test_a_hub_without_a_connection_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(harness.utils.errors.DataError, match="cannot be loaded from the Hugging Face Hub") as caught:
        read_initial_weights("hf-hub:timm/no-such-model")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_resumed_run_never_reads_its_initial_weights_again(source, tmp_path):
    results = {}
    for name, fault in (("whole", ""), ("stopped", "term@step=14")):
        place = tmp_path / name
        place.mkdir()
        shutil.copytree(source, place / "source")
        # Other images than those of the source would be normalised by other numbers: these come from the checkpoint.
        words = ["run", *TINY, "--name", "r", "--init", "source", "--val-fraction", "0.1", "--checkpoint-every", "4"]
        ended = command(*words, cwd=place, fault=fault)
        if fault:
            assert ended.code == 128 + signal.SIGTERM
            shutil.rmtree(place / "source")
            ended = command(*words, cwd=place)
            assert "Resuming run" in ended.err and "Weights from" not in ended.err
        assert ended.code == 0, ended.err
        results[name] = [
            (place / "runs/r" / file).read_bytes() for file in ("checkpoints/model.safetensors", "predictions.csv")
        ]
    assert results["whole"] == results["stopped"]


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_the_weights_again(source, tmp_path):
    words = ["run", *TINY, "--name", "r", "--init", source, "--epochs", "1", "--peak-epoch", "1"]
    assert command(*words, cwd=tmp_path, fault="kill@step=1").code == -signal.SIGKILL
    assert "Weights from" in command(*words, cwd=tmp_path, check=0).err
    other = command(*words, cwd=tmp_path, check=0)
    assert other.code == 0
    first, second = (
        load_file(path / "checkpoints/model.safetensors") for path in sorted((tmp_path / "runs").iterdir())
    )
    assert_equal(first, second)


def test_the_range_test_begins_with_the_weights(source):
    config = make_config({**SOURCE, "init": str(source)})
    components = build_components(config)
    one = LRFinder(finder_inputs(config, components), LRFinderOptions(seeds=1)).learner_factory(3)
    assert_equal(dict(one.model.state_dict()), load_file(source / "checkpoints/model.safetensors"))


@pytest.mark.slow
def test_several_processes_and_several_seeds_start_from_the_same_weights(source, tmp_path):
    words = ["run", *TINY, "--name", "r", "--init", source, "--epochs", "0", "--batch-size", "128"]
    ended = ranks(*words, cwd=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    assert_equal(
        load_file(tmp_path / "runs/r/checkpoints/model.safetensors"),
        load_file(source / "checkpoints/model.safetensors"),
    )
    command("run", *TINY, "--name", "s", "--init", source, "--epochs", "0", "--seeds", "2", cwd=tmp_path, check=0)
    (summary,) = (tmp_path / "runs").glob("s*/seeds.json")
    accuracies = {seed["result"]["test/acc"] for seed in json.loads(summary.read_text())["seeds"]}
    assert len(accuracies) == 1


@pytest.mark.slow
def test_the_model_that_a_run_starts_from_is_an_input_of_it_in_wandb(monkeypatch, tmp_path):
    with LineageServer() as server:
        for name, value in {
            "BASE_URL": server.url,
            "API_KEY": KEY,
            "X_DISABLE_STATS": "true",
            "DISABLE_GIT": "true",
        }.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.chdir(tmp_path)
        settings = {**SOURCE, "wandb": "online", "finish_timeout": 30}
        first = harness.run(make_config(settings)).folder
        harness.run(make_config({**settings, "init": str(first), "seed": 5}))
        training, tuned = server.runs
        model = server.version("custom_resnet-digits:v0")
        assert (model.run, model.used_by) == (training, [tuned])


def test_numpy_agrees_on_the_first_update_from_the_weights(source, tmp_path):
    """The first update of a run that starts from weights is the update of these weights, and of no others."""
    result, _ = start(source, tmp_path, epochs=1, peak_epoch=1, batch_size=1437, lr_min=1e-8, lr_max=1e-8)
    former, weights = load_file(source / "checkpoints/model.safetensors"), dict(result.model.state_dict())
    moved = max(
        float(np.abs(weights[name].numpy() - former[name].numpy()).max())
        for name in weights
        if weights[name].is_floating_point() and "running" not in name
    )
    assert 0 < moved < 1e-5


@pytest.mark.slow
def test_a_run_from_weights_that_was_stopped_before_there_was_bias_decay_is_resumed(source, tmp_path):
    options = {"init": str(source), "epochs": 2, "name": "r", "bias_decay": True, "batch_size": 256}
    with pytest.raises(RuntimeError, match="ended by the test"):
        harness.run(make_config({**QUIET, "recipe": "digits", "output": str(tmp_path), **options}), StopAfter())
    path = tmp_path / "r/config.yaml"
    path.write_text(path.read_text().replace("bias_decay: true\n", ""))
    result = harness.run({"resume": str(tmp_path / "r")})
    assert len(result.history) == 2 and make_config({"recipe": str(path)}).decays_biases


def test_a_checkpoint_without_its_preprocessing_ends_a_run_that_started_from_weights_in_one_line(tmp_path):
    config = Config(init="weights.pth", output=str(tmp_path), name="r", precision="fp32")
    (tmp_path / "r").mkdir()
    (tmp_path / "r/config.yaml").write_text(config.to_yaml())
    write_json(tmp_path / "r/status.json", {"state": "interrupted"})
    one = learner(net())
    state = {"learner": one.state_dict(), "progress": TrainerState(step=3).state_dict()}
    save_checkpoint(tmp_path / "r/checkpoints", state, {"step": 3})
    with pytest.raises(
        CheckpointError, match=r"last\.pt has no usable preprocessing .*; start again with --resume never"
    ):
        resumed_preprocess(config, SingleProcess())
    assert resumed_preprocess(config.replace(resume="never"), SingleProcess()) is None


def test_what_is_left_out_of_a_file_and_a_model_without_a_head_are_said():
    model, other = network(3, 0), network(3, 1)
    whole = {f"model.{name}": value for name, value in other.state_dict().items()} | {"loss.weight": torch.ones(3)}
    line = give(whole, "", ["a", "b", "c"], model)
    assert line.endswith("prefix model. removed from the names; 1 of other parts left out, such as loss.weight")
    assert_equal(dict(model.state_dict()), dict(other.state_dict()))
    features = network(0, 2)
    count = len(features.state_dict())
    assert (
        give(features.state_dict(), "", ["a", "b", "c"], network(0, 3)) == f"Weights from w: {count} of {count} tensors"
    )


def test_weights_that_timms_own_conversion_does_not_understand_are_refused_by_name():
    model = network(3, 0, "test_vit")
    weights = {**model.state_dict(), "pos_embed": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"do not fit test_resnet: pos_embed \[3\] instead of \[1, "):
        give(weights, "", ["a", "b", "c"], model)


def test_an_export_that_does_not_say_how_its_images_were_prepared_leaves_that_to_the_data(tmp_path):
    save_for_hf(network(2, 0), str(tmp_path), model_config={"label_names": ["cat", "dog"]}, safe_serialization=True)
    assert read_initial_weights(str(tmp_path)).preprocess is not None
    content = json.loads((tmp_path / "config.json").read_text())
    # Where only the form of the crop is not said, it is what timm takes for such a model.
    said = {key: content["pretrained_cfg"][key] for key in ("input_size", "mean", "std")}
    (tmp_path / "config.json").write_text(json.dumps({**content, "pretrained_cfg": {**said, "num_classes": 2}}))
    assumed = timm.data.resolve_data_config(pretrained_cfg=said)
    found = read_initial_weights(str(tmp_path)).preprocess
    assert (found.crop_pct, found.interpolation, found.crop_mode) == (
        assumed["crop_pct"], assumed["interpolation"], assumed["crop_mode"],
    )  # fmt: skip
    for change in ({"mean": None}, {"input_size": []}, {"std": [0.0, 0.0, 0.0]}):
        (tmp_path / "config.json").write_text(
            json.dumps({**content, "pretrained_cfg": {**content["pretrained_cfg"], **change}})
        )
        weights = read_initial_weights(str(tmp_path))
        assert weights.preprocess is None and weights.classes == ("cat", "dog")


@pytest.mark.slow
def test_a_range_test_from_weights_says_what_was_taken(source, tmp_path):
    reporter = Lines()
    options = {**QUIET, "recipe": "digits", "init": str(source), "output": str(tmp_path), "batch_size": 256}
    harness.find_lr(make_config(options), steps=10, seeds=1, reporter=reporter)
    total = len(load_file(source / "checkpoints/model.safetensors"))
    assert f"Weights from {source}: {total} of {total} tensors; head of 10 classes kept." in reporter.lines
