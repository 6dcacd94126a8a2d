"""The settings of losses, sampling and model rates in recipes, on the command line, and under their names elsewhere."""

import pytest

from harness.config.recipe import make_config
from harness.config.settings import Config, canonical_name
from harness.utils.errors import UsageError


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("class_weight", "class_weights"),
        ("criterion", "loss"),
        ("loss_fn", "loss"),
        ("sampler", "sampling"),
        ("weighted-sampler", "sampling"),
        ("drop_rate", "drop"),
        ("dropout", "drop"),
        ("drop-path-rate", "drop_path"),
        ("stochastic_depth", "drop_path"),
        ("grad-checkpointing", "gradient_checkpointing"),
        ("eval_metric", "select_by"),
        ("monitor", "select_by"),
    ],
)
def test_the_name_of_a_setting_elsewhere_leads_to_it(name, setting):
    with pytest.raises(UsageError, match=f"did you mean '{setting}'"):
        canonical_name(name)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("bce_loss", "use --loss bce"),
        ("focal", "use --loss focal"),
        ("bce-target-thresh", "--loss-args target_threshold=0.2"),
        ("bce-sum", "--loss-args sum_classes=true"),
        ("pos_weight", "--loss-args pos_weight=2"),
        ("balanced", "use --class-weights balanced, or --sampling balanced"),
        ("jsd", "use --loss jsd with --aug-splits 3"),
    ],
)
def test_what_has_another_form_here_leads_to_it(name, remedy):
    with pytest.raises(UsageError, match=remedy):
        canonical_name(name)


def test_the_arguments_of_a_recipes_loss_are_added_to_and_go_with_it(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("loss: bce\nloss_args: {sum_classes: true}\nclass_weights: {cat: 2}\n")
    assert make_config({}, str(recipe)).class_weights == {"cat": 2.0}
    assert make_config({"loss_args": "pos_weight=2"}, str(recipe)).loss_args == {"sum_classes": True, "pos_weight": 2}
    assert make_config({"loss": "focal"}, str(recipe)).loss_args == {}


def test_the_forms_in_which_a_sweep_passes_weights_on_are_the_same():
    for given in ("{'cat': 2, 'dog': 1}", "cat=2,dog=1", {"cat": 2, "dog": 1}):
        assert make_config({"class_weights": given}).class_weights == {"cat": 2.0, "dog": 1.0}
    for given in ("[1, 2.5]", "1,2.5", [1, 2.5], (1, 2.5)):
        assert make_config({"class_weights": given}).class_weights == (1.0, 2.5)


def test_settings_of_losses_change_the_name_of_a_run_and_their_defaults_do_not():
    plain = Config()
    for settings in ({"loss": "focal"}, {"class_weights": "balanced"}, {"sampling": "balanced"}, {"select_by": "loss"}):
        assert Config(**settings).digest() != plain.digest()
    assert (
        not {"loss", "loss_args", "class_weights", "sampling", "select_by", "drop"} & plain.affecting_results().keys()
    )
