"""Settings as words: every form in which W&B's agent passes parameters on is the same settings."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.recipe import make_config
from harness.config.settings import Config, coerce
from harness.config.words import read_words, settings_of, ungrouped, without_groups
from harness.utils.errors import UsageError
from tests.support.commands import command

DRAWN = st.fixed_dictionaries(
    {
        "lr_max": st.floats(0.01, 1.0),
        "flip": st.booleans(),
        "epochs": st.integers(5, 90),
        "optimizer": st.sampled_from(["sgd", "adamw"]),
        "model_args": st.dictionaries(st.sampled_from(["width", "depth"]), st.integers(1, 64)),
    }
)


@pytest.mark.slow
@given(DRAWN, st.sampled_from(["--{}={}", "{}={}", "+{}={}", "++{}={}"]))
def test_each_form_of_the_agents_macros_is_the_same_settings(values, form):
    words = [form.format(key, value) for key, value in values.items()]
    expected = make_config(values)
    assert make_config(read_words(words)) == expected
    assert make_config(read_words([json.dumps(values)])) == expected
    spaced = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    assert make_config(read_words(spaced)) == expected


def test_a_file_of_parameters_is_read_and_may_name_no_code(tmp_path, monkeypatch):
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"LRMAX": 0.2, "optim": {"wd": 1e-05}}))
    assert read_words([str(file), "--seed=3"]) == {"lr_max": 0.2, "weight_decay": 1e-05, "seed": "3"}
    file.write_text(json.dumps({"plugin": "evil", "seed": 1}))
    monkeypatch.delenv("WANDB_SWEEP_PARAM_PATH", raising=False)
    with pytest.raises(UsageError, match="--plugin NAME"):
        read_words([str(file)])
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "x")  # the agent's own file names it too
    assert read_words([str(file)]) == {"seed": 1}


def test_groups_are_the_settings_in_them_and_a_name_may_come_once():
    assert ungrouped({"a": {"b": {"lr-max": 1}}, "seed": 2}) == {"lr-max": 1, "seed": 2}
    assert ungrouped({"a": "{'wd': 0.5}"}) == {"wd": 0.5}
    assert ungrouped({"model_args": {"width": 3}}) == {"model_args": {"width": 3}}
    assert make_config({"optim": {"wd": 0.5}}) == Config(**make_config({"weight_decay": 0.5}).to_dict())
    for wrong in ({"a": {"seed": 1}, "b": {"seed": 2}}, {"a": {"seed": 1}, "seed": 1}):
        with pytest.raises(UsageError, match="given twice"):
            ungrouped(wrong)
    with pytest.raises(UsageError, match="lr_max is given twice; keep one of them"):  # in two spellings
        settings_of({"lr": 1, "a": {"LRMAX": 2}})
    deep = {"seed": 1}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(UsageError, match="deeper"):
        ungrouped(deep)


def test_options_that_are_groups_become_the_options_in_them():
    line = [
        "run",
        "--optim={'wd': 0.5, 'flip': False}",
        "--model_args={'width': 4}",
        "--o",
        "{'seed': 1}",
        "--epochs",
        "3",
    ]
    expected = ["run", "--wd=0.5", "--flip=False", "--model_args={'width': 4}", "--seed=1", "--epochs", "3"]
    assert without_groups(line) == expected
    assert without_groups(["--x={broken"]) == ["--x={broken"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits"], "unexpected argument 'digits'"),
        (["sede=1"], "did you mean 'seed'"),
        (["--epochs"], "its value is missing"),
        (["epochs=1", "--epochs=2"], "given twice"),
        (["{not: json"], "need a JSON object"),
        (["missing.json"], "unexpected argument"),
    ],
)
def test_words_that_are_no_settings_are_refused(words, message):
    with pytest.raises(UsageError) as refused:
        read_words(words)
    assert message in str(refused.value)


def test_switches_letters_and_their_negation_are_read_as_the_command_line_reads_them():
    assert read_words(["--flip", "--no-nesterov", "-b32", "-c", "digits", "--tta", "--compile", "false"]) == {
        "flip": "true", "nesterov": "false", "batch_size": "32", "recipe": "digits", "tta": "mirror", "compile": "false",
    }  # fmt: skip
    assert coerce("flip", read_words(["--flip"])["flip"]) is True


def test_the_command_line_takes_settings_as_words_and_as_groups_and_still_refuses_a_stray_word(tmp_path):
    common = ["--wandb=disabled", "--output", "runs", "--name", "x"]
    refused = command("run", "lr_max=0.1", "--optim={'epochs': -3}", *common, cwd=tmp_path, check=2)
    assert "epochs=-3" in refused.stderr
    refused = command("run", "++epochs=-4", *common, cwd=tmp_path, check=2)
    assert "epochs=-4" in refused.stderr
    assert "--recipe digits" in command("run", "digits", *common, cwd=tmp_path, check=2).stderr
    assert "need True or False" in command("run", "--flip", "maybe", *common, cwd=tmp_path, check=2).stderr
