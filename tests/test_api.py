"""The Python API does what the command line does, with plain calls."""

import copy
import csv
import importlib
import inspect
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

import harness

PACKAGES = ["harness", "harness.training", "harness.data", "harness.models", "harness.evaluation", "harness.tracking"]
QUICK = {
    "recipe": "digits",
    "image_size": 16,
    "model_args": "width=4",
    "threads": 1,
    "precision": "fp32",
    "epochs": 1,
    "gallery": 0,
}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_has_a_docstring(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        assert inspect.getdoc(value), name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_importing_harness_imports_no_heavy_library():
    code = "import sys, harness; print(sorted({'torch', 'timm', 'wandb', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_version_is_that_of_the_distribution():
    assert harness.__version__ == importlib.metadata.version("vision-harness")


def test_the_package_of_sweeps_is_an_attribute_before_it_is_imported_and_is_listed():
    assert harness.__getattr__("sweep") is importlib.import_module("harness.sweep") and callable(harness.sweep)
    assert {"sweep", "__version__", *harness.__all__} <= set(dir(harness))


def test_a_run_is_trained_evaluated_predicted_explained_and_reported(tmp_path):
    config = harness.make_config({**QUICK, "wandb": "disabled", "output": str(tmp_path / "runs"), "report": False})
    result = harness.run(config)
    accuracy = result.summary["result"]["test/acc"]
    evaluation = harness.evaluate(result.folder, out=tmp_path / "evaluation")
    assert (evaluation.split, evaluation.folder) == ("test", tmp_path / "evaluation")
    assert evaluation.metrics["acc"] == pytest.approx(accuracy, abs=1e-12)
    trained = harness.load_model(result.folder)
    assert not trained.model.training and len(trained.classes) == 10

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (prediction,) = harness.predict(result.folder, tmp_path / "x.png")
    (explanation,) = harness.explain(result.folder, [tmp_path / "x.png"], out=tmp_path / "explained", top=3)
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert explanation.guesses[0][0] == prediction.prediction and len(explanation.guesses) == 3
    page = harness.report([result.folder], tmp_path / "page.html")
    assert f"{100 * accuracy:.2f}" in page.read_text(encoding="utf-8")

    # Plain strings, and one path in place of several.
    run, picture = str(result.folder), str(tmp_path / "x.png")
    assert harness.report(run, str(tmp_path / "same.html")).read_bytes() == page.read_bytes()
    (same,) = harness.predict(run, [picture], {"device": "cpu"})
    assert np.array_equal(same.probabilities, prediction.probabilities)
    (again,) = harness.explain(run, picture, {"device": "cpu"}, out=str(tmp_path / "again"), top=3)
    assert again.guesses == explanation.guesses
    assert harness.evaluate(run, out=str(tmp_path / "again")).metrics == evaluation.metrics
    assert harness.load_model(run).classes == trained.classes


@pytest.mark.slow
def test_a_sweep_is_a_function_call(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "method: grid\nmetric: {name: best/val_acc, goal: maximize}\n"
        "parameters:\n  lr_max: {values: [0.01, 0.02]}\n  val_fraction: {value: 0.2}\n"
        "command: ['${env}', '${interpreter}', -m, harness, run, '${args}']\n"
    )
    settings = {**QUICK, "wandb": "disabled", "output": str(tmp_path / "runs"), "report": False}
    result = harness.sweep(file, settings)  # the package, which calls `harness.run_sweep`
    rows = list(csv.DictReader((result.folder / "trials.csv").read_text().splitlines()))
    assert sorted(row["lr_max"] for row in rows) == ["0.01", "0.02"] and {row["state"] for row in rows} == {"complete"}
    best = json.loads((result.folder / "sweep.json").read_text())["best"]
    assert f"{best['value']:.4f}" in result.summary


def test_a_run_takes_settings_as_a_dictionary_as_a_recipe_or_by_keyword():
    from harness.config.recipe import as_config

    expected = harness.make_config({"recipe": "digits", "epochs": 2, "lr_max": 0.1})
    for given, settings in (
        ({"recipe": "digits", "epochs": 2, "lr": 0.1}, {}),
        ("digits", {"epochs": 2, "LRMAX": 0.1}),
        (None, {"recipe": "digits", "epochs": 2, "lr_max": 0.1}),
        (expected.replace(lr_max=0.05), {"lr": 0.1}),
        ({"recipe": "digits", "epochs": 7, "lr_max": 0.3}, {"lr": 0.1, "epochs": 2}),
    ):
        assert as_config(given, settings) == expected
    with pytest.raises(harness.utils.errors.UsageError, match=r"there is no recipe 'digit' .did you mean 'digits'"):
        harness.run("digit")
    with pytest.raises(harness.utils.errors.UsageError, match=r"need a Config, a dictionary .*; got list"):
        harness.run([("epochs", 2)])
    with pytest.raises(harness.utils.errors.UsageError, match=r"no setting 'learning_rate' .did you mean 'lr_max'"):
        harness.find_lr("digits", learning_rate=0.1)
    with pytest.raises(harness.utils.errors.UsageError, match="Config has no field 'lr': give 'lr_max'"):
        harness.Config(lr=0.1)
    assert pickle.loads(pickle.dumps(expected)) == copy.deepcopy(expected) == expected


@pytest.mark.parametrize("package", ["data", "evaluation", "models", "tracking", "training"])
def test_a_name_that_is_imported_when_it_is_used_is_that_of_its_module(package):
    module = importlib.import_module(f"harness.{package}")
    assert sorted(module._MODULES) == sorted(module.__all__)
    for name, place in module._MODULES.items():
        assert getattr(module, name) is getattr(importlib.import_module(place), name)
