"""W&B reports are built from what a run logged, and saved to a W&B server on the loopback."""

import json
import re
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml

from harness.cli.main import cli
from harness.config.settings import Config
from harness.tracking.run_dir import claim_run_dir
from harness.tracking.wandb import init
from harness.tracking.wandb import report as wandb_report
from harness.tracking.wandb.api import (
    RunFacts,
    RunsFacts,
    SweepFacts,
    Target,
    look_up,
    metric_of,
    parse,
    wandb_api_errors,
)
from harness.tracking.wandb.panels import GRID_COLUMNS, media_panels, report_module
from harness.tracking.wandb.runs_report import runs_headline
from harness.tracking.wandb.session import note_sent
from harness.tracking.wandb.sweep_front import front_of, front_text
from harness.tracking.wandb.workspace import build_workspace, save_workspace
from harness.utils.errors import TrackingError, UsageError
from tests.support.records import epoch, final
from tests.support.report_server import ReportServer
from tests.support.wandb_files import joined, offline_runs
from tests.support.wandb_server import KEY, Run

pytest.importorskip("wandb_workspaces")

SWEEP = {
    "name": "rates",
    "method": "bayes",
    "metric": {"name": "best/val_acc", "goal": "maximize"},
    "parameters": {
        "LRMIN": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-3},
        "LRMAX": {"distribution": "log_uniform_values", "min": 1e-2, "max": 1e-1},
        "flip": {"values": [True, False]},
        "epochs": {"value": 2},
        "recipe": {"values": ["digits"]},
    },
}


def tracked(folder, mode, name="a run", settings=None, **summary):
    """Track a run with one value of each kind, and return its run directory."""
    config = Config(output=str(folder), wandb=mode, name=name, project="p", entity="e", **(settings or {}))
    claimed = claim_run_dir(config)
    (claimed.path / "config.yaml").write_text(config.to_yaml())
    tracker = init.start(config, claimed.path, run_name=name)
    for record in (epoch(1), epoch(2), final(6)):
        tracker.record(record)
    tracker.summary({"result/test/acc": 0.9125, "result/chosen": "best val/acc", "result/epoch": 2, **summary})
    tracker.finish("finished", 0)
    claimed.close()
    return claimed.path


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """An offline run as `RunFacts`, and all keys of its rows."""
    return facts_of(tracked(tmp_path_factory.mktemp("offline"), "offline"))


def facts_of(folder):
    """Return an offline run as `RunFacts`, and all keys of its rows."""
    (offline_run,) = offline_runs(folder)
    values = joined(item for row in offline_run.rows for item in row.items())
    charts = {
        path.removeprefix("_wandb.visualize."): value["panel_config"]
        for path, value in offline_run.config.items()
        if path.startswith("_wandb.visualize.")
    }
    summary = values | joined(offline_run.summary.items())
    config = {key: value for key, value in offline_run.config.items() if not key.startswith("_wandb")}
    facts = RunFacts(
        "e", "p", offline_run.run_id, offline_run.name, config, summary, charts, url="https://w/e/p/runs/x"
    )
    return facts, set(values)


def test_charts_stand_behind_the_images_of_their_section_and_tables_behind_both(offline):
    kinds = {"explain/a": "table-file", "explain/b": "image-file", "explain/d": "image-file", "explain/e": "table-file"}
    summary = {key: {"_type": kind} for key, kind in kinds.items()}
    run = replace(offline[0], summary=summary, charts={"explain/0": {}, "explain/c": {}})
    [(title, panels)] = media_panels(report_module(), run)
    assert title == "Grad-CAM"
    shown = [type(panel).__name__ for panel, _, _ in panels]
    assert shown == ["MediaBrowser"] * 2 + ["CustomChart"] * 2 + ["WeavePanelSummaryTable"] * 2


@pytest.fixture
def online(monkeypatch):
    """A server for reports, and the environment variables that lead to it."""
    with ReportServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


def grids(report):
    return [block for block in report.blocks if type(block).__name__ == "PanelGrid"]


def panels(report):
    return [panel for grid in grids(report) for panel in grid.panels]


def shown(report):
    """Return every key that a panel of the report shows."""
    keys = set()
    for panel in panels(report):
        keys |= set(getattr(panel, "media_keys", ())) | set(
            getattr(panel, "y", None) or () if hasattr(panel, "log_y") and isinstance(panel.y, list) else ()
        )
        keys |= {panel.table_name} if hasattr(panel, "table_name") else set()
        keys |= {panel.query["summaryTable"]["tableKey"]} if hasattr(panel, "chart_name") else set()
    return keys


def spec_of(report):
    """Return the report's JSON; run sets without a project are not looked up."""
    for grid in grids(report):
        for runs in grid.runsets:
            runs.entity = runs.project = ""
    return json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def test_the_report_of_a_run_shows_what_the_run_logged_and_nothing_that_it_did_not(offline):
    facts, keys = offline
    report = wandb_report.build(facts)
    assert shown(report) <= keys
    pictures = {
        key
        for key, value in facts.summary.items()
        if isinstance(value, dict) and re.search("image|plotly", str(value.get("_type")))
    }
    assert {"cam", "layers", "lines"} <= pictures
    tables = {
        key for key, value in facts.summary.items() if isinstance(value, dict) and value.get("_type") == "table-file"
    }
    assert pictures and pictures <= shown(report)
    media = [key for panel in panels(report) for key in getattr(panel, "media_keys", ())]
    assert sorted(media) == sorted(set(media))  # each in one section
    # The points of a curve are shown as its chart.
    assert tables - {"finder/table"} == {key for key in shown(report) if key in tables}
    assert {"train/loss", "val/acc", "lr", "train/step_loss"} <= shown(report)
    assert {"finder/chart_table", "test/confusion_table", "test/pr_table", "roc_table"} <= shown(report)


def test_each_image_of_a_run_is_in_its_section(finished):
    facts, keys = facts_of(finished[1])
    report = wandb_report.build(facts)
    assert shown(report) <= keys
    sections, title = {}, ""
    for block in report.blocks:
        title = getattr(block, "text", title) if type(block).__name__ == "H2" else title
        for panel in getattr(block, "panels", ()):
            for key in getattr(panel, "media_keys", ()) or [getattr(panel, "table_name", "")]:
                sections[key] = title
    assert sections["gallery/correct"] == sections["gallery/misclassified"] == "Correct and misclassified images"
    assert sections["gallery/augmented"] == "Training images as augmented"
    assert sections["gallery/gradcam"] == sections["explain/gradcam"] == "Grad-CAM"
    assert sections["predictions/confusion"] == sections["predictions/per_class"] == "Classes"
    assert {"train/loss", "test/loss", "train/acc", "test/acc", "lr", "train/step_loss"} <= shown(report)
    assert {key for key in keys if key.startswith(("gallery/", "predictions/", "explain/"))} <= shown(report)
    assert f"{100 * facts.summary['result/test/acc']:.2f} %" in wandb_report.run_headline(facts)


def test_no_two_panels_of_a_grid_overlap_and_none_is_wider_than_the_page(offline):
    for grid in grids(wandb_report.build(offline[0])):
        taken = set()
        for panel in grid.panels:
            layout = panel.layout
            cells = {(x, y) for x in range(layout.x, layout.x + layout.w) for y in range(layout.y, layout.y + layout.h)}
            assert not cells & taken
            assert max(x for x, _ in cells) < GRID_COLUMNS
            taken |= cells


def test_a_report_begins_with_the_result_and_how_it_was_chosen(offline):
    text = wandb_report.run_headline(offline[0])
    assert "| test/acc | 91.25 % |" in text
    assert "best val/acc, epoch 2" in text
    assert "model custom&#95;resnet, data cifar10" in text
    spec = json.dumps(spec_of(wandb_report.build(offline[0])))
    assert '"type": "table-of-contents"' in spec
    assert offline[0].run_id in spec


def test_the_report_of_a_sweep_compares_its_parameters(offline):
    facts, keys = offline
    sweep = SweepFacts("e", "p", "s1", "rates", SWEEP, 7, facts)
    report = wandb_report.build(sweep)
    by_kind = {type(panel).__name__: panel for panel in panels(report)}
    columns = [column.metric.name for column in by_kind["ParallelCoordinatesPlot"].columns]
    assert columns == ["lr_min", "lr_max", "flip", "best/val_acc"]
    scatter = by_kind["ScatterPlot"]
    assert (scatter.x.name, scatter.y.name, scatter.z.name) == ("lr_min", "lr_max", "best/val_acc")
    assert scatter.log_x and scatter.log_y
    assert by_kind["ParameterImportancePlot"].with_respect_to == "best/val_acc"
    assert "RunComparer" in by_kind
    assert shown(report) - {"best/val_acc"} <= keys
    spec = spec_of(report)
    text = json.dumps(spec)
    assert "s1" in text and "LRMIN" in text and "log_uniform_values" in text
    assert "7 runs, method bayes, maximize `best/val_acc`" in wandb_report.sweep_headline(sweep)


def test_nested_parameters_have_an_axis_where_they_are_searched(offline):
    facts, _ = offline
    width = {"distribution": "log_uniform_values", "min": 4, "max": 64}
    nested = {"width": width, "scale": {"value": 0.125}, "deep": {"parameters": {"rate": {"values": [0.0, 0.5]}}}}
    parameters = {"lr": {"min": 0.01, "max": 0.1}, "model_args": {"parameters": nested}, "epochs": {"values": [4]}}
    parameters["plain"] = {"parameters": {"fixed": {"value": 1}}}
    sweep = SweepFacts(
        "e",
        "p",
        "s1",
        "nested",
        {**SWEEP, "parameters": parameters},
        7,
        replace(facts, config={"lr_max": 0.02, "model_args": {"width": 8, "deep": {"rate": 0.5}}}),
    )
    assert wandb_report.swept_parameters(sweep.config) == {
        "lr_max": False,
        "model_args.width": True,
        "model_args.deep.rate": False,
    }
    headline = wandb_report.sweep_headline(sweep)
    assert "lr_max 0.02, model_args.width 8, model_args.deep.rate 0.5" in headline
    (plot,) = [
        panel for panel in panels(wandb_report.build(sweep)) if type(panel).__name__ == "ParallelCoordinatesPlot"
    ]
    axes = [column["accessor"] for column in plot._to_model().config.model_dump(by_alias=True)["columns"]]
    # W&B keeps a run's config as name -> {"value": ...}.
    assert axes[:3] == ["config:lr_max.value", "config:model_args.value.width", "config:model_args.value.deep.rate"]


def test_the_directory_of_seeds_or_of_a_sweep_names_the_group_of_its_runs(tmp_path):
    config = Config(entity="e", project="p", group="g")
    seeds, sweep = tmp_path / "seeds", tmp_path / "sweep"
    seeds.mkdir()
    (seeds / "seeds.json").write_text('{"seeds": []}')
    (seeds / "recipe.yaml").write_text(config.to_yaml())
    assert parse(str(seeds)) == Target("e", "p", "g", "group", seeds)
    (seeds / "seeds.json").write_text('{"group": "other"}')
    assert parse(str(seeds)).name == "other"
    (seeds / "seeds.json").write_text("{}")
    (seeds / "recipe.yaml").write_text(config.replace(group="").to_yaml())
    with pytest.raises(UsageError, match=r"have no W&B group; give each run with its own --wandb"):
        parse(str(seeds))

    (sweep / "runs/a").mkdir(parents=True)
    (sweep / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    (sweep / "runs/a/config.yaml").write_text(config.to_yaml())
    with pytest.raises(
        UsageError, match=re.escape(f"no run of {sweep} is in W&B; upload them with: harness sync {sweep}/runs/*")
    ):
        parse(str(sweep))
    with pytest.raises(UsageError, match=re.escape(f"is not in W&B; upload it with: harness sync {sweep}/runs/a")):
        parse(str(sweep / "runs/a"))
    (sweep / "runs/a/wandb").mkdir()
    note_sent(sweep / "runs/a/wandb", "abc", 3)
    assert parse(str(sweep)) == Target("e", "p", "g", "group", sweep, SWEEP)
    assert parse(str(sweep / "runs/a")) == Target("e", "p", "abc", "run", sweep / "runs/a")


def test_a_sweep_for_several_metrics_of_which_no_trial_has_all_says_so():
    config = {
        "method": "custom",
        "parameters": {},
        "metrics": [{"name": "val/acc", "goal": "maximize"}, {"name": "val/loss"}],
    }
    facts = SweepFacts("e", "p", "s", "n", config, 1, None, trials=())
    assert (
        front_text(facts, [], []) == "No trial has finished with all metrics: maximize `val/acc`, minimize `val/loss`."
    )


def test_a_sweep_without_runs_or_metric_has_a_report_too():
    for config in (SWEEP, {"method": "grid", "parameters": {}}):
        assert spec_of(wandb_report.build(SweepFacts("e", "p", "s", "n" * 300, config, 0, None)))["blocks"]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("e/p/abc", Target("e", "p", "abc")),
        ("p/abc", Target("", "p", "abc")),
        ("e/p/runs/abc", Target("e", "p", "abc", "run")),
        ("e/p/sweeps/s1", Target("e", "p", "s1", "sweep")),
        ("e/p/groups/narrow", Target("e", "p", "narrow", "group")),
        ("https://wandb.ai/e/p/groups/a%20b/workspace", Target("e", "p", "a b", "group")),
        ("https://wandb.ai/e/my%20p/runs/abc/overview?nw=1", Target("e", "my p", "abc", "run")),
        ("https://host/wandb/e/p/sweeps/s1", Target("e", "p", "s1", "sweep")),
        ("https://wandb.ai/e/runs/runs/abc", Target("e", "runs", "abc", "run")),
    ],
)
def test_a_target_is_parsed_in_each_of_its_forms(text, target):
    assert parse(text) == target


@pytest.mark.parametrize("text", ["", "abc", "a/b/c/d", "https://wandb.ai/e/p", "runs/x/", "e/p/runs"])
def test_an_invalid_target_is_refused_or_looked_up_as_project_and_run(text):
    if text in ("runs/x/", "e/p/runs"):
        assert parse(text).kind == ""
        return
    with pytest.raises(UsageError, match="is no run or sweep"):
        parse(text)


def test_a_run_folder_names_its_run_in_wandb(tmp_path):
    folder = tracked(tmp_path, "offline")
    (offline_run,) = offline_runs(folder)
    assert parse(str(folder)) == Target("e", "p", offline_run.run_id, "run", folder)
    with pytest.raises(UsageError, match="is no run directory"):
        parse(str(tmp_path))


@pytest.mark.slow
def test_a_saved_report_is_in_wandb_under_the_returned_url(online, tmp_path, capfd):
    folder = tracked(tmp_path, "online")
    (run_id,) = online.runs
    link = wandb_report.save_report(f"e/p/{run_id}")
    (saved,) = online.saved
    assert link.startswith("http://127.0.0.1") and "/e/p/reports/Run-a-run--" in link
    assert (saved.title, saved.kind, saved.project) == ("Run a run", "runs", "p")
    text = json.dumps(saved.spec)
    logged = {key for row in online.history for key in row}
    for key in ("gallery", "wrong", "cam", "train/step_loss", "finder/chart_table", "test/pr_table"):
        assert key in logged
        assert f'"{key}"' in text, key
    assert "wandb/confusion_matrix/v1" in text
    assert run_id in text and "91.25 %" in text
    # The run directory names the same run; a draft is saved as one.
    assert wandb_report.save_report(str(folder), draft=True) != link
    assert online.saved[1].kind == "runs/draft"
    assert not capfd.readouterr().out


@pytest.mark.slow
def test_a_sweep_is_recognised_and_its_best_run_is_shown(online, tmp_path, monkeypatch, capfd):
    for number in (1, 2):
        tracked(tmp_path, "online", f"trial {number}", **{"best/val_acc": number / 10})
    for run in online.runs.values():
        run.sweep = "s1"
    online.sweeps["s1"] = SWEEP
    best = next(name for name, run in online.runs.items() if run.name == "trial 2")
    capfd.readouterr()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    wandb_report.save_report("e/p/s1")
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "temporary").iterdir())
    text = json.dumps(online.saved[0].spec)
    assert online.saved[0].title == "Sweep rates"
    assert "2 runs, method bayes" in text and "Best run: trial 2" in text and best in text
    with pytest.raises(
        UsageError, match="e/p/s1 is a sweep, which has a report of its own; leave it out, or give it alone"
    ):
        wandb_report.save_report(f"e/p/{best}", "e/p/s1")


BOTH = {"metrics": [{"name": "best/val_acc", "goal": "maximize"}, {"name": "time/epoch_s", "goal": "minimize"}]}
# (accuracy, seconds) of trials; the first, the second and the last are on the front.
TRIALS = [(0.9, 3.0), (0.7, 1.0), (0.8, 3.5), (0.7, 2.0), (0.8, 2.0)]


def test_the_report_of_a_sweep_for_several_metrics_shows_the_pareto_front(offline):
    facts, _ = offline
    trials = tuple(
        replace(facts, run_id=f"t{n}", name=f"trial-{n}", state="finished", url=f"https://w/e/p/runs/t{n}",
                config={**facts.config, "lr_max": 0.01 * n}, summary={"best/val_acc": acc, "time/epoch_s": seconds})
        for n, (acc, seconds) in enumerate(TRIALS)
    )  # fmt: skip
    crashed = replace(trials[0], name="crashed", state="crashed", summary={"best/val_acc": 1.0, "time/epoch_s": 0.1})
    config = {**{key: value for key, value in SWEEP.items() if key != "metric"}, **BOTH}
    report = wandb_report.build(SweepFacts("e", "p", "s1", "both", config, 6, None, trials=(*trials, crashed)))
    scatter = next(panel for panel in panels(report) if getattr(panel, "title", "") == "best/val_acc and time/epoch_s")
    assert (scatter.x.name, scatter.y.name, scatter.z) == ("best/val_acc", "time/epoch_s", None)
    text = next(block.text for block in report.blocks if "Pareto front (" in getattr(block, "text", ""))
    assert re.findall(r"\[(.+?)\]\(", text) == ["trial-0", "trial-4", "trial-1"]
    assert "3 of 6 trials" in text and "90.00 %" in text and "maximize `best/val_acc`, minimize `time/epoch_s`" in text
    assert "Best: [trial-0]" in json.dumps(spec_of(report))


@pytest.mark.parametrize("is_local", [False, True])
def test_the_trials_of_a_sweep_for_several_metrics_are_looked_up_with_their_results(online, tmp_path, is_local):
    for number, (acc, seconds) in enumerate(TRIALS):
        summary, labels = {"best/val_acc": acc, "time/epoch_s": seconds}, {"groupName": "both", "jobType": "trial"}
        sweep = {"upserted": labels} if is_local else {"sweep": "s1"}
        online.runs[f"t{number}"] = Run(name=f"trial {number}", summary=summary, exit_code=0, **sweep)
    config = {**{key: value for key, value in SWEEP.items() if key != "metric"}, **BOTH}
    online.sweeps["s1"] = config
    target = Target("e", "p", "both", "group", tmp_path, config) if is_local else Target("e", "p", "s1", "sweep")
    with wandb_api_errors():
        facts = look_up(target)
    assert [run.name for run in front_of(facts.config, facts.trials)] == ["trial 0", "trial 4", "trial 1"]


# --- several runs, groups of seeds, the final runs of a sweep


def seeds_of(facts, group, accuracies, **config):
    """Return runs of one group as W&B has them, one for each test accuracy."""
    return tuple(
        replace(
            facts,
            run_id=f"{group}{seed}",
            name=f"{group} {seed}",
            group=group,
            config={**facts.config, **config, "seed": seed},
            summary={**facts.summary, "result/test/acc": accuracy},
        )
        for seed, accuracy in enumerate(accuracies)
    )


@pytest.fixture(scope="module")
def two_groups(offline):
    """Two groups of seeds that differ in the width."""
    narrow = seeds_of(offline[0], "narrow", (0.80, 0.82, 0.87), lr_max=0.1)
    return RunsFacts("two groups", narrow + seeds_of(offline[0], "wide", (0.90, 0.94), lr_max=0.2))


def test_the_curves_of_groups_of_seeds_have_mean_and_spread(two_groups):
    report = wandb_report.build(two_groups)
    curves = [panel for panel in panels(report) if type(panel).__name__ in ("LinePlot", "BarPlot")]
    by_epoch = [panel for panel in curves if getattr(panel, "title", "") in ("loss by epoch", "accuracy by epoch")]
    assert len(by_epoch) == 2
    for panel in by_epoch:
        assert (panel.groupby, panel.groupby_aggfunc, panel.groupby_rangefunc) == ("Group", "mean", "stddev")
    spec = spec_of(report)
    text = json.dumps(spec)
    assert all(run.run_id in text for run in two_groups.runs)
    assert "RunComparer" in {type(panel).__name__ for panel in panels(report)}


def test_the_report_of_several_runs_begins_with_what_differs_and_the_mean_of_each_group(two_groups):
    text = runs_headline(two_groups)
    assert "| run | group | seed | lr_max |" in text
    expected = {
        "narrow": (statistics.mean([80, 82, 87]), statistics.stdev([80, 82, 87])),
        "wide": (statistics.mean([90, 94]), statistics.stdev([90, 94])),
    }
    for group, (mean, deviation) in expected.items():
        assert (
            f"| {group} | {3 if group == 'narrow' else 2} | 75.00 % ± 0 % | {mean:.2f} % ± {deviation:.2f} % |" in text
        )
    empty = tuple(replace(run, group="empty", run_id=f"{run.run_id}x", summary={}) for run in two_groups.runs[:2])
    assert "| empty | 2 |  |  |" in runs_headline(RunsFacts("three groups", two_groups.runs + empty))
    alone = RunsFacts("alone", tuple(replace(run, group="") for run in two_groups.runs))
    assert "Mean and standard" not in runs_headline(alone)
    curves = [panel for panel in panels(wandb_report.build(alone)) if type(panel).__name__ == "LinePlot"]
    assert {panel.groupby for panel in curves} == {None}


def test_the_report_of_a_sweep_has_the_galleries_of_the_final_runs(offline):
    facts, keys = offline
    trial = replace(facts, summary={"best/val_acc": 0.5, "train/loss": 1.0}, charts={})
    without = SweepFacts("e", "p", "", "rates", SWEEP, 7, trial, group="rates-1")
    assert "gallery" not in shown(wandb_report.build(without))
    report = wandb_report.build(replace(without, finals=seeds_of(facts, "rates-1", (0.9, 0.92))))
    assert {"gallery", "cam", "wrong"} <= shown(report) and shown(report) - {"best/val_acc"} <= keys
    text = json.dumps(spec_of(report))
    assert "Best configuration, trained again" in text and "rates-10" in text and "rates-11" in text


@pytest.mark.slow
def test_groups_and_several_runs_are_looked_up_and_saved_as_one_report(online, tmp_path):
    folders = [
        tracked(tmp_path, "online", f"{group} {seed}", {"group": group, "seed": seed})
        for group, seed in (("narrow", 0), ("narrow", 1), ("wide", 0))
    ]
    wandb_report.save_report("e/p/groups/narrow")
    wandb_report.save_report("e/p/groups/narrow", str(folders[2]))
    first, second = online.saved
    assert first.title == "Group narrow" and second.title == "Group narrow, wide 0"
    ids = {run.name: name for name, run in online.runs.items()}
    assert ids["wide 0"] not in json.dumps(first.spec)
    for saved in (first, second):
        text = json.dumps(saved.spec)
        assert ids["narrow 0"] in text and ids["narrow 1"] in text
    assert ids["wide 0"] in json.dumps(second.spec)
    with pytest.raises(UsageError, match=r"no run of the group 'none' in e/p; give"):
        wandb_report.save_report("e/p/groups/none")


@pytest.mark.slow
def test_the_directories_of_seeds_and_of_a_sweep_name_their_runs(online, tmp_path):
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    tracked(tmp_path / "runs", "online", "one", {"group": "g"})
    (seeds / "seeds.json").write_text(json.dumps({"group": "g"}))
    (seeds / "recipe.yaml").write_text(Config(project="p", entity="e", group="g").to_yaml())
    wandb_report.save_report(str(seeds))
    sweep = tmp_path / "search"
    with pytest.raises(UsageError, match="is no run directory"):
        sweep.mkdir()
        wandb_report.save_report(str(sweep))
    (sweep / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    with pytest.raises(UsageError, match=r"no run of .* is in W&B; upload them with: harness sync"):
        wandb_report.save_report(str(sweep))
    for number, kind in ((1, "trial"), (2, "trial"), (3, "final")):
        settings = {"group": "search", "job_type": kind}
        tracked(sweep / "runs", "online", f"{kind} {number}", settings, **{"best/val_acc": number / 10})
    wandb_report.save_report(str(sweep))
    group, search = online.saved
    assert (group.title, search.title) == ("Group g", "Sweep rates")
    text = json.dumps(search.spec)
    ids = {run.name: name for name, run in online.runs.items()}
    assert "2 runs, method bayes" in text and "Best run: trial 2" in text and ids["final 3"] in text


# --- a view of the workspace


def test_a_workspace_view_shows_curves_and_galleries_and_pins_the_results(offline):
    facts, keys = offline
    workspace = build_workspace(facts)
    sections = {section.name: section.panels for section in workspace.sections}
    assert {"Accuracy and loss", "Learning rate", "Throughput, time and memory", "More"} <= set(sections)
    assert ["lr"] in [panel.y for panel in sections["Learning rate"]]
    media = {key for panels in sections.values() for panel in panels for key in getattr(panel, "media_keys", ())}
    assert {"gallery", "cam"} <= media <= keys
    columns = workspace.runset_settings.pinned_columns
    assert columns[:3] == ["run:displayName", "summary:result/acc", "summary:result/test/acc"]
    assert "config:lr_max.value" in columns and "config:seed.value" in columns
    assert workspace._to_model().spec.section.run_sets[0].run_feed.column_pinned["summary:result/test/acc"]


def test_the_view_of_several_runs_has_the_sections_of_what_any_of_them_logged(offline, two_groups):
    def sections(workspace):
        return {section.name: len(section.panels) for section in workspace.sections}

    silent = replace(two_groups.runs[0], summary={}, charts={})
    several = build_workspace(RunsFacts("several", (silent, *two_groups.runs[1:])))
    assert sections(several) == sections(build_workspace(offline[0]))


def test_the_view_of_a_sweep_shows_its_runs_and_pins_its_metric_and_parameters(offline):
    parameters = {"lr": {"min": 0.01, "max": 0.1}, "model_args": {"parameters": {"width": {"values": [4, 8]}}}}
    sweep = SweepFacts("e", "p", "s1", "rates", {**SWEEP, "parameters": parameters}, 7, offline[0])
    view = build_workspace(sweep).runset_settings
    assert view.pinned_columns[1] == "summary:best/val_acc"
    assert view.pinned_columns[-2:] == ["config:lr_max.value", "config:model_args.value.width"]
    assert "s1" in view.filters
    assert "rates-1" in build_workspace(replace(sweep, sweep_id="", group="rates-1")).runset_settings.filters


def test_a_saved_view_is_in_wandb_under_the_returned_url(online, tmp_path, capfd):
    tracked(tmp_path, "online", "run 🎈")
    (run_id,) = online.runs
    link = save_workspace(f"e/p/{run_id}")
    (saved,) = online.saved
    assert (saved.title, saved.kind) == ("harness: run ", "project-view")
    assert "/e/p?nw=" in link
    text = json.dumps(saved.spec)
    assert '"gallery"' in text and "summary:result/test/acc" in text
    assert not capfd.readouterr().out
    cli.main(["report", "--wandb", f"e/p/{run_id}", "--workspace"], standalone_mode=False)
    report, again = online.saved[1:]
    assert (report.title, report.kind, again.kind) == ("Run run 🎈", "runs", "project-view")
    first, second = capfd.readouterr().out.splitlines()
    assert "/e/p/reports/" in first and second.partition("?")[0] == link.partition("?")[0]


def test_a_run_that_wandb_does_not_have_is_reported_in_one_line(online, tmp_path):
    with pytest.raises(UsageError, match="W&B has no run or sweep e/p/none; give ENTITY"):
        wandb_report.save_report("e/p/none")
    with pytest.raises(UsageError, match="W&B has no run or sweep e/p/none"):
        wandb_report.save_report("p/none")
    with pytest.raises(UsageError, match="no sweep e/q/none"):
        wandb_report.save_report("e/q/sweeps/none")
    folder = tracked(tmp_path, "offline")
    with pytest.raises(UsageError, match=f"harness sync {folder}"):
        wandb_report.save_report(str(folder))
    assert not online.saved


def test_a_missing_key_is_reported_with_its_remedy(monkeypatch):
    with pytest.raises(TrackingError, match="no W&B API key was found; run `wandb login`"):
        wandb_report.save_report("e/p/abc")


def test_an_unavailable_server_is_reported_soon(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but not listening
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        began = time.monotonic()
        with pytest.raises(TrackingError, match=r"W&B is unavailable .* check the network"):
            wandb_report.save_report("e/p/abc")
    assert time.monotonic() - began < 40


@pytest.mark.slow
def test_a_server_that_never_answers_times_out(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        began = time.monotonic()
        with pytest.raises(TrackingError, match="W&B is unavailable"):
            wandb_report.save_report("e/p/abc")
    assert time.monotonic() - began < 90


def test_without_wandb_workspaces_the_extra_is_named():
    code = (
        "import sys; sys.modules['wandb_workspaces'] = None\n"
        "from harness.tracking.wandb import report\n"
        "try: report.save_report('e/p/abc')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("TrackingError")
    assert "pip install 'vision-harness[reports]'" in done.stdout


def test_of_several_metrics_of_a_sweep_the_first_decides_and_nonsense_is_none():
    first = {"name": "best/val_acc", "goal": "maximize"}
    assert (
        metric_of({"metrics": [first, {"name": "val/loss"}]})
        == metric_of({"metric": first})
        == ("best/val_acc", "maximize")
    )
    for nonsense in ({}, {"metric": "x"}, {"metrics": 5}, {"metrics": [1]}):
        assert metric_of(nonsense) == ("", "minimize")
