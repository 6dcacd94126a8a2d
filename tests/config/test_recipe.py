"""Recipe files, and the precedence of options, recipes and defaults."""

import pytest

from harness.config.automatic import peak_of
from harness.config.recipe import first_comparison, make_config, read_recipe, recipe_paths, scaled_schedule
from harness.config.settings import Config, setting_fields
from harness.config.stored import read_stored_config
from harness.config.yaml_io import dump_yaml
from harness.utils.errors import UsageError
from harness.utils.files import write_json


@pytest.mark.parametrize("name", recipe_paths())
def test_a_shipped_recipe_is_unchanged_after_writing_and_reading_its_config(name, tmp_path):
    first = make_config({}, name)
    path = tmp_path / "config.yaml"
    path.write_text(first.to_yaml())
    second = make_config({"recipe": str(path)})
    assert second.to_dict() == first.to_dict()
    assert second.digest() == first.digest()


def test_an_option_takes_precedence_over_the_recipe_and_the_recipe_over_the_default(tmp_path):
    path = tmp_path / "custom.yaml"
    path.write_text("lr_max: 0.3\nepochs: 7\n")
    config = make_config({"recipe": str(path), "epochs": "9"})
    assert (config.lr_max, config.epochs, config.momentum) == (0.3, 9, Config().momentum)


def test_an_unknown_setting_names_the_nearest_one():
    with pytest.raises(UsageError, match=r"'epocs'.*did you mean 'epochs'"):
        make_config({"epocs": 3})


def test_a_recipe_file_may_start_from_a_shipped_one(tmp_path):
    path = tmp_path / "custom.yaml"
    path.write_text("recipe: digits\nseed: 3\n")
    config, digits = make_config({"recipe": str(path)}), make_config({}, "digits")
    assert config.replace(seed=0, recipe="digits") == digits
    path.write_text("recipe: digitz\nseed: 3\n")
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        make_config({"recipe": str(path)})


def test_a_recipe_compressed_to_fewer_epochs_keeps_its_shape():
    assert make_config({"epochs": 6}).peak_epoch == 5 * 6 / 24
    assert make_config({"epochs": "12", "peak_epoch": 5}).peak_epoch == 5


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        read_recipe("digit")


def test_a_recipe_with_one_setting_in_two_spellings_is_refused(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("lr_max: 0.1\nLRMAX: 0.2\n")
    with pytest.raises(UsageError, match="given twice"):
        read_recipe(str(path))


def test_arguments_of_the_model_are_added_to_those_of_the_recipe():
    recipe = make_config({}, "dawnbench").model_args
    config = make_config({"model_args": "width=8,logit_scale=1"}, "dawnbench")
    assert config.model_args == {**recipe, "width": 8, "logit_scale": 1}


def test_another_model_takes_neither_arguments_nor_rates_of_the_recipes_own_model():
    recipe, default = make_config({}, "custom-resnet"), Config()
    other = make_config({"model": "resnet18_cifar"}, "custom-resnet")
    assert recipe.model_args and recipe.head_lr_scale != 1
    assert (other.model_args, other.head_lr_scale) == ({}, 1)
    assert (other.lr_min, other.lr_max) == (default.lr_min, default.lr_max) != (recipe.lr_min, recipe.lr_max)
    assert other.epochs == recipe.epochs
    assert make_config({"model": "resnet18_cifar", "lr_max": 0.2}, "custom-resnet").lr_max == 0.2
    assert make_config({"model": "custom_resnet"}, "custom-resnet").model_args == recipe.model_args


def run_settings(tmp_path, **settings):
    """Return the path of the `config.yaml` of a run with these settings."""
    path = tmp_path / "config.yaml"
    path.write_text(make_config(settings).to_yaml())
    return str(path)


def test_epochs_over_a_recipe_that_leaves_them_to_the_data_keep_its_peak(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: auto\npeak_epoch: 3\n")
    config = make_config({"recipe": str(path), "epochs": 10})
    assert (config.epochs, config.peak_epoch) == (10, 3)
    assert make_config({"recipe": str(path), "epochs": "Auto"}).peak_epoch == 3
    for spelling in ("auto", "Auto", "AUTO"):
        assert make_config({"epochs": spelling}, "custom-resnet").undecided == {"epochs"}
        path.write_text(f"peak_epoch: {spelling}\n")
        assert make_config({"recipe": str(path), "epochs": 10}).undecided == {"peak_epoch"}


@pytest.mark.parametrize(
    "change", [{"batch_size": 1024}, {"drop_last": False}, {"data": "cifar100"}, {"val_fraction": "0.1"}]
)
def test_a_longer_run_as_a_recipe_has_one_length_where_an_epoch_has_other_updates(tmp_path, change):
    path = run_settings(tmp_path, epochs=12, peak_epoch=2, extended=("485:6",))
    config = make_config({"recipe": path, **change})
    assert (config.extended, config.epochs, config.peak_epoch) == ((), 12, 4)
    assert make_config({"recipe": path, **change, "peak_epoch": 1}).peak_epoch == 1
    assert make_config({"recipe": path, **change, "epochs": 24}).peak_epoch == 8


def test_a_longer_run_as_a_recipe_is_repeated_as_it_was_where_its_data_are_the_same(tmp_path):
    path = run_settings(tmp_path, epochs=12, peak_epoch=2, extended=("485:6",))
    for same in ({}, {"batch_size": "512"}, {"data_dir": "elsewhere"}, {"seed": 3}, {"data": "cifar10"}):
        config = make_config({"recipe": path, **same})
        assert (config.extended, config.epochs, config.peak_epoch) == (("485:6",), 12, 2)
    (tmp_path / "config.yaml").write_text(
        make_config({"data": "folder", "recipe": "digits", "epochs": 12, "extended": ("485:6",)}).to_yaml()
    )
    assert make_config({"recipe": path, "data_dir": "elsewhere"}).extended == ()


def test_what_a_run_chose_for_its_model_is_chosen_anew_for_another_one(tmp_path):
    config = make_config({"recipe": "auto", "data": "digits"})
    path = tmp_path / "config.yaml"
    chosen = {name: setting_fields()[name].default for name in config.undecided}
    chosen |= {"model": "resnet18d", "optimizer": "adamw", "weight_decay": 0.05, "lr_max": 1e-3, "lr_min": 1e-5}
    path.write_text(config.replace(**chosen, optimizer_args={"eps": 1e-6}).to_yaml())
    same = make_config({"recipe": str(path), "model": "resnet18d"})
    assert not same.undecided and (same.optimizer, same.lr_max) == ("adamw", 1e-3)
    other = make_config({"recipe": str(path), "model": "custom_resnet"})
    assert other.undecided == {"optimizer", "weight_decay", "lr_min", "lr_max", "head_lr_scale"}
    assert other.optimizer_args == {} and other.batch_size == same.batch_size
    given = make_config({"recipe": str(path), "model": "custom_resnet", "lr_max": 0.1, "optimizer": "sgd"})
    assert given.undecided == {"weight_decay", "lr_min", "head_lr_scale"} and given.lr_max == 0.1


def test_rates_that_a_recipe_leaves_to_the_data_are_left_to_them_with_another_model_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: auto\nmodel: resnet18\n")
    assert {"lr_max", "lr_min"} <= make_config({"recipe": str(path), "model": "resnet34"}).undecided


def test_the_weights_of_a_recipe_over_auto_name_the_model(tmp_path):
    weights = tmp_path / "other/config.yaml"
    weights.parent.mkdir()
    weights.write_text(make_config({"model": "resnet18", "model_args": {}}).to_yaml())
    path = tmp_path / "mine.yaml"
    path.write_text(f"recipe: auto\ninit: {weights.parent}\n")
    assert make_config({"recipe": str(path)}).model == "resnet18"
    path.write_text(f"recipe: auto\ninit: {weights.parent}\nmodel: Auto\n")
    assert make_config({"recipe": str(path)}).model == "resnet18"
    path.write_text(f"recipe: auto\ninit: {weights.parent}\nmodel: resnet34\n")
    assert make_config({"recipe": str(path)}).model == "resnet34"


@pytest.mark.parametrize(
    ("settings", "is_decayed"),
    [({"pretrained": True}, True), ({"pretrained": "true"}, True), ({"init": "w.pth"}, True), ({}, None)],
)
def test_a_run_from_before_there_was_bias_decay_decays_all_parameters_and_keeps_its_name(
    tmp_path, settings, is_decayed
):
    path = tmp_path / "config.yaml"
    values = make_config({"model": "resnet18", **settings}).to_dict()
    del values["bias_decay"]
    path.write_text(dump_yaml(values))
    stored = read_stored_config(path)
    assert stored.bias_decay is is_decayed and stored.decays_biases
    assert make_config({"recipe": str(path)}).replace(recipe=stored.recipe) == stored
    assert "bias_decay" not in stored.affecting_results()  # as before there was the setting
    assert stored.digest() == Config(**values, bias_decay=True).digest()
    assert (Config(**values).digest() == stored.digest()) == Config(**values).decays_biases


def test_a_recipe_without_bias_decay_has_that_of_today(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: resnet18\npretrained: true\n")
    assert not make_config({"recipe": str(path)}).decays_biases


def test_a_momentum_of_zero_contradicts_nothing_while_the_optimizer_is_open():
    assert make_config({"recipe": "auto", "momentum": 0}).momentum == 0
    with pytest.raises(UsageError, match="set --nesterov False"):
        make_config({"recipe": "auto", "momentum": 0, "optimizer": "sgd"})


def test_runs_are_compared_from_an_epoch_that_is_known():
    with pytest.raises(UsageError, match=r"epochs=auto.*give a number of epochs"):
        first_comparison(make_config({"recipe": "auto"}))
    assert first_comparison(make_config({"recipe": "auto", "epochs": 20})) == 12  # the peak is at 4
    assert first_comparison(make_config({"recipe": "auto", "epochs": 20, "peak_epoch": 10})) == 15
    assert first_comparison(make_config({"recipe": "auto", "epochs": 20, "schedule": "constant"})) == 10


def test_the_weights_that_a_recipe_file_names_replace_those_of_its_base(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: finetune\ninit: weights.pth\n")
    values = read_recipe(str(path))
    assert values["init"] == "weights.pth" and not values.get("pretrained")
    path.write_text("recipe: finetune\nepochs: 3\n")
    assert read_recipe(str(path))["pretrained"] is True


@pytest.mark.parametrize("epochs", [2, 3, 10, 50])
def test_the_peak_of_another_length_stays_behind_the_epochs_of_the_classifier_alone(epochs):
    stored = {"epochs": 5, "freeze_epochs": 1, "peak_epoch": peak_of(5, 1)}
    assert scaled_schedule(stored, (), 5, epochs)["peak_epoch"] == pytest.approx(peak_of(epochs, 1))
    assert scaled_schedule({**stored, "freeze_epochs": 0}, (), 5, epochs)["peak_epoch"] == pytest.approx(
        1.8 * epochs / 5
    )


def test_two_settings_of_lrmin_are_refused_unless_they_agree():
    assert make_config({"lr_max": 0.1, "lr_min": 0.05, "lr_min_ratio": 0.5}).lr_min == 0.05
    with pytest.raises(UsageError, match=r"lr_min=0.01 and lr_min_ratio=0.5 both give LRMIN; keep one of them"):
        make_config({"lr_max": 0.1, "lr_min": 0.01, "lr_min_ratio": 0.5})


def save_facts(folder, **facts):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_json(folder / "checkpoints/model.json", facts)
    return str(folder)


def test_the_model_of_weights_brings_its_plug_ins_beside_those_of_the_recipe(tmp_path):
    init = save_facts(tmp_path / "run", config={"model": "resnet18", "plugin": ["second"]})
    path = tmp_path / "mine.yaml"
    path.write_text("plugin: [first, second]\n")
    config = make_config({"recipe": str(path), "init": init})
    assert (config.model, config.plugin) == ("resnet18", ("first", "second"))


def test_the_model_of_weights_from_a_folder_or_the_hub_is_built_by_its_architecture(tmp_path):
    architecture = {"name": "resnet18", "args": {"global_pool": "max", "num_classes": 3}}
    settings = {"model": "local-dir:/gone", "model_args": {"drop_rate": 0.1}}
    init = save_facts(tmp_path / "run", config=settings, architecture=architecture)
    config = make_config({"init": init})
    # The number of classes is that of the data.
    assert (config.model, config.model_args) == ("resnet18", {"global_pool": "max", "drop_rate": 0.1})


def test_weights_whose_model_makes_no_sense_are_named_with_the_remedy(tmp_path):
    init = save_facts(tmp_path / "run", config={"model": "a\x1b[31m"})
    with pytest.raises(UsageError, match=r"init='.*run' names a model that makes no sense \(.*\); set --model"):
        make_config({"init": init})
    assert make_config({"init": init, "model": "resnet18"}).model == "resnet18"
