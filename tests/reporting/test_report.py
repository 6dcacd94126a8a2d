"""The HTML pages of runs and sweeps: their contents, and that hostile text in them is inert."""

import base64
import csv
import gzip
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from harness.evaluation import metrics
from harness.reporting.html import comparison, facts, pages, sweep_reader
from harness.reporting.html.comparison import compare_classes
from harness.reporting.html.groups import group_runs, spread
from harness.reporting.html.pages import write_run_page
from harness.reporting.html.plotly import thin
from harness.utils.errors import UsageError
from harness.utils.stats import moving_average, share_interval
from tests.support.commands import QUICK, command
from tests.support.forked import begin
from tests.support.report_samples import CLASSES, EVIL, evil_run, other_seed, sweep


class Page(HTMLParser):
    """A page as a browser parses it: its tags, and its text outside of scripts."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.scripts, self._inside = [], "", [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def charts(self):
        return json.loads(self.scripts[0])


def test_a_run_that_is_named_twice_is_on_the_page_once(finished, tmp_path):
    """A shell's `*` names the directory of several seeds and the runs in it."""
    folder = finished[1]
    once, twice = (
        pages.write_page(paths, tmp_path / name)
        for paths, name in (([folder], "1.html"), ([folder, folder / "figures" / ".."], "2.html"))
    )
    assert Page(twice).text == Page(once).text


def check_is_inert(page, scripts=3):
    """Check that a page has only its own scripts, no event handler, and no address outside of itself."""
    assert len(page.scripts) == scripts
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "form", "base")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "poster", "data"):
                assert value.startswith(("data:", "#")), (tag, name, value)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")


def check_references(page):
    """Check that ids are unique and that every reference to an id has its target."""
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("aria-controls", "aria-labelledby"):
            assert attributes.get(name, ids[0]) in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_every_run_writes_its_page(finished):
    _, folder = finished
    page = Page(folder / "report.html")
    result = json.loads((folder / "summary.json").read_text())["result"]
    assert f"{100 * result['test/acc']:.2f} %" in page.text
    for text in (
        "last epoch",
        "By epoch",
        "Confusion matrix",
        "Misclassified",
        "Class-activation maps",
        "harness run --recipe digits",
    ):
        assert text in page.text
    check_is_inert(page)
    check_references(page)
    assert len(page.source) < 10e6
    accuracy = next(trace for trace in page.charts["epoch-acc"]["data"] if trace["name"] == "test")
    assert accuracy["y"][-1] == pytest.approx(result["test/acc"], rel=1e-5)


def test_a_page_has_the_figures_of_each_class_that_the_run_computed(finished):
    _, folder = finished
    with open(folder / "per_class.csv", newline="") as file:
        expected = list(csv.DictReader(file))
    predictions, why = metrics.read_predictions_csv(folder / "predictions.csv", [row["class"] for row in expected])
    assert predictions is not None, why
    figures = metrics.per_class(metrics.confusion_matrix(predictions)).rows(predictions.classes)
    for row, computed in zip(expected, figures, strict=True):
        for key in ("accuracy", "precision", "recall", "f1", "images"):
            assert getattr(computed, key) == pytest.approx(float(row[key])), (row["class"], key)
    ece = json.loads((folder / "summary.json").read_text())["result"]["test/ece"]
    assert metrics.reliability(predictions).ece == pytest.approx(ece, abs=1e-5)


@pytest.mark.slow
def test_report_false_leaves_the_page_out(tmp_path):
    command("run", *QUICK, "--epochs", 0, "--gallery", 0, "--report", "false", cwd=tmp_path, check=0)
    assert not list(tmp_path.glob("runs/*/report.html"))


def test_a_page_that_cannot_be_written_is_reported_in_one_line(tmp_path):
    folder = evil_run(tmp_path / "run")
    (folder / "report.html/in-the-way").mkdir(parents=True)
    messages = []
    write_run_page(folder, messages.append)
    assert len(messages) == 1
    assert messages[0].startswith("report.html was not written: ")
    assert "\n" not in messages[0]


@pytest.mark.slow
def test_a_page_that_cannot_be_written_does_not_fail_the_run(tmp_path):
    running = begin("run", *QUICK, "--epochs", 0, "--gallery", 0, "--name", "mine", cwd=tmp_path)
    running.until(lambda: (tmp_path / "runs/mine/status.json").exists())
    (tmp_path / "runs/mine/report.html/in-the-way").mkdir(parents=True)
    done = running.end(100)
    assert done.code == 0
    assert "report.html was not written" in done.stderr
    assert "Traceback" not in done.stderr


def test_hostile_text_is_shown_and_inert(tmp_path):
    page = Page(pages.write_page([evil_run(tmp_path / "evil")]))
    check_is_inert(page)
    check_references(page)
    assert page.text.count(EVIL) > 10
    assert CLASSES[1] in page.text
    assert page.source.count("<script>alert") == 0
    confusion = page.charts["confusion"]["layout"]["xaxis"]["ticktext"]
    assert all("<" not in name for name in confusion)  # Plotly reads a little HTML


def test_the_page_embeds_the_complete_plotly_script(finished):
    _, folder = finished
    script = gzip.decompress(base64.b64decode(Page(folder / "report.html").scripts[1])).decode()
    assert re.search(r"plotly\.js v\d", script[:500])


@pytest.mark.parametrize("state", ["failed", "interrupted", "running"])
def test_the_page_of_an_unfinished_run_shows_its_state(tmp_path, state):
    page = Page(pages.write_page([evil_run(tmp_path / "run", state)]))
    assert ("crashed" if state == "running" else state) in page.text  # no process holds its lock
    assert "Resume it with" in page.text
    assert "accuracy so far" in page.text


def test_the_page_of_a_damaged_run_names_what_is_missing(tmp_path):
    folder = evil_run(tmp_path / "run")
    (folder / "summary.json").write_text("{")
    (folder / "predictions.csv").write_text("index,id\n1")
    for path in (folder / "media").iterdir():
        path.write_bytes(b"no picture")
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:-1]) + b'{"kind": "summ')
    page = Page(pages.write_page([folder]))
    assert page.text.count("Missing:") >= 2
    check_is_inert(page)
    (folder / "config.yaml").unlink()
    assert "config.yaml" in Page(pages.write_page([folder])).text
    (folder / "journal.jsonl").write_bytes(b"\xff\x00")
    (folder / "config.yaml").write_text("a: [")
    assert "Missing:" in Page(pages.write_page([folder])).text


def test_a_folder_that_is_no_run_is_refused_in_one_line_with_a_remedy(tmp_path):
    for path, remedy in ((tmp_path / "nowhere", "harness runs"), (tmp_path, "harness runs")):
        with pytest.raises(UsageError, match=remedy) as error:
            pages.write_page([path])
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="there is nothing to report"):
        pages.write_page([])


def test_a_folder_of_runs_seeds_and_sweeps_has_one_page_of_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = evil_run(tmp_path / "runs/one")
    other_seed(one, tmp_path / "runs/s1", 1, 0.5)
    (tmp_path / "runs/pair").mkdir()
    (tmp_path / "runs/pair/seeds.json").write_text('{"seeds": [{"folder": "one"}, {"folder": "s1"}]}')
    sweep(tmp_path / "runs/rates")
    linked = evil_run(tmp_path / "runs/linked")
    (linked / "summary.json").unlink()
    (linked / "summary.json").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs/notes").mkdir()
    assert pages.write_page("runs") == pages.Path("report.html")
    page = Page(tmp_path / "report.html")
    check_is_inert(page)
    check_references(page)
    assert len(page.charts["all-test-acc"]["data"]) == 2
    for text in ("2 runs and 1 sweep", "harness report runs/rates", "Left out: runs/linked", "lr_max=0.03"):
        assert text in page.text
    # What a shell's star makes of it, the page of before among it; the link is an error, since its run was named.
    (tmp_path / "runs/report.html").write_text("")
    shutil.rmtree(linked)
    paths = sorted(path for path in (tmp_path / "runs").iterdir() if path.name != "notes")
    assert Page(pages.write_page(paths, tmp_path / "star.html")).charts == page.charts
    single = pages.write_page([tmp_path / "runs/rates/.."], tmp_path / "again.html")
    assert Page(single).charts == page.charts
    alone = evil_run(tmp_path / "others/alone")
    assert pages.write_page(tmp_path / "others") == alone / "report.html"


def test_runs_that_differ_only_in_the_seed_form_one_group(tmp_path):
    one = evil_run(tmp_path / "evil")
    scores = [0.7, 0.72, 0.77]
    runs = [other_seed(one, tmp_path / f"s{n}", n, score) for n, score in enumerate(scores)]
    runs.append(other_seed(one, tmp_path / "wide", 0, 0.9, batch_size=64))
    groups = group_runs([pages.read_run(path) for path in runs])
    assert [len(group.runs) for group in groups] == [3, 1]
    interval = groups[0].spread("test/acc")
    assert interval.mean == pytest.approx(np.mean(scores))
    assert interval.sd == pytest.approx(np.std(scores, ddof=1))
    page = Page(pages.write_page(runs, tmp_path / "all.html"))
    check_is_inert(page)
    check_references(page)
    assert "73.00 %" in page.text
    assert "batch_size" in page.text
    assert len(page.charts["all-test-acc"]["data"]) == 4


def test_the_same_seed_twice_is_no_spread(tmp_path):
    one = evil_run(tmp_path / "evil")
    runs = [other_seed(one, tmp_path / f"r{n}", 0, score) for n, score in enumerate((0.7, 0.8))]
    (group,) = group_runs([pages.read_run(path) for path in runs])
    interval = group.spread("test/acc")
    assert (interval.n, interval.mean, interval.sd, group.seeds) == (1, 0.7, None, [0])
    text = Page(pages.write_page(runs, tmp_path / "all.html")).text
    assert "seed 0 was run 2 times (r0, r1). The same seed twice is no spread" in text
    runs.append(other_seed(one, tmp_path / "r2", 1, 0.9))
    (group,) = group_runs([pages.read_run(path) for path in runs])
    assert group.spread("test/acc").sd == pytest.approx(np.std([0.7, 0.9], ddof=1))
    assert group.seeds == [0, 1]
    labels = [group.run_label(run) for run in group.runs]
    assert len(set(labels)) == 3 and labels[2].endswith(", seed 1")


def test_a_run_that_has_not_finished_does_not_stand_for_its_seed(tmp_path):
    runs = [evil_run(tmp_path / "a", "failed"), other_seed(evil_run(tmp_path / "b"), tmp_path / "c", 0, 0.6)]
    (group,) = group_runs([pages.read_run(path) for path in runs])
    assert [run.path.name for run in group.distinct] == ["c"]


def test_labels_are_the_settings_in_which_the_configurations_differ_and_no_others(tmp_path):
    one = evil_run(tmp_path / "evil")
    changes = [
        {"lr_max": 0.1, "model_args": {"width": 4}},
        {"lr_max": 0.1, "model_args": {"width": 8}, "batch_size": 64},
        {"lr_max": 0.4, "model_args": {"width": 4, "logit_scale": 0.2}},
    ]
    runs = [
        other_seed(one, tmp_path / f"{n}-{seed}", seed, 0.5, **change)
        for n, change in enumerate(changes)
        for seed in range(1 + (n == 0))
    ]
    read = [pages.read_run(path) for path in runs]
    groups = group_runs(read)
    assert [set(group.label.split(", ")) for group in groups] == [
        {"lr_max=0.1", "batch_size=512", "model_args.width=4"},
        {"lr_max=0.1", "batch_size=64", "model_args.width=8"},
        {"lr_max=0.4", "batch_size=512", "model_args.width=4", "model_args.logit_scale=0.2"},
    ]
    assert groups[0].run_label(read[1]) == f"0-1, {groups[0].label}, seed 1"
    assert groups[1].run_label(read[2]) == f"1-0, {groups[1].label}"
    assert [group.name for group in groups] == ["0-0 and 1 more", "1-0", "2-0"]


def test_the_comparison_begins_with_the_names_of_the_runs_and_their_accuracies(tmp_path):
    one = evil_run(tmp_path / "evil")
    changes = {
        "plain": {},
        "longer": {"epochs": 7, "extended": ("120:5",)},
        "cats": {"data": "folder", "data_dir": "/x/my cats"},
    }
    runs = [other_seed(one, tmp_path / name, 0, 0.5, **change) for name, change in changes.items()]
    page = Page(pages.write_page(runs, tmp_path / "all.html"))
    table = page.source[page.source.index("All runs.") :]
    heads = re.findall(r"<th scope=\"col\"[^>]*><button[^>]*>([^<]*)", table[: table.index("</thead>")])
    assert heads[:3] == ["Run", "test/acc", "95 % interval"] and heads.index("Configuration") > heads.index("test/loss")
    legend = re.findall(r"<button type=\"button\" data-group.*?</svg> <span>([^<]*)<", page.source, re.DOTALL)
    assert [name.strip() for name in legend] == list(changes)
    assert "extended=5 epochs to update 120" in page.text and "120:5" not in page.text
    assert "data=my cats" in page.text and "data=folder" not in page.text
    assert "The runs are on different data (digits, my cats)" in page.text
    alike = Page(pages.write_page(runs[:2], tmp_path / "alike.html"))
    assert "on different data" not in alike.text


def test_an_empty_setting_is_none_on_the_page_as_in_the_terminal(tmp_path):
    run = pages.read_run(evil_run(tmp_path / "evil"))
    shown = {setting.name: setting.value for setting in facts.all_settings(run)}
    assert run.config["class_weights"] == "" and shown["class_weights"] == "none" and "" not in shown.values()


def test_nineteen_configurations_have_nineteen_styles_and_labels(tmp_path):
    one = evil_run(tmp_path / "evil")
    runs = [other_seed(one, tmp_path / f"r{n}", 0, 0.5, lr_max=0.01 * (n + 1)) for n in range(19)]
    page = Page(pages.write_page(runs, tmp_path / "all.html"))
    lines = page.charts["all-test-loss"]["data"]
    assert len({(line["line"]["color"], line["line"]["dash"]) for line in lines}) == 19
    assert len({line["name"] for line in lines}) == 19
    assert page.charts["all-test-loss"]["layout"]["showlegend"] is False  # one legend for all charts, outside of them
    assert sum(tag == "button" and "data-group" in attributes for tag, attributes in page.tags) == 19


def test_classes_and_confusions_are_compared_between_configurations(tmp_path):
    one = evil_run(tmp_path / "evil")
    runs = [other_seed(one, tmp_path / "a", 0, 0.5, lr_max=0.1), other_seed(one, tmp_path / "b", 0, 0.5, lr_max=0.2)]
    with open(runs[1] / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {name.lstrip("'"): index for index, name in enumerate(CLASSES)}
    truth = np.array([names[row["label"].lstrip("'")] for row in rows])
    predicted = [np.array([names[row["prediction"].lstrip("'")] for row in rows]) for _ in range(2)]
    predicted[1][truth == 2] = 0  # the second run predicts every image of one class as another
    for row, index in zip(rows, predicted[1], strict=True):
        row["prediction"] = next(each["label"] for each in rows if names[each["label"].lstrip("'")] == index)
    with open(runs[1] / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    groups = group_runs([pages.read_run(path) for path in runs])
    compared = compare_classes(groups)
    assert compared is not None and not compared.left_out
    first = compared.rows[0]
    expected = [np.mean(some[truth == 2] == 2) for some in predicted]
    assert first.name == CLASSES[2] and first.recalls == pytest.approx(expected) and expected[1] == 0
    assert first.images == (truth == 2).sum()
    assert (compared.pairs[0].truth, compared.pairs[0].prediction) == (CLASSES[2], CLASSES[0])
    assert compared.pairs[0].shares == pytest.approx([np.mean(some[truth == 2] == 0) for some in predicted])
    page = Page(pages.write_page(runs, tmp_path / "all.html"))
    check_is_inert(page)
    z = np.array(page.charts["confusion-difference"]["data"][0]["z"], float)
    assert z[2, 0] == pytest.approx(1 - compared.pairs[0].shares[0], rel=1e-5)
    numbers = np.array(page.charts["confusion-difference"]["data"][0]["text"])
    assert [int(text or 0) for text in numbers.flat] == np.rint(100 * z).astype(int).ravel().tolist()
    assert all(run.name in page.text for run in runs)  # the legend names a configuration's only run
    assert z.sum(1) == pytest.approx(np.zeros(4), abs=1e-5)  # what one class gains another one loses
    assert "Confusions that differ most" in page.text
    (runs[1] / "predictions.csv").unlink()
    assert compare_classes(group_runs([pages.read_run(path) for path in runs])) is None


def test_the_interval_of_the_mean_is_students():
    from scipy import stats

    values = [0.9, 0.91, 0.93, 0.88]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    interval = spread([*values, math.nan])
    assert (interval.low, interval.high, interval.n) == (pytest.approx(low), pytest.approx(high), 4)
    assert spread([math.nan]) is None
    assert spread([1.0]).sd is None


def test_the_interval_of_a_share_is_wilsons():
    from scipy.stats import binomtest

    for right, images in ((5, 10), (0, 30), (30, 30), (1169, 2000)):
        expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
        assert share_interval(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_thinned_line_keeps_its_spikes_and_a_smoothed_one_its_level():
    y = list(np.random.default_rng(0).normal(size=20_000))
    y[777], y[12_345] = 50.0, -50.0
    x, kept = thin(list(range(20_000)), y, 1000)
    assert len(kept) <= 1002
    assert {50.0, -50.0} <= set(kept)
    assert all(y[index] == value for index, value in zip(x, kept, strict=True))
    assert moving_average([2.0] * 50, 0.9, skip_non_finite=True) == pytest.approx([2.0] * 50)


def test_a_sweep_has_a_page(tmp_path):
    folder = sweep(tmp_path / "sweep", EVIL)
    page = Page(pages.write_page([folder]))
    check_is_inert(page)
    check_references(page)
    assert {"scatter", "parallel", "history", "importance"} <= page.charts.keys()
    for text in ("trial-0002", "stopped early", "90.0 %", "LRMIN × LRMAX", "recipe: digits", EVIL):
        assert text in page.text
    assert sweep_reader.read_sweep(folder).best_so_far() == [0.8, 0.8, 0.9]
    (folder / "sweep.json").write_text("")
    (folder / "trials.csv").write_text("trial,state\n")
    assert "Missing:" in Page(pages.write_page([folder])).text


def test_the_command_makes_the_page_and_names_it(tmp_path):
    one = evil_run(tmp_path / "evil")
    other_seed(one, tmp_path / "s1", 1, 0.5)
    done = command("report", "evil", "s1", cwd=tmp_path, check=0)
    assert done.stdout.strip() == "report.html"
    assert (tmp_path / "report.html").is_file()
    refused = command("report", "nothing", cwd=tmp_path, check=2)
    assert refused.stderr.startswith("error: ")
    assert len(refused.stderr.splitlines()) == 1
    command("report", cwd=tmp_path, check=2)


@pytest.mark.slow
def test_a_real_sweep_leaves_its_page_and_its_trials_do_not(tmp_path):
    from pathlib import Path

    file = Path(__file__).parents[2] / "sweeps/digits.yaml"
    command("sweep", file, "--count", 3, "--name", "mine", "--epochs", 1, "--threads", 1, cwd=tmp_path, check=0)
    assert "trial-0000" in Page(tmp_path / "runs/mine/report.html").text
    assert not list(tmp_path.glob("runs/mine/runs/*/report.html"))
    assert "report" not in (tmp_path / "runs/mine/best.yaml").read_text()


def test_a_page_is_a_file_and_its_failure_is_one_line(tmp_path, monkeypatch, caplog):
    folder = evil_run(tmp_path / "run")
    (tmp_path / "pages").mkdir()
    with pytest.raises(UsageError, match=r"pages is a directory; give a file: -o .*pages/report\.html"):
        pages.write_page([folder], tmp_path / "pages")
    lines = []

    def fail(*arguments, **more):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pages, "run_page", fail)
    write_run_page(folder, lines.append)
    assert lines == [f"report.html was not written: a bug; write it with: harness report {folder}"]
    assert "ZeroDivisionError" in caplog.text  # where it can be found


def test_more_configurations_than_can_be_compared_class_by_class_are_named(tmp_path, monkeypatch):
    one = evil_run(tmp_path / "evil")
    runs = [other_seed(one, tmp_path / f"r{n}", 0, 0.5, lr_max=0.01 * (n + 1)) for n in range(4)]
    monkeypatch.setattr(comparison, "MAX_GROUPS", 3)
    groups = group_runs([pages.read_run(path) for path in runs])
    compared = compare_classes(groups)
    assert compared.groups == groups[:3]
    assert compared.left_out == [(groups[3].label, "only 3 configurations are compared")]


def test_a_damaged_journal_is_named_as_missing(tmp_path):
    folder = evil_run(tmp_path / "run")
    (folder / "journal.jsonl").unlink()
    (folder / "journal.jsonl").mkdir()
    run = pages.read_run(folder)
    (missing,) = (text for text in run.missing if "journal" in text)
    assert missing.startswith("the journal, and with it the curves and images (") and not run.records


@pytest.mark.parametrize("content", [b"", None, b"trial,state\n\0"])
def test_a_table_of_trials_that_cannot_be_read_is_named_as_missing(tmp_path, content):
    folder = sweep(tmp_path / "sweep")
    (folder / "trials.csv").unlink()
    if content is not None:
        (folder / "trials.csv").write_bytes(content)
    data = sweep_reader.read_sweep(folder)
    assert not data.trials and any("trials.csv" in text for text in data.missing)


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        (math.nan, "loss", "–"),
        (math.inf, "loss", "inf"),
        (None, "", "–"),
        (True, "", "True"),
        (1234, "", "1,234"),
        (0.1234, "test/acc", "12.34 %"),
        (0.25, "test/map", "25.00 %"),
        (1234.5, "loss", "1,234.5"),
        (0.12345, "loss", "0.1235"),
    ],
)
def test_a_cell_of_a_table_reads_as_a_person_reads_it(value, key, text):
    assert pages._cell_text(value, key) == text
