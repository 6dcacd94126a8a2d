"""The drawn parameters of a sweep and the settings of a run; the processes that use them are in tests/sweep."""

import json

import pytest

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.config.sweep_values import complete_options, differing_values, with_sweep_values
from harness.utils.errors import UsageError


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Return a function that writes parameters as W&B's agent does."""

    def write(**parameters):
        path = tmp_path / "parameters.yaml"
        path.write_text(json.dumps({name: {"value": value} for name, value in parameters.items()}))
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep001")
        monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))

    return write


def test_drawn_arguments_of_the_model_are_added_to_those_of_the_recipe(draw):
    recipe = make_config({}, "custom-resnet")
    draw(model_args={"width": 8}, epochs=12)
    config = with_sweep_values(recipe, lambda text: None)
    same = make_config({"model_args": {"width": 8}, "epochs": 12}, "custom-resnet")
    assert config.model_args == {**recipe.model_args, "width": 8} == same.model_args
    assert config.peak_epoch == same.peak_epoch
    assert with_sweep_values(config, pytest.fail) == config


def test_drawn_arguments_of_the_optimizer_are_added_to_those_of_the_recipe_too(draw):
    config = make_config({"optimizer": "adamw", "optimizer_args": {"eps": 1e-6}})
    draw(optimizer_args="amsgrad=True")
    assert with_sweep_values(config, lambda text: None).optimizer_args == {"eps": 1e-6, "amsgrad": True}


def test_a_trial_has_the_drawn_arguments_if_it_has_others_too_and_not_if_one_differs():
    config = make_config({"model_args": {"width": 8}}, "custom-resnet")
    assert differing_values({"model_args": {"width": 8}}, config) == []
    assert differing_values({"model_args": "width=8,head_init_scale=0.125"}, config) == []
    assert len(differing_values({"model_args": {"width": 9}}, config)) == 1
    assert len(differing_values({"model_args": {"order": "conv-bn-relu-pool"}}, config)) == 1


def test_values_that_a_run_resolves_by_itself_are_no_difference():
    config = Config(precision="bf16", log_every=1)
    assert differing_values({"precision": "auto", "log_every": 0}, config) == []
    assert differing_values({"precision": "fp32", "log_every": 5}, config) == [
        "precision='bf16' instead of 'fp32'",
        "log_every=1 instead of 5",
    ]


@pytest.mark.parametrize("epochs", [10, "auto", "Auto"])
def test_a_given_peak_stays_where_the_length_that_it_belongs_to_was_or_becomes_open(draw, epochs):
    recipe = make_config({"recipe": "auto", "peak_epoch": 3, "epochs": 24 if epochs != 10 else "auto"})
    draw(epochs=epochs)
    config = with_sweep_values(recipe, lambda text: None)
    assert config.peak_epoch == 3 and config.to_dict()["epochs"] == (10 if epochs == 10 else "auto")


def test_the_command_line_of_a_trial_gets_what_it_lacks_and_may_not_differ_from_what_the_sweep_records(draw):
    draw(lr_max=0.1, tta=False)
    assert complete_options({"lr_max": "1e-1", "seed": 3}) == {"lr_max": "1e-1", "seed": 3, "tta": False}
    with pytest.raises(UsageError, match=r"lr_max: the sweep has 0.1 and the command line 0.2; W&B would record"):
        complete_options({"lr_max": 0.2})


def test_a_parameter_that_is_no_setting_is_refused_unless_the_callers_own_code_may_apply_it(draw):
    draw(lr_max=0.1, hidden_units=3)
    with pytest.raises(UsageError, match="the sweep's parameter 'hidden_units' would have no effect"):
        complete_options({})
    lines = []
    assert with_sweep_values(make_config({}, "custom-resnet"), lines.append, is_own=True).lr_max == 0.1
    assert lines[0] == "The sweep's parameter 'hidden_units' is no setting of harness; only your own code can apply it."
    assert lines[1:] == ["From the sweep: lr_max=0.1"]


def test_a_drawn_recipe_needs_settings_that_were_made_from_it(draw):
    draw(recipe="digits")
    with pytest.raises(
        UsageError, match="the sweep has recipe='digits', and the settings were made from 'custom-resnet'"
    ):
        with_sweep_values(make_config({}, "custom-resnet"), pytest.fail)


def test_a_drawn_lrmin_replaces_the_ratio_that_would_set_it(draw):
    recipe = make_config({"lr_min_ratio": 0.1, "lr_max": 0.5})
    draw(lr_min=0.002)
    config = with_sweep_values(recipe, lambda text: None)
    assert (config.lr_min, config.lr_max) == (0.002, 0.5)


def test_a_file_of_the_agent_that_cannot_be_read_is_named(draw, tmp_path):
    draw()
    (tmp_path / "parameters.yaml").write_text("{")
    with pytest.raises(UsageError, match=r"the parameters of the sweep cannot be read: .*parameters\.yaml"):
        complete_options({})
