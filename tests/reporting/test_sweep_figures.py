"""The data model of a sweep, and the figures that are drawn of it."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from harness.reporting.figures import sweep as figures
from harness.reporting.html import sweep_charts
from harness.reporting.html.pages import sweep_page
from harness.reporting.html.sweep_data import ParameterAxis, SweepData, TrialData
from harness.reporting.html.sweep_reader import read_sweep
from harness.utils.files import write_json
from tests.support.report_samples import sweep


def write_trials(folder, name, texts, spec, scores=None, metric="val/loss"):
    """Write the folder of a sweep over one parameter, with a trial for each of `texts`."""
    folder.mkdir()
    scores = scores or [float(index) for index in range(len(texts))]
    rows = [
        f"trial-{i},complete,{text},{score},1,1.0,1.0,runs/trial-{i},\n"
        for i, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]
    header = f"trial,state,{name},{metric},values,seconds,training_s,folder,reason\n"
    (folder / "trials.csv").write_text(header + "".join(rows))
    (folder / "sweep.yaml").write_text(f"method: grid\nparameters: {{{name}: {spec}}}\n")
    write_json(folder / "sweep.json", {"name": "s", "metric": {"name": metric, "goal": "minimize"}})
    return read_sweep(folder)


def test_a_sweep_is_drawn_as_four_figures_and_four_charts(tmp_path):
    data = read_sweep(sweep(tmp_path / "sweep"))
    paths = figures.draw_sweep(data, tmp_path / "figures")
    names = {"history", "scatter", "parallel", "importance"}
    assert {path.stem for path in paths} == names == {chart.key for chart in sweep_charts.charts(data)}
    for path in paths:
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 20
            assert picture.width > picture.height  # to stand on a page
    traces = [trace for trace in sweep_charts.history(data).data if trace["mode"] == "markers"]
    shown = sorted(number for trace in traces for number in trace["x"])
    assert shown == list(range(1, len(data.evaluated) + 1)) and all(trace["x"] for trace in traces)
    assert sorted(value for trace in traces for value in trace["y"]) == sorted(trial.value for trial in data.evaluated)


def test_a_sweep_without_values_is_drawn_as_a_message(tmp_path):
    folder = sweep(tmp_path / "sweep")
    (folder / "trials.csv").write_text("trial,state,lr_max,best/val_acc,values,seconds,training_s,folder,reason\n")
    assert [path.name for path in figures.draw_sweep(read_sweep(folder), tmp_path / "figures")] == ["history.png"]
    assert sweep_charts.charts(read_sweep(folder)) == []


@pytest.mark.parametrize(
    ("texts", "spec", "expected"),
    [
        (["sgd", "adam"], "{values: [adam, lion, sgd]}", ("adam", "lion", "sgd")),
        (["512", "128"], "{values: [128, 256, 512]}", ("128", "256", "512")),
        (["4", "1", "2", "8"], "{values: [1, 2, 4, 8]}", ()),
        (["True", "False"], "{values: [false, true]}", ("False", "True")),
        (["'=x", "b"], '{values: ["b", "=x"]}', ("b", "'=x")),
        (["0.1", "0.2"], "{min: 0.1, max: 0.3}", ()),
    ],
)
def test_texts_and_short_lists_are_categories_in_the_order_of_the_file(tmp_path, texts, spec, expected):
    (axis,) = write_trials(tmp_path / "sweep", "setting", texts, spec).axes
    assert axis.categories == expected
    assert figures.draw_sweep(read_sweep(tmp_path / "sweep"), tmp_path)


def test_a_parameter_is_logarithmic_by_its_distribution_or_by_its_range(tmp_path):
    for index, (texts, spec, expected) in enumerate(
        [
            (["0.1", "0.2"], "{distribution: log_uniform_values, min: 0.1, max: 0.2}", True),
            (["0.01", "0.2"], "{min: 0.01, max: 0.2}", True),
            (["0.1", "0.2"], "{min: 0.1, max: 0.2}", False),
            (["0", "0.2"], "{distribution: log_uniform_values, min: 0.1, max: 0.2}", False),
        ]
    ):
        (axis,) = write_trials(tmp_path / str(index), "lr", texts, spec).axes
        assert axis.logarithmic == expected


def trial(value, state="complete", **parameters):
    return TrialData("t", state, {key: str(text) for key, text in parameters.items()}, value, 1, 1.0, "", "")


def test_one_diverged_loss_does_not_flatten_the_others():
    data = SweepData("", "val/loss", False, [trial(value) for value in (1.0, 1.2, 1.1, 900.0)], [])
    low, high = data.limits
    assert low == 1.0 and high < 2
    assert [data.score_unit(value) for value in (1.0, high, 900.0)] == [0.0, 1.0, 1.0]
    best_is_high = SweepData("", "val/acc", True, [trial(value) for value in (0.9, 0.88, 0.1)], [])
    assert best_is_high.limits[1] == 0.9 and best_is_high.limits[0] > 0.7
    assert SweepData("", "val/acc", True, [trial(0.5)], []).limits[0] == 0.5


def test_units_span_0_to_1_and_a_missing_value_has_none():
    axis = ParameterAxis("lr", logarithmic=True)
    units = axis.units([trial(1.0, lr=0.01), trial(1.0, lr=0.1), trial(1.0, lr=1), trial(1.0)])
    assert units[:3] == pytest.approx([0, 0.5, 1]) and math.isnan(units[3])
    assert axis.ticks([trial(1.0, lr=0.01), trial(1.0, lr=0.1), trial(1.0, lr=1)]) == [
        (0.0, "0.01"), (pytest.approx(0.5), "0.1"), (1.0, "1"),
    ]  # fmt: skip
    assert axis.units([trial(1.0, lr=0.1)]) == [0.5]


def test_the_axis_of_a_nested_parameter_has_the_scale_and_the_order_of_its_file(tmp_path):
    write_trials(tmp_path / "sweep", "model_args.act", ["relu", "gelu"], "{}")
    nested = "{model_args: {parameters: {act: {values: [gelu, silu, relu]}}}}"
    (tmp_path / "sweep/sweep.yaml").write_text(f"method: grid\nparameters: {nested}\n")
    (axis,) = read_sweep(tmp_path / "sweep").axes
    assert axis.categories == ("gelu", "silu", "relu")
    write_trials(tmp_path / "other", "model_args.scale", ["0.1", "0.2"], "{}")
    nested = "{model_args: {parameters: {scale: {distribution: log_uniform_values, min: 0.1, max: 1.0}}}}"
    (tmp_path / "other/sweep.yaml").write_text(f"method: random\nparameters: {nested}\n")
    (axis,) = read_sweep(tmp_path / "other").axes
    assert axis.logarithmic


def test_a_sweep_for_two_metrics_shows_its_front_and_its_further_metric_is_no_parameter(tmp_path):
    rows = "trial-0,complete,1,9.0,0.9,1,1.0,1.0,runs/a,\ntrial-1,complete,2,5.0,0.8,1,1.0,1.0,runs/b,\n"
    rows += "trial-2,complete,3,9.5,0.7,1,1.0,1.0,runs/c,\ntrial-3,failed,4,,,0,1.0,1.0,runs/d,broken\n"
    header = "trial,state,width,time/epoch_s,best/val_acc,values,seconds,training_s,folder,reason\n"
    (tmp_path / "trials.csv").write_text(header + rows)
    (tmp_path / "sweep.yaml").write_text(
        "method: custom\ndescription: <b>two</b> at once\nparameters: {width: {values: [1]}}\n"
    )
    goals = [{"name": "best/val_acc", "goal": "maximize"}, {"name": "time/epoch_s", "goal": "minimize"}]
    summary = {"name": "s", "metric": goals[0], "metrics": goals, "hypervolume": {"value": 1.25}}
    summary["pareto"] = [{"trial": "trial-0"}, {"trial": "trial-1"}, {"trial": "no such"}, 3]
    write_json(tmp_path / "sweep.json", summary)
    data = read_sweep(tmp_path)
    assert (data.metric, list(data.further), [axis.name for axis in data.axes]) == (
        "best/val_acc",
        ["time/epoch_s"],
        ["width"],
    )
    assert [trial.name for trial in data.front] == ["trial-0", "trial-1"]
    assert data.trials[0].further == {"time/epoch_s": 9.0} and math.isnan(data.trials[3].further["time/epoch_s"])
    assert (tmp_path / "figures/pareto.png") in figures.draw_sweep(data, tmp_path / "figures")
    (chart,) = [chart for chart in sweep_charts.charts(data) if chart.key == "pareto"]
    assert sorted(chart.data[-1]["x"]) == [5.0, 9.0] and "1.25" in chart.caption
    assert (data.front_step, chart.data[-1]["line"]["shape"]) == ("post", "hv")  # a longer time is no loss
    page = sweep_page(data)
    assert "Pareto front" in page and "&lt;b&gt;two&lt;/b&gt; at once" in page and "<b>two</b>" not in page


def test_a_sweep_over_seeds_lists_its_configurations_the_best_mean_first(tmp_path):
    folder = tmp_path / "s"
    write_trials(folder, "seed", ["0", "1"], "{values: [0, 1]}")
    groups = [
        {"parameters": {"lr_max": 0.1}, "mean": 0.5, "sd": 0.1, "seeds": 2},
        {"parameters": [], "mean": 0.4, "seeds": 2},
    ]
    write_json(
        folder / "sweep.json", {"metric": {"name": "val/loss", "goal": "minimize"}, "seed_groups": [*groups, 3, {}]}
    )
    data = read_sweep(folder)
    assert [group["mean"] for group in data.seed_groups] == [0.4, 0.5]
    assert "Configurations over seeds" in sweep_page(data)


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_values_beyond_the_axis_of_a_sweep_are_marked_as_such(tmp_path, goal):
    losses = [0.5, 0.6, 0.55, 0.7, 900.0]
    data = write_trials(tmp_path / "s", "lr_max", ["0.1", "0.2", "0.3", "0.4", "0.5"], "{min: 0.1, max: 0.5}", losses)
    if goal == "maximize":
        trials = [dataclasses.replace(trial, value=-trial.value) for trial in data.trials]
        data = dataclasses.replace(data, maximise=True, trials=trials)
    assert [trial.name for trial in data.clipped] == ["trial-4"]
    symbol = "triangle-up-open" if goal == "minimize" else "triangle-down-open"
    for chart in (sweep_charts.parallel(data), sweep_charts.history(data)):
        (mark,) = (trace for trace in chart.data if trace.get("marker", {}).get("symbol") == symbol)
        assert "900" in mark["text"][0] and len(mark["text"]) == 1
        assert "1 trial lies" in chart.caption and "900" in chart.caption and "triangle" in chart.caption
    usual = write_trials(tmp_path / "u", "lr_max", ["0.1", "0.2", "0.3"], "{min: 0.1, max: 0.5}", [0.5, 0.6, 0.55])
    assert not usual.clipped and "triangle" not in sweep_charts.parallel(usual).caption
    for draw in (figures.draw_parallel, figures.draw_history):
        counts = []
        for each in (data, dataclasses.replace(data, trials=data.trials[:4])):
            with Image.open(draw(each, tmp_path / "figure.png")) as picture:
                shown = np.array(picture.convert("RGB")).astype(int)
            counts.append((abs(shown - [213, 94, 0]) < 40).all(2).sum())
        assert draw is figures.draw_history or counts[0] > 50 > counts[1]


def test_a_front_of_three_metrics_is_no_line(tmp_path):
    data = read_sweep(sweep(tmp_path / "sweep"))
    goals = [{"goal": "maximize"}, {"goal": "minimize"}]
    two = dataclasses.replace(data, further=("seconds",), summary={**data.summary, "metrics": goals})
    assert two.front_step == "post" and dataclasses.replace(two, further=("seconds", "test/loss")).front_step == ""
    upwards = dataclasses.replace(two, summary={**data.summary, "metrics": [goals[0], goals[0]]})
    assert upwards.front_step == "pre" and dataclasses.replace(two, further=()).front_step == ""
