"""The model card names what was trained, and escapes names that come from a user."""

import pytest

from harness.models.model_card import model_card

FACTS = {
    "config": {"model": "custom_resnet", "data": "folder", "epochs": 3, "batch_size": 64, "schedule": "one_cycle",
               "lr_min": 0.01, "lr_max": 0.1, "seed": 0, "peak_epoch": 1},
    "preprocess": {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "crop_pct": 1.0,
                   "interpolation": "bicubic"},
    "classes": ["cat", "<b>*dog*\nx"],
    "epoch": 3,
    "result": {"test/acc": 0.875, "test/loss": 0.5, "chosen": "last epoch"},
}  # fmt: skip


def test_the_card_holds_the_result_and_a_usage_example():
    card = model_card(FACTS)
    assert "# custom&#95;resnet on data" in card
    assert "| test/acc | 87.50 % |" in card
    assert "| test/loss | 0.5000 |" in card
    assert "epoch 3 (last epoch)" in card
    assert "import harness.models.cifar_resnet" in card
    assert "import harness" not in model_card({**FACTS, "config": {**FACTS["config"], "model": "resnet18"}})


@pytest.mark.parametrize("name, is_imported", [("custom_resnet", True), ("resnet18", False)])
def test_the_card_of_a_model_from_a_folder_imports_the_module_of_its_architecture(name, is_imported):
    facts = {"config": {**FACTS["config"], "model": "local-dir:shared"}, "architecture": {"name": name, "args": {}}}
    assert ("import harness.models.cifar_resnet" in model_card({**FACTS, **facts})) == is_imported


def test_names_in_the_card_are_no_markup():
    classes = next(line for line in model_card(FACTS).splitlines() if line.startswith("Classes"))
    assert classes.endswith("cat, &#60;b&#62;&#42;dog&#42; x.")
