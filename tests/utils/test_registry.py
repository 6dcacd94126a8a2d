"""Functions that plug-ins register, and plug-ins that installed packages bring."""

import functools
import importlib
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.cli.data import data as data_command
from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.data import register_dataset
from harness.data.own_transforms import find_transforms
from harness.data.registry import load_dataset
from harness.models import factory
from harness.training import device
from harness.training.losses import make_loss
from harness.utils import plugins, registry
from harness.utils.errors import UsageError

MODULE = """
import numpy as np
from timm.models import register_model
from harness.data import register_dataset, register_transform
from harness.training import register_loss
from harness.utils.registry import register

@register_loss
def installed_loss(logits, targets, factor):
    return factor * logits.mean()

@register_transform
def installed_transform(image, generator):
    return 255 - image

@register_dataset
def installed_squares(folder):
    return [(np.full((4, 4, 3), 20 * index, np.uint8), index % 2) for index in range(10)]

@register("metric")
def installed_metric(predictions):
    return 0.5

@register_model
def installed_model(pretrained=False, **settings):
    import torch
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(settings["num_classes"]))
"""


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(plugins, "_installed", {})
    monkeypatch.setattr(plugins, "_named", set())


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a module with an entry point, as pip does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def install(name, text):
        names.append(name)
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[vision_harness.plugins]\nmine = {name}\n")
        importlib.invalidate_caches()

    yield install
    for name in names:
        sys.modules.pop(name, None)


def test_a_function_is_found_by_the_name_it_is_registered_under():
    @registry.register("loss")
    def mine():
        return 1

    registry.register("loss", mine, name="other-name")
    assert registry.find_registered("loss", "mine") is registry.find_registered("loss", "other-name") is mine
    assert registry.find_registered("metric", "mine") is None
    assert registry.registered_names("loss") == ["mine", "other-name"]


def test_a_name_that_is_taken_or_is_no_name_cannot_be_registered():
    for name in ("sgd", "a b", "a/b", "1st", "é"):
        with pytest.raises(UsageError, match=f"loss '{name}' cannot be registered by builtins: need a name"):
            registry.register("loss", print, name=name, taken=("sgd",))


def test_the_module_of_a_partial_function_is_that_of_its_function():
    own = test_a_function_is_found_by_the_name_it_is_registered_under
    assert registry.origin_of(functools.partial(functools.partial(own))) == registry.origin_of(own) == __name__
    assert registry.origin_of(Path()) == "pathlib"
    assert registry.origin_of([].append) == "builtins"  # it has no module


def test_a_module_may_register_a_function_anew_and_another_module_may_not():
    for value in (1, 2):
        registry.register("loss", eval(f"lambda: {value}", {"__name__": "notebook"}), name="mine")
    assert registry.find_registered("loss", "mine")() == 2
    with pytest.raises(UsageError, match="registered by notebook and by elsewhere; rename"):
        registry.register("loss", eval("lambda: 3", {"__name__": "elsewhere"}), name="mine")


def test_an_installed_package_brings_data_sets_models_losses_and_transforms_without_an_option(install):
    install("installed_for_a_test", MODULE)
    assert len(load_dataset(Config(data="installed_squares")).train) == 8
    described = CliRunner().invoke(data_command, ["installed_squares"])
    assert described.exit_code == 0 and "data set installed_squares" in described.output, described.output
    model = factory.create_model(Config(model="installed_model"), 3)
    assert model[1].out_features == 3
    assert ("installed_model", "plugin") in factory.model_names("installed")
    assert registry.find_registered("metric", "installed_metric")(None) == 0.5
    config = make_config({"loss": "installed_loss", "loss_args": "factor=3", "transforms": "installed_transform"})
    assert float(make_loss(config, torch.device("cpu"))(torch.ones(2, 3), torch.zeros(2).long())) == 3
    image = np.full((4, 4, 3), 55, np.uint8)
    assert (find_transforms(config)[0](image, np.random.default_rng(0)) == 200).all()


def test_an_installed_package_is_not_imported_for_names_that_are_known_without_it(install, tmp_path):
    install("not_imported_for_a_test", f"import pathlib; pathlib.Path({str(tmp_path / 'imported')!r}).touch()")
    register_dataset(lambda folder: [], name="mine")
    assert registry.find_registered("dataset", "mine") is not None
    load_dataset(Config(data="digits"))
    factory.create_model(Config(model="custom_resnet", model_args={"width": 4}), 3)
    assert not (tmp_path / "imported").exists()
    registry.find_registered("dataset", "other")
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize("is_start", [False, True])
def test_a_package_that_lies_in_the_current_folder_is_not_an_installed_one(install, tmp_path, monkeypatch, is_start):
    """A folder of somebody else may hold metadata; a plug-in of the user's puts that folder on the path."""
    install("lies_here_for_a_test", f"import pathlib; pathlib.Path({str(tmp_path / 'imported')!r}).touch()")
    (tmp_path / "mine_for_a_test.py").touch()
    monkeypatch.setattr(sys, "path", [*([str(tmp_path)] if is_start else []), *sys.path[1:]])
    monkeypatch.setattr(plugins, "_appended", set())
    monkeypatch.delitem(sys.modules, "mine_for_a_test", raising=False)
    monkeypatch.chdir(tmp_path)
    plugins.allow_plugins(["mine_for_a_test"])
    plugins.import_plugins(["mine_for_a_test"])
    assert str(tmp_path) in sys.path
    monkeypatch.chdir("/")  # which the path does not follow
    if is_start:
        monkeypatch.chdir(tmp_path)
    assert registry.find_registered("dataset", "no_such_thing") is None
    assert not (tmp_path / "imported").exists() and not plugins.has_installed_plugins()


def test_an_installed_package_that_is_broken_is_named_and_the_others_are_used(install, caplog):
    install("broken_for_a_test", "import a_module_that_is_not_there")
    install("whole_for_a_test", MODULE.partition("@register_model")[0])
    with caplog.at_level(logging.WARNING):
        assert registry.find_registered("dataset", "installed_squares") is not None
        assert registry.find_registered("dataset", "no_such_thing") is None
    assert {"whole_for_a_test": "1.0"}.items() <= device.describe_environment(torch.device("cpu"))["packages"].items()
    (line,) = [record.getMessage() for record in caplog.records if record.name == plugins.__name__]
    assert "broken_for_a_test of the package broken_for_a_test cannot be imported: ModuleNotFoundError" in line


def test_what_a_plug_in_refuses_is_said_in_its_own_words(tmp_path, monkeypatch):
    text = "from harness.utils import registry\nregistry.register('loss', lambda: 0, name='a b')\n"
    (tmp_path / "refuses_for_a_test.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.allow_plugins(["refuses_for_a_test"])
    with pytest.raises(UsageError, match=r"^loss 'a b' cannot be registered by refuses_for_a_test: need a name"):
        plugins.import_plugins(["refuses_for_a_test"])
