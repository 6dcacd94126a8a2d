"""The sweep file: what is read, and what is refused in one line before any trial."""

import ast
import copy
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import yaml_io
from harness.sweep import command, schema
from harness.sweep.metric import OTHER_METRICS, Metric
from harness.tracking.journal import read_journal
from harness.utils.errors import UsageError
from tests.support.commands import command as harness

GOOD = {
    "method": "random",
    "metric": {"name": "best/val_acc", "goal": "maximize"},
    "command": ["${env}", "harness", "run", "${args}"],
    "run_cap": 4,
    "parameters": {
        "recipe": {"value": "digits"},
        "val_fraction": {"value": 0.2},
        "lr_max": {"distribution": "log_uniform_values", "min": 0.01, "max": 0.1},
        "lr_min": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.01},
        "model_args": {"parameters": {"width": {"values": [4, 8]}}},
    },
}


def changed(**changes):
    """Return GOOD with other values; `__` stands between the keys of nested mappings, and None deletes a key."""
    document = copy.deepcopy(GOOD)
    for name, value in changes.items():
        level = document
        *path, key = name.split("__")
        for part in path:
            level = level[part]
        if value is None:
            level.pop(key, None)
        else:
            level[key] = value
    return document


def parse(document, **overrides):
    return schema.parse_sweep(document, "x", overrides)


def test_the_shipped_sweeps_are_valid():
    files = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
    assert {file.stem for file in files} >= {"lr", "grid", "digits"}
    for file in files:
        sweep = schema.read_sweep_file(file)
        assert sweep.metric.name.endswith("val_acc")
        if sweep.method != "grid":
            for u in (
                1e-9,
                0.5,
                1 - 1e-9,
            ):  # at the highest LRMIN and the lowest LRMAX, too: lr_min <= lr_max for every pair
                quantiles = {each.name: 1 - u if each.name == "lr_min" else u for each in sweep.searched}
                values = {each.name: each.at(quantiles[each.name]) for each in sweep.searched}
                assert sweep.config(values).test is False


def test_no_shipped_sweep_compares_runs_before_the_peak_of_the_learning_rate():
    for file in sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml")):
        sweep = schema.read_sweep_file(file)
        config = sweep.config({each.name: each.at(0.5) for each in sweep.searched})
        peaks = [each.spec.get("values", [0])[-1] for each in sweep.searched if each.name == "peak_epoch"]
        bands = () if sweep.hyperband is None else sweep.hyperband.bands
        assert all(band > max([config.peak_epoch, *peaks]) for band in bands), file
        assert not bands or bands[0] < config.epochs, f"{file}: nothing would be stopped"
    assert schema.read_sweep_file(Path(__file__).parents[2] / "sweeps/digits.yaml").hyperband is None


def test_the_parameters_of_a_trial_are_nested_as_the_file_has_them():
    sweep = parse(GOOD)
    values = {"lr_max": 0.05, "lr_min": 0.005, "model_args.width": 8}
    assert sweep.trial_parameters(values)["model_args"] == {"width": 8}
    config = sweep.config(values)
    assert (config.lr_max, config.lr_min, config.model_args, config.recipe) == (0.05, 0.005, {"width": 8}, "digits")


def test_an_option_wins_over_a_constant_and_is_refused_for_a_searched_parameter():
    sweep = parse(GOOD, epochs=2, VAL_FRACTION="0.3")
    assert sweep.config({"lr_max": 0.05, "lr_min": 0.005, "model_args.width": 8}).val_fraction == 0.3
    assert sweep.digest() != parse(GOOD).digest()
    assert parse(changed(run_cap=9, name="other"), data_dir="elsewhere").digest() == parse(GOOD).digest()
    with pytest.raises(UsageError, match="lr_max is searched"):
        parse(GOOD, LRMAX=0.1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (changed(method="bayesian"), "did you mean 'bayes'"),
        (changed(method=None), "need one of grid, random, bayes"),
        (changed(metod="grid"), "did you mean 'method'"),
        (changed(parameters__lr_maxx={"value": 1.0}), "did you mean 'lr_max'"),
        (changed(parameters__LRMAX={"value": 0.1}), "one setting"),
        (changed(parameters__epochs={"values": [1, -3]}), "parameters.epochs: epochs=-3: need epochs >= 0"),
        (changed(parameters__momentum={"min": 0.5, "max": 1.5}), "need momentum < 1"),
        (changed(parameters__epochs={"parameters": {"a": {"value": 1}}}), "only model_args has parameters"),
        (changed(parameters={}), "need a mapping of parameters"),
        (changed(parameters__lr_min={"value": 0.5}), "no trial could run: need lr_min <= lr_max"),
        (changed(metric__name="val/accuracy"), "did you mean 'val/acc'"),
        (changed(metric__name="test/acc", parameters__val_fraction=None), "would choose by the test set"),
        (changed(parameters__val_fraction=None), "add val_fraction"),
        (changed(metric=None, method="bayes"), "metric: need `name:` and `goal:`"),
        (changed(metric__goal="max"), "did you mean 'maximize'"),
        (changed(metric__target="high"), "need a number"),
        (changed(metrics=[{"name": "val/acc"}]), "give one `metric:`"),
        (changed(command=["python", "train.py", "${args}"]), "does not start `harness run`"),
        (changed(command=None, program="train.py"), "does not start `harness run`"),
        (changed(command=["harness", "run"]), "${args} is missing"),
        (changed(command=["harness", "run", "${args}", "--epochs", "3"]), "move it to parameters"),
        (changed(command=["/no/such/harness", "run", "${args}"]), "there is no program"),
        (changed(parameters__lr_max={"distribution": ["uniform"], "min": 0.1, "max": 0.2}), "there is no distribution"),
        (changed(command=["harness", "run", "${argz}"]), "did you mean '${args}'"),
        (changed(command=["harness", "run", "${args_json}"]), "cannot read"),
        (changed(command="harness run"), "need a list of words"),
        (changed(run_cap=0), "run_cap=0"),
        (changed(early_terminate={"type": "median"}), "need hyperband"),
        (changed(method="custom"), "needs a `scheduler:` block"),
        (changed(scheduler={"engine": "ax"}, method="custom"), "not supported"),
        (changed(scheduler={"engine": "optuna", "source": "mine.py"}, method="custom"), "runs your own Python code"),
        (changed(scheduler={"engine": "optuna"}), "goes with custom"),
        (changed(method="grid"), "a grid takes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_sweep_is_refused_in_one_line(document, message):
    with pytest.raises(UsageError) as refused:
        parse(document)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_grid_or_a_random_search_needs_no_metric():
    assert parse(changed(metric=None)).metric == Metric("best/val_acc", True)


def test_the_optuna_scheduler_is_the_bayesian_search():
    assert parse(changed(method="custom", scheduler={"engine": "optuna"})).method == "bayes"
    assert parse(changed(method="random", scheduler={"engine": "wandb"})).method == "random"


def test_a_number_that_wandb_would_read_as_text_is_refused(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml_io.dump_yaml(GOOD).replace("min: 0.01", "min: 1e-2"))
    with pytest.raises(UsageError, match=r"lr_max.min: W&B reads 1e-2 as text; write 1\.0e-2"):
        schema.read_sweep_file(file)
    file.write_text(yaml_io.dump_yaml(GOOD).replace("value: 0.2", "value: 2e-1"))
    schema.read_sweep_file(file)  # passed on as text it is the same number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [grid", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['touch canary']", "the tag"),
        ("a: &x 1\nb: *x", "aliases"),
        ("- 1", "need one mapping"),
        ("method: random\nmethod: grid", "given twice"),
    ],
)
def test_a_bad_file_ends_with_status_2_before_any_trial(tmp_path, text, message):
    (tmp_path / "sweep.yaml").write_text(text)
    done = harness("sweep", "sweep.yaml", cwd=tmp_path, check=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.yaml"]


def test_a_search_that_would_never_end_is_refused(tmp_path):
    (tmp_path / "sweep.yaml").write_text(yaml_io.dump_yaml(changed(run_cap=None)))
    done = harness("sweep", "sweep.yaml", cwd=tmp_path, check=2)
    assert "give --count N, or run_cap: N" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.yaml"]


VALUES = {
    "a": 1,
    "b": 0.5,
    "c": "x y",
    "d": True,
    "e": False,
    "f": [1, "z"],
    "g": {"mom": 0.9},
    "h": None,
    "LRMAX": 1e-05,
}


@pytest.mark.parametrize("macro", ["${args}", "${args_no_equals}", "${args_no_boolean_flags}"])
def test_the_command_line_is_the_one_that_wandbs_agent_makes(macro):
    template = ["${env}", "${interpreter}", "-m", "harness", "run", macro, "--notes", "${envvar:WHY}-${envvar:NOT_SET}"]
    code = (
        "import os; os.environ['WHY']='because'\n"
        "from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args\n"
        f"values={VALUES!r}\n"
        "args=create_sweep_command_args({'args': {key: {'value': value} for key, value in values.items()}})\n"
        f"words=create_sweep_command({template!r})\n"
        "out=[]\n"
        "for word in words:\n"
        "    key=word[2:-1] if word.startswith('${') and word.endswith('}') else ''\n"
        "    out += args[key] if key in args else ['python'] if key == 'interpreter' else [] if key == 'env' else [word]\n"
        "print(repr([str(word) for word in out]))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    theirs = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    ours = command.fill(template, VALUES, {"WHY": "because"})
    assert ours == [sys.executable if part == "python" else part for part in theirs if part != "/usr/bin/env"]


def test_harness_is_started_from_the_environment_that_runs_the_sweep():
    template = command.check(["${env}", "harness", "run", "${args}"], None)
    assert command.fill(template, {"a": 1}, {}) == [sys.executable, "-m", "harness", "run", "--a=1"]
    assert command.is_plain(command.check(GOOD["command"], None))


@pytest.mark.parametrize(
    ("start", "may_be_forked"),
    [
        (["${env}", "${interpreter}", "-m", "harness", "run"], True),
        (["${interpreter}", "-m", "harness", "run"], True),
        (["python", "-m", "harness", "run"], False),
        (["env", "OMP_NUM_THREADS=1", "harness", "run"], False),
    ],
)
def test_a_command_that_is_nothing_but_harness_run_may_be_forked(start, may_be_forked):
    parts = command.check([*start, "${args}"], None)
    assert command.is_plain(parts) == may_be_forked
    filled = command.fill(parts, {"a": 1}, {})
    assert filled[-4:] == ["-m", "harness", "run", "--a=1"] if "-m" in start else filled[-2:] == ["run", "--a=1"]


def test_a_sweep_begun_with_the_former_start_of_the_shipped_sweeps_is_the_same_search():
    digests = {parse(changed(command=list(start))).digest() for start in (command.START_RUN, command.FORMER_START_RUN)}
    assert len(digests) == 1
    assert parse(changed(command=["harness", "run", "${args}"])).digest() not in digests


def test_the_metrics_that_a_sweep_may_name_are_those_that_a_run_logs(finished):
    _, folder = finished
    logged = {key for key in read_journal(folder).records[0].scalars() if not key.startswith("memory/")}
    known = {f"{split}/{key}" for split in ("train", "test") for key in ("acc", "loss")} | {"best/test_acc"}
    assert logged == known | set(OTHER_METRICS)
