"""The parameters of a sweep: every distribution of the format against scipy's, and refused ones."""

import importlib
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.sweep.distributions import DISTRIBUTIONS, read_parameters
from harness.sweep.hyperband import read_hyperband
from harness.sweep.schema import parse_sweep
from harness.utils.errors import UsageError

LN = math.log
# Specification -> scipy's frozen distribution of the value before it is rounded to q.
CONTINUOUS = [
    ({"min": 0.5, "max": 2.0}, stats.uniform(0.5, 1.5)),
    ({"distribution": "q_uniform", "min": 0.0, "max": 3.0, "q": 0.25}, stats.uniform(0, 3)),
    ({"distribution": "log_uniform", "min": -5.0, "max": 1.0}, stats.loguniform(math.exp(-5), math.e)),
    ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, stats.loguniform(1e-4, 1)),
    ({"distribution": "q_log_uniform", "min": 0.0, "max": 5.0, "q": 2}, stats.loguniform(1, math.exp(5))),
    ({"distribution": "q_log_uniform_values", "min": 0.5, "max": 90.0, "q": 0.5}, stats.loguniform(0.5, 90)),
    ({"distribution": "inv_log_uniform", "min": -2.0, "max": 3.0}, stats.loguniform(math.exp(-3), math.exp(2))),
    ({"distribution": "inv_log_uniform_values", "min": 0.01, "max": 3.0}, stats.loguniform(0.01, 3)),
    ({"distribution": "normal", "mu": 1.0, "sigma": 2.0}, stats.norm(1, 2)),
    ({"distribution": "q_normal", "mu": 1.0, "sigma": 20.0, "q": 3}, stats.norm(1, 20)),
    ({"distribution": "log_normal", "mu": 0.5, "sigma": 0.3}, stats.lognorm(0.3, scale=math.exp(0.5))),
    ({"distribution": "q_log_normal", "mu": 1.0, "sigma": 1.0, "q": 1}, stats.lognorm(1, scale=math.e)),
    ({"distribution": "beta", "a": 2.0, "b": 3.0}, stats.beta(2, 3)),
    ({"distribution": "q_beta", "a": 2.0, "b": 3.0, "q": 0.1}, stats.beta(2, 3)),
]
DISCRETE = [{"min": 1, "max": 7}, {"values": ["a", "b", "c"]}, {"values": [1, 2, 3], "probabilities": [0.2, 0.5, 0.3]}]
QUANTILES = np.random.default_rng(0).uniform(0.001, 0.999, 200).tolist()


def parameter(spec):
    (result,) = read_parameters({"x": spec})
    return result


@pytest.mark.parametrize(("spec", "truth"), CONTINUOUS, ids=lambda value: str(value)[:40])
def test_a_value_is_the_inverse_of_the_distribution_function_rounded_to_q(spec, truth):
    q = spec.get("q")
    for u in QUANTILES:
        expected = float(truth.ppf(u))
        expected = round(expected / q) * q if q else expected
        assert parameter(spec).at(u) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert isinstance(parameter(spec).at(u), int) == isinstance(q, int)


@pytest.mark.parametrize("spec", DISCRETE, ids=str)
def test_values_come_as_often_as_their_probabilities_say(spec):
    drawn = [parameter(spec).at(u) for u in (np.arange(100_000) + 0.5) / 100_000]
    values = spec.get("values") or list(range(spec["min"], spec["max"] + 1))
    probabilities = spec.get("probabilities") or [1 / len(values)] * len(values)
    assert [drawn.count(value) / len(drawn) for value in values] == pytest.approx(probabilities, abs=1e-4)


def test_every_distribution_of_the_format_is_tested_here():
    tested = {parameter(spec).kind for spec, _ in CONTINUOUS} | {parameter(spec).kind for spec in DISCRETE}
    assert tested | {"constant", "categorical_w_probabilities"} == set(DISTRIBUTIONS)


def test_nested_parameters_keep_their_path():
    parameters = read_parameters(
        {"model_args": {"parameters": {"width": {"values": [4, 8]}, "deep": {"parameters": {"er": {"value": 1}}}}}}
    )
    assert [each.path for each in parameters] == [("model_args", "width"), ("model_args", "deep", "er")]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, "need `value:`"),
        ({"min": 2.0, "max": 1.0}, "W&B needs min < max"),
        ({"distribution": "unifrom", "min": 0.0, "max": 1.0}, "did you mean 'uniform'"),
        ({"distribution": "log_uniform", "min": 0.0001, "max": 1000.0}, "exponents of e"),
        ({"distribution": "log_uniform_values", "min": 0.0, "max": 1.0}, "needs min > 0"),
        ({"distribution": "uniform", "min": 0.0}, "needs max"),
        ({"min": 0.0, "max": 1.0, "step": 0.1}, "not 'step'"),
        ({"values": []}, "at least one value"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "add up to 1.1"),
        ({"values": [1, 2], "probabilities": [1.0]}, "one probability"),
        ({"value": 1, "parameters": {"a": {"value": 1}}}, "stand alone"),
        ({"min": "1e-4", "max": 1.0}, "need a number"),
        ({"distribution": "normal", "sigma": -1.0}, "sigma > 0"),
        ({"vlaues": [1]}, "did you mean 'values'"),
    ],
)
def test_an_invalid_parameter_is_refused_with_a_remedy(spec, message):
    with pytest.raises(UsageError, match=r"parameters\.x") as refused:
        parameter(spec)
    assert message in str(refused.value)


def test_a_grid_lists_values_whole_numbers_and_quantised_ranges_as_wandb_does():
    assert list(parameter({"min": 1, "max": 4}).points()) == [1, 2, 3, 4]
    assert list(parameter({"distribution": "q_uniform", "min": 0, "max": 10, "q": 5}).points()) == [0, 5]
    with pytest.raises(UsageError, match="a grid takes"):
        parameter({"min": 0.0, "max": 1.0}).points()
    with pytest.raises(UsageError, match="with probabilities"):
        parameter({"values": [1, 2], "probabilities": [0.5, 0.5]}).points()


def naive_stops(run, runs, bands, eta, strict):
    """Hyperband written out: at the last band that a run has reached, is it among the best 1/eta?"""
    reached = [band for band in bands if band <= len(run)]
    if not reached:
        return False
    band = reached[-1]
    at_band = sorted((values[band - 1] for values in runs if len(values) >= band), reverse=True)
    value = run[band - 1] if strict else max(run)
    return value < at_band[math.floor(len(at_band) / eta)]


def test_hyperband_keeps_the_best_share_of_the_runs_that_reached_the_band():
    draw = np.random.default_rng(1)
    for _ in range(300):
        lowest, eta, strict = int(draw.integers(1, 4)), int(draw.integers(2, 5)), bool(draw.integers(2))
        band = read_hyperband({"type": "hyperband", "min_iter": lowest, "eta": eta, "strict": strict})
        runs = [draw.random(draw.integers(1, 30)).tolist() for _ in range(draw.integers(1, 12))]
        for run in runs:
            expected = naive_stops(run, runs, [lowest * eta**k for k in range(6)], eta, strict)
            assert band.stops(run, runs, maximise=True) == expected
            negative = [[-value for value in values] for values in runs]
            assert band.stops([-value for value in run], negative, maximise=False) == expected


def test_hyperband_by_max_iter_counts_bands_back_from_it():
    assert read_hyperband({"type": "hyperband", "max_iter": 27, "s": 2}).bands == (3, 9)
    for block, message in (
        ({"type": "median"}, "need hyperband"),
        ({"type": "hyperband"}, "need min_iter"),
        ({"type": "hyperband", "max_iter": 9}, "s=None"),
        ({"type": "hyperband", "min_iter": 0}, "min_iter=0"),
        ({"type": "hyperband", "min_iter": 1, "eta": 1}, "above 1"),
        ({"type": "hyperband", "miniter": 1}, "did you mean 'min_iter'"),
    ):
        with pytest.raises(UsageError) as refused:
            read_hyperband(block)
        assert message in str(refused.value)


EDGES = [1e-12, 1e-9, 1 / 7, 0.2, 0.25, 1 / 3, 0.5, 2 / 3, 0.7, 0.75, 6 / 7, 1 - 1e-9, 1 - 1e-12]


def test_each_value_is_the_one_that_wandbs_own_search_code_gives(wandb_sweeps):
    params = importlib.import_module("sweeps.params")
    for spec in [*(spec for spec, _ in CONTINUOUS), *DISCRETE]:
        other = params.HyperParameter("x", spec)
        for u in [*QUANTILES, *EDGES]:
            value = other.ppf(u)
            value = value.item() if hasattr(value, "item") else value
            assert parameter(spec).at(u) == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9)), spec


GRIDS = [
    *({"distribution": "q_uniform", "min": low, "max": high, **({"q": q} if q else {})}
      for low in (0, 0.5, -1, -2.5, 1) for high in (3, 3.0, 10, 4.0) for q in (1, 0.25, 0.1, 2, 3.0, 0.3, None)),
    {"min": 1, "max": 4},
    {"values": [1, 1, 2]},
    {"values": [1, 1.0, True, "1", 2.5, 2]},
    {"values": [3e6, 3000000]},
    {"values": ["a", None, [1, 2], {"x": 1}, [1.0, 2], {"x": 1}]},
]  # fmt: skip


def wandbs_grid(parameters):
    """Return the points that W&B's own code visits, in its order."""
    grid_search = importlib.import_module("sweeps.grid_search")
    suggested = grid_search.grid_search_next_runs([], {"method": "grid", "parameters": parameters}, n=2000)
    return [{name: entry["value"] for name, entry in run.config.items()} for run in suggested if run is not None]


def exactly(value):
    """Return a value with its type, so that 1, 1.0 and True differ."""
    return repr(value)


@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_the_points_of_a_grid_are_those_that_wandbs_own_search_code_visits(wandb_sweeps, spec):
    points = list(parameter(spec).points())
    assert list(map(exactly, points)) == [exactly(point["x"]) for point in wandbs_grid({"x": spec})]


def test_a_grid_is_visited_in_the_order_of_wandbs_own_search_code(wandb_sweeps):
    document = {
        "method": "grid",
        "metric": {"name": "val/acc"},
        "command": ["${env}", "harness", "run", "${args}"],
        "parameters": {
            "val_fraction": {"value": 0.2},
            "seed": {"values": [3, 1, 3]},
            "model_args": {"parameters": {"width": {"values": [8, 4]}, "deep": {"values": [2.0, 1]}}},
            "epochs": {"distribution": "q_uniform", "min": 6, "max": 10, "q": 2},
        },
    }
    spec = parse_sweep(document, "x", {})
    points = [spec.trial_parameters(values) for values in spec.grid()]
    assert points == wandbs_grid(document["parameters"])
    assert len(points) == 2 * 2 * 2 * 2
    assert len(spec.grid(in_file_order=True)) == 3 * 2 * 2 * 2


REFUSED_BY_WANDB = [
    {"min": 1, "max": 1},
    {"min": 0.5, "max": 0.5},
    {"distribution": "q_uniform", "min": 2, "max": 2},
    {"distribution": "log_uniform_values", "min": 0.1, "max": 0.1},
    {"min": 2.0, "max": 1.0},
    {"values": [1, 2], "probabilities": [0.5, 0.6]},
    {"values": [1, 2], "probabilities": [1.0]},
    {"distribution": "categorical", "values": [1, 2], "probabilities": [0.5, 0.5]},
    {"distribution": "int_uniform", "min": 1.0, "max": 3.0},
    {"distribution": "log_uniform_values", "min": 0.0, "max": 1.0},
    {"distribution": "uniform", "min": 0.0},
    {"distribution": "normal", "sigma": -1.0},
    {"distribution": "q_normal", "q": 0},
    {"values": []},
    {"vlaues": [1]},
    {"value": 1, "values": [1]},
    {"value": 1, "parameters": {"a": {"value": 1}}},
]


@pytest.mark.parametrize("spec", REFUSED_BY_WANDB, ids=str)
def test_what_wandbs_own_code_refuses_is_refused_here(wandb_sweeps, spec):
    config = importlib.import_module("sweeps.config")
    with pytest.raises(Exception):  # noqa: B017 - jsonschema's, W&B's own or a ValueError
        config.SweepConfig({"method": "random", "parameters": {"x": spec}})
    with pytest.raises(UsageError):
        parameter(spec)


MIXED = [{"min": 0, "max": 0.5}, {"min": 0.0, "max": 5}, {"min": -1, "max": 1.5}]


@pytest.mark.parametrize("spec", MIXED, ids=str)
def test_bounds_of_two_types_are_the_uniform_range_that_wandbs_own_code_draws_from(wandb_sweeps, spec):
    config = importlib.import_module("sweeps.config")
    filled = config.SweepConfig({"method": "random", "parameters": {"x": dict(spec)}})
    assert filled["parameters"]["x"]["distribution"] == parameter(spec).kind == "uniform"
    other = importlib.import_module("sweeps.params").HyperParameter("x", dict(spec))
    for u in QUANTILES:
        assert parameter(spec).at(u) == pytest.approx(float(other.ppf(u)), rel=1e-9)
    client = importlib.import_module("wandb.apis.public.sweeps")  # the command `wandb sweep` asks for one form
    with pytest.raises(ValueError, match="ambiguous"):
        client._validate_config_and_fill_distribution({"parameters": {"x": dict(spec)}})


NUMBERS = [0, 1, -1, 2, 10, 0.5, -0.5, 1.0, 2.0, 1e-4, 100.0, 0.0, 5]
LISTS = {
    "value": [1, None, [1, 2]],
    "values": [[1, 2], [1], ["a", None], []],
    "probabilities": [[0.5, 0.5], [1], [1, 1]],
}


def random_specs(count):
    """Yield specifications, half of them with the keys of their distribution and half with any keys."""
    draw = random.Random(0)
    for index in range(count):
        kind = draw.choice(list(DISTRIBUTIONS))
        required, optional = DISTRIBUTIONS[kind]
        keys = [*required, *(key for key in optional if draw.random() < 0.5)]
        if index % 2:
            keys = [key for key in ("min", "max", "q", "mu", "sigma", "a", "b", *LISTS) if draw.random() < 0.25]
        spec = {} if index % 4 == 1 else {"distribution": kind}
        yield {**spec, **{key: draw.choice(LISTS.get(key, NUMBERS)) for key in keys}}


def test_what_wandbs_schema_accepts_is_read_unless_wandb_could_draw_no_number_from_it(wandb_sweeps):
    config, params = importlib.import_module("sweeps.config"), importlib.import_module("sweeps.params")
    accepted = 0
    for spec in random_specs(600):
        try:
            config.SweepConfig({"method": "random", "parameters": {"x": spec}})
        except Exception:
            continue
        accepted += 1
        try:
            parameter(spec)
        except UsageError as error:
            assert "W&B draws no number" in str(error), spec
            with np.errstate(all="ignore"):
                value = float(params.HyperParameter("x", spec).ppf(0.3))
            assert math.isnan(value) or value == -(2.0**63), spec  # NaN as an integer
    assert accepted > 100


def test_a_grid_of_too_many_values_is_refused_before_they_are_made():
    for spec in ({"min": 0, "max": 10**30}, {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 1e-12}):
        with pytest.raises(UsageError, match="a grid of"):
            parameter(spec).points()


def test_hyperband_stops_the_runs_that_wandbs_own_code_stops(wandb_sweeps):
    stopping, runs = importlib.import_module("sweeps.hyperband_stopping"), importlib.import_module("sweeps.run")
    draw, stopped = np.random.default_rng(2), 0
    for _ in range(150):
        block = [
            {"min_iter": int(draw.integers(1, 4)), "eta": 2},
            {"max_iter": 27, "s": 3},
            {"min_iter": 1, "strict": False},
        ][draw.integers(3)]
        block = {"type": "hyperband", **block}
        goal = ["minimize", "maximize"][draw.integers(2)]
        logged = [draw.random(draw.integers(0, 15)).tolist() for _ in range(draw.integers(1, 9))]
        sweep = {
            "method": "random",
            "metric": {"name": "m", "goal": goal},
            "early_terminate": block,
            "parameters": {"a": {"value": 1}},
        }
        their_runs = [
            runs.SweepRun(name=str(index), state=runs.RunState.running, history=[{"m": value} for value in values])
            for index, values in enumerate(logged)
        ]
        expected = {int(run.name) for run in stopping.hyperband_stop_runs(their_runs, sweep)}
        ours = read_hyperband(block)
        others = [values for values in logged if values]
        ended = {n for n, run in enumerate(logged) if ours.stops(run, others, maximise=goal == "maximize")}
        assert ended == expected
        stopped += len(expected)
    assert stopped > 50


def test_the_shipped_sweeps_are_valid_by_wandbs_schema(wandb_sweeps):
    import jsonschema
    import yaml

    schema = json.loads((Path(sys.modules["sweeps"].__file__).parent / "config/schema.json").read_text())
    files = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
    assert len(files) >= 3
    for file in files:
        jsonschema.validate(yaml.safe_load(file.read_text()), schema)


def test_rounding_of_the_probabilities_never_gives_a_value_that_is_not_to_be_drawn():
    probabilities = [0.1] * 10 + [0.0]
    assert sum(probabilities) < 1  # as floating-point numbers
    (parameter,) = read_parameters({"x": {"values": list(range(11)), "probabilities": probabilities}})
    assert parameter.at(math.nextafter(1, 0)) == 9
