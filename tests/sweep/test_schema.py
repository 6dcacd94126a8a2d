"""The sweep file: what is read, and what is refused in one line before any trial."""

import ast
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.config import yaml_io
from harness.config.settings import Config, coerce
from harness.reporting.html.sweep_reader import _document as read_document
from harness.sweep import command, schema
from harness.sweep.metric import OTHER_METRICS, Metric, check_metric
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


CUSTOM = {"method": "custom", "scheduler": {"engine": "optuna"}, "metric": None}


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


@pytest.mark.parametrize(
    "constants",
    [
        {"parameters__model_args": {"value": "width=16,head_init_scale=0.125"}},
        {"parameters__model_args": {"parameters": {"width": {"value": 16}, "head_init_scale": {"value": 0.125}}}},
        {"parameters__model_args": None, "command": ["${env}", "harness", "run", "--model-args=width=16,head_init_scale=0.125", "${args}"]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("given", ["width=8", {"width": 8}])
def test_arguments_on_the_command_line_are_added_to_those_of_the_file_as_to_those_of_a_recipe(constants, given):
    sweep = parse(changed(**constants), model_args=given)
    values = {"lr_max": 0.05, "lr_min": 0.005}
    wanted = {"width": 8, "head_init_scale": 0.125}
    assert sweep.config(values).model_args == wanted
    assert coerce("model_args", f"{sweep.overrides['model_args']}") == wanted  # as a trial is given it


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
        (changed(metric=None, method="bayes"), "bayes needs a metric, for W&B's own search too"),
        (changed(metric={"goal": "maximize"}), "metric: need `name:` and `goal:`"),
        (changed(parameters__optim={"parameters": {"weight_decai": {"value": 1}}}), "did you mean 'weight_decay'"),
        (changed(parameters__optim={"parameters": {"LRMAX": {"value": 0.1}}}), "one setting"),
        (changed(metric__goal="max"), "did you mean 'maximize'"),
        (changed(metric__target="high"), "need a number"),
        (changed(metrics=[{"name": "val/acc"}, {"name": "val/loss"}]), "metric and metrics do not go together"),
        (changed(metric=None, metrics=[{"name": "val/acc"}, {"name": "val/loss"}]), "W&B needs method: custom"),
        (changed(**CUSTOM, metrics=[{"name": "val/acc"}]), "two or more metrics"),
        (changed(**CUSTOM, metrics=[{"name": "val/acc"}, {"name": "val/acc"}]), "listed twice"),
        (changed(**CUSTOM, metrics=[{"name": "val/acc", "target": 1}, {"name": "val/loss"}]), "of one metric only"),
        (changed(**CUSTOM, metrics=[{"name": "val/acc"}, {"name": "time/epochs"}]), "did you mean 'time/epoch_s'"),
        (changed(method="custom", scheduler={"engine": "optuna", "sampler": "gp"}), "W&B has no key 'sampler'"),
        (changed(method="custom", scheduler={"engine": "optuna", "optimizer": "f"}), "need `source:`"),
        (changed(metric=None, early_terminate={"type": "hyperband", "min_iter": 3}), "early_terminate needs a metric"),
        (changed(command=["python", "train.py", "${args}"]), "does not start `harness run`"),
        (changed(command=None, program="train.py"), "does not start `harness run`"),
        (changed(command=["harness", "run", "${args}", "--val-fraction", "0.3"]), "keep one of them"),
        (changed(command=["harness", "run", "--lr-max=0.1", "${args}"]), "which parameters.lr_max gives too"),
        (changed(command=["harness", "run", "${args}", "--seeds", "3"]), "no setting 'seeds'"),
        (changed(command=["harness", "run", "${args}", "--epochs"]), "its value is missing"),
        (changed(command=["${env}", "A=1", "no-such-program", "harness", "run", "${args}"]), "there is no program"),
        (changed(command=["bash", "-c", "echo $@", "${args}"]), "does not start `harness run`"),
        (changed(command=["/no/such/harness", "run", "${args}"]), "there is no program"),
        (changed(parameters__lr_max={"distribution": ["uniform"], "min": 0.1, "max": 0.2}), "there is no distribution"),
        (changed(command=["harness", "run", "${argz}"]), "did you mean '${args}'"),
        (changed(command="harness run"), "need a list of words"),
        (changed(run_cap=0), "run_cap=0"),
        (changed(run_cap=2.5), "run_cap=2.5"),
        (changed(early_terminate={"type": "median"}), "need hyperband"),
        (changed(method="custom"), "needs a `scheduler:` block"),
        (changed(scheduler={"engine": "ax"}, method="custom"), "not supported"),
        (changed(scheduler={"engine": "optuna"}), "goes with custom"),
        (changed(method="grid"), "a grid takes"),
        (changed(early_terminate=5), "early_terminate: need a mapping with `type: hyperband` and `min_iter:`, got 5"),
        (
            changed(early_terminate={"type": "hyperband", "min_iter": 1, "strict": "yes"}),
            "early_terminate: strict='yes': need true or false",
        ),
        (
            changed(early_terminate={"type": "hyperband", "max_iter": 2, "s": 3}),
            "max_iter=2 gives no band with eta=3; raise max_iter, or lower eta",
        ),
        (changed(metric=None, method="custom", scheduler={"engine": "optuna"}), "scheduler: it needs a metric: add"),
        (changed(metric={"name": "best/val_acc", "gaol": "maximize"}), "unknown key 'gaol' (did you mean 'goal'?)"),
        (
            changed(metric__name="best/test_acc"),
            "metric: best/test_acc is not logged with a validation split; use best/val_acc",
        ),
        (
            changed(
                method="grid",
                parameters__lr_max={"values": [0.1 + n / 1e4 for n in range(2000)]},
                parameters__lr_min={"values": [0.01 + n / 1e6 for n in range(2000)]},
            ),
            "points; take fewer values, or set method: random",
        ),
        (
            changed(
                method="custom",
                metric__name="test/acc",
                scheduler={"engine": "optuna", "source": "x.py", "search_space": "space"},
            ),
            "test/acc would choose by the test set; use a metric of validation such as best/val_acc, or give",
        ),
        (changed(parameters__lr_max={"values": ["find", 0.1]}), "lr_max: `find` cannot be searched over; give numbers"),
        (changed(method="custom", scheduler="optuna"), "scheduler: need `engine: optuna` or `engine: wandb`"),
        (
            changed(
                method="custom", scheduler={"engine": "optuna"}, early_terminate={"type": "hyperband", "min_iter": 3}
            ),
            "scheduler and early_terminate do not go together in W&B; leave one out",
        ),
        (
            changed(method="custom", scheduler={"engine": "optuna", "source": 5}),
            "scheduler: source, optimizer and search_space are names",
        ),
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
        ("a: &x [1, *x]", "inside what it repeats"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n"
                for old, new in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "at most 20,000 are read",
        ),
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


ANCHORED = """
method: grid
metric: {name: best/val_acc, goal: maximize}
command: ["${env}", harness, run, "${args}"]
parameters:
  recipe: {value: digits}
  val_fraction: {value: 0.2}
  lr_max: &rates {values: [0.1, 0.2]}
  weight_decay: *rates
  model_args: {parameters: {width: &width {values: [4, 8]}, deep: {<<: *width}}}
"""


def test_aliases_and_merge_keys_mean_what_wandbs_reader_makes_of_them(tmp_path):
    (tmp_path / "sweep.yaml").write_text(ANCHORED)
    written_out = yaml.safe_load(ANCHORED)
    (tmp_path / "plain.yaml").write_text(yaml_io.dump_yaml(written_out))
    sweep = schema.read_sweep_file(tmp_path / "sweep.yaml")
    assert sweep.document == written_out
    assert sweep.digest() == schema.read_sweep_file(tmp_path / "plain.yaml").digest()
    assert len(sweep.grid()) == 2**4
    assert read_document(tmp_path / "sweep.yaml", []) == written_out  # the report's reader


@pytest.mark.parametrize(
    ("line", "value"),
    [("flip: {value: no}", False), ("flip: {values: [on, off]}", True), ("seed: {value: 1_000}", 1000),
     ("seed: {value: 0x10}", 16), ("cutout: {value: 1:30}", 90), ("weight_decay: {value: 1e-3}", 0.001)],
)  # fmt: skip
def test_words_that_wandb_reads_as_numbers_or_booleans_are_those_here_too(tmp_path, line, value):
    (tmp_path / "sweep.yaml").write_text(yaml_io.dump_yaml(GOOD) + f"  {line}\n")
    sweep = schema.read_sweep_file(tmp_path / "sweep.yaml")
    name = line.split(":")[0]
    theirs = yaml.safe_load(line)[name]
    wanted = theirs.get("value", theirs.get("values", [None])[0])
    config = sweep.config({each.name: each.at(1e-9) for each in sweep.searched})
    assert getattr(config, name) == coerce(name, wanted) == value


@pytest.mark.parametrize(
    ("line", "message"),
    [("seed: {value: 010}", "W&B reads 10 with a leading zero as 8"), ("no: {value: 1}", "reads the key 'no' as False"),
     ("name: {value: 2020-01-01}", "as a date; put it in quotes"), ("seed: {min: 08, max: 9}", "as text; write 8"),
     ("name: {value: 2020-13-01}", "W&B cannot read it: month must be in 1..12"),
     ("name: {value: =}", "W&B cannot read it: could not determine a constructor for the tag")],
)  # fmt: skip
def test_what_wandb_reads_otherwise_is_refused_with_what_it_reads(tmp_path, line, message):
    (tmp_path / "sweep.yaml").write_text(yaml_io.dump_yaml(GOOD) + f"  {line}\n")
    with pytest.raises(UsageError) as refused:
        schema.read_sweep_file(tmp_path / "sweep.yaml")
    assert message in str(refused.value)


def test_bounds_of_two_types_are_a_uniform_range_and_what_wandbs_command_wants_is_said(tmp_path):
    mixed = changed(parameters__label_smoothing={"min": 0, "max": 0.5})
    (tmp_path / "sweep.yaml").write_text(yaml_io.dump_yaml(mixed))
    notices = []
    sweep = schema.read_sweep_file(tmp_path / "sweep.yaml", notify=notices.append)
    (parameter,) = [each for each in sweep.parameters if each.name == "label_smoothing"]
    assert (parameter.kind, parameter.at(0.25)) == ("uniform", 0.125)
    assert len(notices) == 1 and "min: 0.0, max: 0.5" in notices[0]


def test_settings_in_groups_are_the_settings_of_the_trial():
    document = changed(
        parameters__optim={
            "parameters": {"weight_decay": {"values": [1e-4]}, "deep": {"parameters": {"flip": {"value": False}}}}
        }
    )
    sweep = parse(document)
    values = {"lr_max": 0.05, "lr_min": 0.005, "model_args.width": 8, "optim.weight_decay": 1e-4}
    assert sweep.trial_parameters(values)["optim"] == {"weight_decay": 1e-4, "deep": {"flip": False}}
    config = sweep.config(values)
    assert (config.weight_decay, config.flip) == (1e-4, False)
    assert {"weight_decay", "flip", "lr_max"} <= sweep.settings
    assert parse(document, flip=True).config(values).flip is True  # an option wins over the group's constant


def test_the_words_behind_run_are_settings_of_every_trial(monkeypatch):
    monkeypatch.setenv("WHY", "because")
    words = ["--epochs=3", "--no-flip", "-b", "32", "--notes", "${envvar:WHY}", "${args}", "--cutout", "4"]
    sweep = parse(changed(command=["nice", "-n", 5, "harness", "run", *words]))
    config = sweep.config({"lr_max": 0.05, "lr_min": 0.005, "model_args.width": 8})
    assert (config.epochs, config.flip, config.batch_size, config.notes, config.cutout) == (3, False, 32, "because", 4)
    assert not command.is_plain(sweep.command)
    plain = command.check(["${env}", "${interpreter}", "-m", "harness", "run", *words], None)
    assert command.is_plain(plain)
    assert command.run_arguments(plain, {"a": 1}, {"WHY": "x"})[:8] == [
        "run", "--epochs=3", "--no-flip", "-b", "32", "--notes", "x", "--a=1"
    ]  # fmt: skip


def test_a_word_of_the_command_is_the_text_that_wandb_reads(tmp_path):
    words = ["harness", "run", "${args}", "--weight-decay", "1e-3"]  # a number to YAML 1.2, and a text to W&B
    (tmp_path / "sweep.yaml").write_text(yaml_io.dump_yaml(changed(command=words)).replace("'1e-3'", "1e-3"))
    sweep = schema.read_sweep_file(tmp_path / "sweep.yaml")
    assert sweep.command[-1] == "1e-3"
    assert sweep.config({"lr_max": 0.05, "lr_min": 0.005, "model_args.width": 8}).weight_decay == 0.001


def test_a_word_that_repeats_a_constant_of_the_file_is_no_contradiction():
    sweep = parse(changed(command=["harness", "run", "${args}", "--val-fraction", "0.20"]))
    assert sweep.config({"lr_max": 0.05, "lr_min": 0.005, "model_args.width": 8}).val_fraction == 0.2
    assert "val_fraction" not in sweep.fixed and "val_fraction" in [each.name for each in sweep.parameters]


def test_parameters_that_a_macro_does_not_pass_on_are_options_of_the_command():
    in_file = command.check(["harness", "run", "${args_json_file}"], None)
    assert command.omitted(in_file, {"lr_max": 0.1}) == []
    assert command.omitted(in_file, {"lr_max": 0.1, "plugin": "mine"}) == ["--plugin=mine"]
    assert command.fill(in_file, {"lr_max": 0.1}, {}, Path("p.json"))[-1] == "p.json"
    flags = command.check(["harness", "run", "${args_no_boolean_flags}"], None)
    assert command.omitted(flags, {"flip": False, "compile": True, "lr_max": 0}) == ["--flip=False"]


def test_a_command_without_a_macro_gives_the_parameters_as_the_agents_file_of_them_does():
    parts = command.check(["${interpreter}", "-m", "harness", "run", "--epochs=3"], None)
    assert command.omitted(parts, {"lr_max": 0.1, "flip": False}) == ["--lr_max=0.1", "--flip=False"]
    assert command.omitted(command.check(GOOD["command"], None), {"flip": False}) == []
    assert parse(changed(run_cap=4.0)).run_cap == 4


def test_a_wrapper_that_starts_harness_run_is_a_command_and_any_other_script_is_not(tmp_path):
    script = tmp_path / "train.sh"
    script.write_text('#!/bin/sh\nulimit -n 4096\nexec harness run --epochs 3 "$@"\n')
    script.chmod(0o755)
    inline = ["bash", "-c", 'exec harness run "$@"', "sh", "${args}"]
    for line in ([str(script), "${args}"], ["${env}", "A=1", "bash", str(script), "${args}"], inline):
        assert not command.is_plain(command.check(line, None))
    for content in (b'#!/bin/sh\nexec python train.py "$@"\n', b"\x7fELF\xff\xfe harness run"):  # a binary program
        script.write_bytes(content)
        with pytest.raises(UsageError, match="does not start `harness run`"):
            command.check([str(script), "${args}"], None)


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


MACROS = [macro for macro in command.MACROS if macro.startswith("${args") and macro != "${args_json_file}"]


@pytest.mark.parametrize("macro", [MACROS[0], *(pytest.param(macro, marks=pytest.mark.slow) for macro in MACROS[1:])])
def test_the_command_line_is_the_one_that_wandbs_agent_makes(macro):
    template = [
        "${env}",
        "A=1",
        "${interpreter}",
        "-m",
        "harness",
        "run",
        macro,
        "--notes",
        "${envvar:WHY}-${envvar:NOT_SET}",
    ]
    code = (
        "import os; os.environ['WHY']='because'\n"
        "from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args\n"
        f"values={VALUES!r}\n"
        "args=create_sweep_command_args({'args': {key: {'value': value} for key, value in values.items()}})\n"
        f"words=create_sweep_command({template!r})\n"
        "out=[]\n"
        "for word in words:\n"
        "    key=word[2:-1] if word.startswith('${') and word.endswith('}') else ''\n"
        "    out += args[key] if key in args else ['python'] if key == 'interpreter' else ['/usr/bin/env'] if key == 'env' else [word]\n"
        "print(repr([str(word) for word in out]))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    theirs = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    ours = command.fill(template, VALUES, {"WHY": "because"})
    assert ours == [sys.executable if part == "python" else part for part in theirs]
    assert ours[:2] == ["/usr/bin/env", "A=1"]


def test_harness_is_started_from_the_environment_that_runs_the_sweep():
    template = command.check(["${env}", "harness", "run", "${args}"], None)
    assert command.fill(template, {"a": 1}, {}) == [command.ENV, sys.executable, "-m", "harness", "run", "--a=1"]
    assert command.is_plain(command.check(GOOD["command"], None))


@pytest.mark.parametrize(
    ("start", "may_be_forked"),
    [
        (["${env}", "${interpreter}", "-m", "harness", "run"], True),
        (["${interpreter}", "-m", "harness", "run"], True),
        (["python", "-m", "harness", "run"], False),
        (["env", "OMP_NUM_THREADS=1", "harness", "run"], False),
        (["${env}", "OMP_NUM_THREADS=1", "${interpreter}", "-m", "harness", "run"], False),
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
    known |= {"test/balanced_acc", "test/f1_macro"}
    assert logged == known | set(OTHER_METRICS)
    for name in known - {"train/acc", "train/loss"}:
        check_metric(name, Config(), on_test=True)
        with pytest.raises(UsageError, match="would choose by the test set"):
            check_metric(name, Config(), on_test=False)


def test_a_sweep_may_use_a_metric_over_classes_and_the_best_value_that_select_by_logs():
    config = Config(val_fraction=0.1)
    for name in ("val/balanced_acc", "val/f1_macro", "best/val_acc"):
        check_metric(name, config, on_test=False)
        with pytest.raises(UsageError, match="needs a validation split"):
            check_metric(name, Config(), on_test=False)
    with pytest.raises(UsageError, match=r"add select_by: \{value: f1_macro\}"):
        check_metric("best/val_f1_macro", config, on_test=False)
    check_metric("best/val_f1_macro", config.replace(select_by="f1_macro"), on_test=False)
    with pytest.raises(UsageError, match="no run logs 'train/f1_macro'"):
        check_metric("train/f1_macro", config, on_test=False)
