"""The Python code of a sweep's `scheduler:`, samplers and pruners by name, and searches for several metrics."""

import importlib
import warnings
from types import SimpleNamespace

import optuna
import pytest

from harness.config.recipe import make_config
from harness.config.settings import Config
from harness.sweep import sampling, schema
from harness.sweep.run import _check_search, run_sweep
from harness.sweep.source import SourceFunctions, load_functions
from harness.sweep.study import Study
from harness.utils.errors import HarnessError, UsageError
from tests.sweep.test_schema import changed

CODE = """
import optuna

def space(trial):
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    values = {"recipe": "digits", "val_fraction": 0.2, "optimizer": optimizer}
    values["lr_max"] = trial.suggest_float("lr_max", 0.01, 0.1, log=True)
    if optimizer == "sgd":  # momentum belongs to one branch only
        values["momentum"] = trial.suggest_float("momentum", 0.5, 0.95)
    return values

def study(sweep):
    assert sweep.config["method"] == "custom" and sweep.name == "mine"
    sampler = optuna.samplers.RandomSampler(seed=5)
    pruner = optuna.pruners.ThresholdPruner(lower=0.4)
    made = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    return made, lambda search: len([t for t in search.trials if t.state.is_finished()]) >= 6

def wrong_way(sweep):
    return optuna.create_study(direction="minimize")

def prunes(trial):
    values = {"recipe": "digits", "lr_max": trial.suggest_float("lr_max", 0.01, 0.1)}
    if values["lr_max"] < 0.05:
        raise optuna.TrialPruned("too low")
    return values

def fails(trial):
    raise KeyError("no such thing")

def lists(trial):
    return [1, 2]

def early(sweep):
    raise optuna.TrialPruned

def number(sweep):
    return 5

def pair(sweep):
    return optuna.create_study(direction="maximize"), 5

def two(sweep, other):
    return None
"""

BOTH = {"metrics": [{"name": "best/val_acc", "goal": "maximize"}, {"name": "time/epoch_s", "goal": "minimize"}]}


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def custom(**block):
    document = changed(name="mine", method="custom", scheduler={"engine": "optuna", "source": "mine.py", **block})
    if "search_space" in block:
        document.pop("parameters")
    return document


def search(sweep, folder, evaluate, count=40, **options):
    study = Study(sweep, "x", f"sqlite:///{folder}/s.db", count, **options)
    while (trial := study.ask()) is not None:
        values = evaluate(trial.values)
        is_stopped = study.report(trial, [values] if isinstance(values, float) else values[:1])
        if not isinstance(values, float):
            trial.latest.update(zip([metric.name for metric in sweep.metrics], values, strict=True))
        study.tell(trial, "pruned" if is_stopped else "complete")
    return study


def test_code_of_a_sweep_runs_only_where_it_is_trusted(source):
    (source / "mine.py").write_text("open('ran', 'w')\n" + CODE)
    sweep = schema.parse_sweep(custom(optimizer="study"), "x", {})  # reading the file runs nothing
    with pytest.raises(UsageError, match="give --trust"):
        load_functions(sweep.scheduler, sweep.document, sweep.metrics, trusted=False)
    (source / "sweep.yaml").write_text(schema.yaml_io.dump_yaml(custom(optimizer="study")))
    with pytest.raises(UsageError, match="give --trust"):
        run_sweep(source / "sweep.yaml", count=1)
    assert not (source / "ran").exists()


def test_the_users_sampler_pruner_and_end_of_the_search_are_used(source):
    sweep = schema.parse_sweep(custom(optimizer="study"), "x", {})
    functions = load_functions(sweep.scheduler, sweep.document, sweep.metrics, trusted=True)
    study = search(sweep, source, lambda values: 0.3 if values["lr_max"] < 0.03 else 0.8, functions=functions)
    records = study.records()
    assert len(records) == 6
    assert [record.state for record in records] == [
        "pruned" if record.values["lr_max"] < 0.03 else "complete" for record in records
    ]
    assert {record.state for record in records} == {"pruned", "complete"}
    expected = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5)).ask()
    assert records[0].values["lr_max"] == pytest.approx(expected.suggest_float("lr_max", 0.01, 0.1, log=True))
    study.close()


def test_a_conditional_space_is_drawn_as_wandbs_own_scheduler_draws_it(source):
    sweep = schema.parse_sweep(custom(search_space="space"), "x", {})
    functions = load_functions(sweep.scheduler, sweep.document, sweep.metrics, trusted=True)
    study = search(sweep, source, lambda values: values["lr_max"], count=8, functions=functions)
    records = study.records()
    assert {record.values["optimizer"] for record in records} == {"sgd", "adamw"}
    for record in records:
        assert ("momentum" in record.values) == (record.values["optimizer"] == "sgd")
        assert sweep.config(record.values).optimizer == record.values["optimizer"]
        assert sweep.trial_parameters(record.values) == record.values  # W&B passes on nothing else
    assert sweep.searched_names([record.values for record in records])[:3] == ["recipe", "val_fraction", "optimizer"]
    study.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = importlib.import_module("wandb.sdk.sweeps.scheduler.optuna")
        info = SimpleNamespace(
            id="i", name="mine", entity="", project="", config=sweep.document, controller_run_name=""
        )
        optimizer = theirs.build_optuna_optimizer(info)
        drawn = [suggestion.config.flat_dict() for suggestion in optimizer.ask_n_runs(12)]
    assert {frozenset(values) for values in drawn} == {frozenset(record.values) for record in records}


def test_a_users_sampler_with_a_seed_draws_other_trials_after_a_restart(source):
    sweep = schema.parse_sweep(custom(optimizer="study"), "x", {})
    drawn = []
    for _ in range(2):  # two processes, one after the other
        functions = load_functions(sweep.scheduler, sweep.document, sweep.metrics, trusted=True)
        study = Study(sweep, "x", f"sqlite:///{source}/s.db", 6, functions=functions)
        trial = study.ask()
        study.report(trial, [0.5])
        study.tell(trial, "complete")
        drawn.append(trial.values["lr_max"])
        study.close()
    assert drawn[0] != drawn[1]


def test_a_requeued_trial_of_a_conditional_space_keeps_its_values(source):
    sweep = schema.parse_sweep(custom(search_space="space"), "x", {})
    functions = load_functions(sweep.scheduler, sweep.document, sweep.metrics, trusted=True)
    study = Study(sweep, "x", f"sqlite:///{source}/s.db", 3, functions=functions)
    first = study.ask()
    study.requeue(first)
    again = study.ask()
    assert (again.values, again.name) == (first.values, first.name)
    study.close()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"optimizer": "a_study"}, "did you mean 'study'"),
        ({"optimizer": "wrong_way"}, "other directions"),
        ({"optimizer": "space"}, "'space' failed"),
        ({"optimizer": "study", "source": "none.py"}, "no Python file 'none.py'"),
        ({"optimizer": "study", "source": "broken.py"}, "scheduler: broken.py: ZeroDivisionError: division by zero"),
        ({"optimizer": "early"}, "'early' raised TrialPruned, and there is no trial yet"),
        ({"optimizer": "number"}, "'number' in mine.py returned no optuna.Study, nor a pair of it and a function"),
        ({"optimizer": "pair"}, "'pair' in mine.py returned no optuna.Study"),
        ({"optimizer": "two"}, "scheduler: 'two' in mine.py must take one argument"),
    ],
)
def test_code_that_does_not_do_is_refused_before_any_trial(source, block, message):
    (source / "broken.py").write_text("1 / 0")
    sweep = schema.parse_sweep(custom(**block), "x", {})
    with pytest.raises(HarnessError) as refused:
        load_functions(sweep.scheduler, sweep.document, sweep.metrics, trusted=True)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("space", "message"),
    [("fails", "'fails' failed: KeyError"), ("lists", "search_space returned list; need a dict of parameters")],
)
def test_a_space_that_fails_ends_the_sweep_with_its_reason(source, space, message):
    sweep = schema.parse_sweep(custom(search_space=space), "x", {})
    functions = load_functions(sweep.scheduler, sweep.document, sweep.metrics, trusted=True)
    study = Study(sweep, "x", f"sqlite:///{source}/s.db", 3, functions=functions)
    with pytest.raises(HarnessError, match=message):
        study.ask()
    study.close()


@pytest.mark.parametrize("metrics", [{}, {"metric": None, **BOTH}])
def test_a_trial_that_the_users_space_prunes_counts_and_is_no_failure_as_in_optuna(source, metrics):
    document = {**custom(search_space="prunes"), **metrics}
    sweep = schema.parse_sweep({key: value for key, value in document.items() if value is not None}, "x", {})
    functions = load_functions(sweep.scheduler, sweep.document, sweep.metrics, trusted=True)
    study = search(sweep, source, lambda values: [0.5] * len(sweep.metrics), count=12, functions=functions)
    records = study.records()
    assert len(records) == 12
    assert [record.state for record in records] == [
        "pruned" if record.values["lr_max"] < 0.05 else "complete" for record in records
    ]
    assert {record.reason for record in records if record.state == "pruned"} == {"too low"}
    study.close()

    theirs = optuna.create_study(directions=["maximize"] * len(sweep.metrics))
    theirs.optimize(lambda trial: [functions.suggest(trial)["lr_max"]] * len(sweep.metrics), n_trials=12)
    states = ["PRUNED" if trial.params["lr_max"] < 0.05 else "COMPLETE" for trial in theirs.trials]
    assert [trial.state.name for trial in theirs.trials] == states


def test_a_users_grid_sampler_ends_the_search_when_its_grid_is_spent(source):
    sweep = schema.parse_sweep(changed(method="custom", scheduler={"engine": "optuna"}), "x", {})
    grid = {"lr_max": [0.02, 0.05], "lr_min": [0.002], "model_args.width": [4, 8]}
    made = optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler(grid, seed=0))
    study = search(sweep, source, lambda values: 0.5, functions=SourceFunctions(made))
    points = {(record.values["lr_max"], record.values["model_args.width"]) for record in study.records()}
    assert len(study.records()) == 4
    assert points == {(0.02, 4), (0.02, 8), (0.05, 4), (0.05, 8)}
    study.close()


@pytest.mark.parametrize("sampler", ["auto", "nsga2"])
def test_a_search_for_two_metrics_stores_both_and_finds_the_front(tmp_path, sampler):
    document = changed(method="custom", scheduler={"engine": "optuna"}, metric=None, **BOTH)
    sweep = schema.parse_sweep(document, "x", {})
    assert [metric.name for metric in sweep.metrics] == ["best/val_acc", "time/epoch_s"]
    study = search(
        sweep, tmp_path, lambda values: [values["lr_max"], values["model_args.width"] / 4], 8, sampler=sampler
    )
    records = study.records()
    assert len(records) == 8 and all(len(record.objectives) == 2 for record in records)
    best = {
        width: max((r for r in records if r.values["model_args.width"] == width), key=lambda r: r.objectives[0])
        for width in (4, 8)
    }
    front = {study.best().name, *(each.name for each in best.values() if each.objectives[1] == 1.0)}
    assert study.best().objectives[0] == max(record.objectives[0] for record in records)
    assert front <= {record.name for record in records}
    assert study.importances()["lr_max"] > 0.5
    study.close()
    again = Study(sweep, "x", f"sqlite:///{tmp_path}/s.db", 8)
    assert [record.objectives for record in again.records()] == [record.objectives for record in records]
    assert [record.history for record in again.records()] == [record.history for record in records]
    assert again.ask() is None
    again.close()


def test_a_trial_that_lacks_one_of_the_metrics_has_failed_and_says_which(tmp_path):
    document = changed(method="custom", scheduler={"engine": "optuna"}, metric=None, **BOTH)
    study = Study(schema.parse_sweep(document, "x", {}), "x", f"sqlite:///{tmp_path}/s.db", 2)
    trial = study.ask()
    study.report(trial, [0.5])
    trial.latest["best/val_acc"] = 0.5
    study.tell(trial, "complete")
    assert [(record.state, record.reason) for record in study.records()] == [("failed", "it logged no time/epoch_s")]
    study.close()


@pytest.mark.parametrize("name", [name for name in sampling.SAMPLERS if name != "auto"])
def test_each_named_sampler_is_optunas_and_draws_within_the_bounds(tmp_path, name):
    sweep = schema.parse_sweep(changed(method="bayes"), "x", {})
    study = search(sweep, tmp_path, lambda values: values["lr_max"], 5 if name in ("tpe", "gp") else 3, sampler=name)
    kinds = {"tpe": "TPE", "gp": "GP", "nsga2": "NSGAII", "qmc": "QMC", "random": "Random"}
    assert type(study._sampler()).__name__ == f"{kinds[name]}Sampler"
    values = [record.values["lr_max"] for record in study.records()]
    assert len(set(values)) >= 2  # NSGA-II takes over parts of earlier trials
    assert all(0.01 <= value <= 0.1 for value in values)
    study.close()


@pytest.mark.parametrize("name", [name for name in sampling.PRUNERS if name != "none"])
def test_no_named_pruner_stops_a_run_before_half_way_between_the_peak_and_the_end(name):
    config = make_config({"epochs": 24, "peak_epoch": 5})
    first = 15
    study = optuna.create_study(direction="maximize", pruner=sampling.make_pruner(name, config))
    stopped = []
    for number in range(24):
        trial = study.ask()
        level = (0.9 if number % 2 else 0.1) if number else 0.9
        for epoch in range(1, 25):
            trial.report(level - epoch * 1e-4, epoch)
            if trial.should_prune():
                stopped.append((level, epoch))
                break
        study.tell(trial, level, state=optuna.trial.TrialState.COMPLETE)
    assert stopped, "nothing was stopped"
    assert min(epoch for _, epoch in stopped) >= first
    assert {level for level, _ in stopped} == {0.1} or name == "asha"


@pytest.mark.parametrize(
    ("document", "options", "message"),
    [
        (changed(), ("gp", "none"), "the file has method: random"),
        (changed(method="bayes"), ("gpp", "none"), "did you mean 'gp'"),
        (changed(method="bayes", early_terminate={"type": "hyperband", "min_iter": 3}), ("auto", "asha"), "own rule"),
        (
            changed(method="custom", scheduler={"engine": "optuna"}, metric=None, **BOTH),
            ("auto", "asha"),
            "several metrics",
        ),
    ],
)
def test_a_sampler_or_pruner_that_the_file_rules_out_is_refused(document, options, message):
    with pytest.raises(UsageError) as refused:
        _check_search(schema.parse_sweep(document, "x", {}), *options)
    assert message in str(refused.value)


def test_the_best_over_seeds_leaves_the_seed_out_of_its_recipe():
    from harness.sweep.results import best_recipe
    from harness.sweep.selection import TrialRecord

    document = changed(method="grid", parameters__lr_max={"values": [0.05]}, parameters__lr_min={"value": 0.001})
    document["parameters"] |= {"model_args": {"parameters": {"width": {"value": 4}}}, "seed": {"values": [3, 4]}}
    sweep = schema.parse_sweep(document, "x", {})
    best = TrialRecord(0, "trial-0000", "complete", {"lr_max": 0.05, "seed": 4}, [0.5], "")
    recipe = schema.yaml_io.parse_yaml(best_recipe(sweep, best, "x", 2, sweep.config(best.values)))
    assert "seed" not in recipe and recipe["lr_max"] == 0.05
    assert isinstance(sweep.sample_config(), Config)
