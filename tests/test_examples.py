"""The examples run unchanged, as a user runs them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import command

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NARROW = ["--threads", 1, "--precision", "fp32", "--wandb", "disabled"]


@pytest.fixture
def folder(tmp_path):
    """A copy of the examples, so that nothing is left in the tree."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("runs", "__pycache__")))


def python(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.slow
def test_a_users_model_is_trained_by_its_name(folder):
    options = [
        "--plugin",
        "my_models",
        "--model",
        "shape_net",
        "--model-args",
        "width=4",
        "--lr-max",
        0.1,
        "--cam",
        "none",
    ]
    command("run", "--recipe", "digits", *options, *NARROW, "--epochs", 2, "--name", "mine", cwd=folder, check=0)
    summary = json.loads((folder / "runs/mine/summary.json").read_text())
    convolutions = sum(9 * a * b + 2 * b for a, b in ((3, 4), (4, 8), (8, 16)))
    assert summary["parameters"] == convolutions + 16 * 10 + 10
    assert summary["result"]["test/acc"] > 0.2  # chance is 0.1


@pytest.mark.slow
def test_a_users_transform_loss_schedule_metric_and_tracker_are_used_by_their_names(folder):
    options = [
        "--plugin",
        "my_parts",
        "--transforms",
        "jpeg",
        "--loss",
        "poly1",
        "--schedule",
        "inverse_sqrt",
        "--schedule-args",
        "power=0.5",
    ]
    options += ["--warmup-epochs", 0.5, "--metrics", "worst_recall", "--tracker", "lines", "--model-args", "width=4"]
    command("run", "--recipe", "digits", *options, *NARROW, "--epochs", 1, "--name", "parts", cwd=folder, check=0)
    run = folder / "runs/parts"
    assert 0 <= json.loads((run / "summary.json").read_text())["result"]["test/worst_recall"] <= 1
    lines = [json.loads(line) for line in (run / "lines.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "train/step_loss" in line]
    assert len(rates) == 22 and max(rates) == rates[11] == 0.01 and rates[-1] < 0.005
    assert lines[-1] == {"status": "finished"}


@pytest.mark.slow
def test_drawn_shapes_are_learned_evaluated_and_explained(folder):
    assert "450 images" in python("draw_shapes.py", "shapes", cwd=folder)
    command("run", "--recipe", "shapes.yaml", "--name", "shapes", *NARROW, cwd=folder, check=0)
    assert json.loads((folder / "runs/shapes/summary.json").read_text())["result"]["test/acc"] > 0.6
    assert "circle" in command("evaluate", "runs/shapes", cwd=folder, check=0).stdout
    output = command(
        "explain", "runs/shapes", "shapes/test/circle/000.png", "-o", "explained", cwd=folder, check=0
    ).stdout
    assert "circle" in output and list((folder / "explained").glob("*.png"))


@pytest.mark.slow
def test_a_users_data_set_is_trained_on_by_its_name(folder):
    named = ["--data", "stripes", "--plugin", "my_data"]
    assert "500 images in 2 classes" in command("data", "stripes", "--plugin", "my_data", cwd=folder, check=0).stdout
    options = ["--model-args", "width=4", "--epochs", 2, "--batch-size", 50, "--lr-max", 0.1, "--cam", "none"]
    command("run", *named, *options, *NARROW, "--name", "stripes", cwd=folder, check=0)
    assert json.loads((folder / "runs/stripes/summary.json").read_text())["result"]["test/acc"] > 0.6
    assert "vertical" in command("evaluate", "runs/stripes", "--plugin", "my_data", cwd=folder, check=0).stdout


@pytest.mark.slow
def test_drawn_shapes_are_learned_in_every_layout_that_the_page_on_own_data_shows(folder):
    """The same images as split files and as a table give the same splits, and the same fingerprint of pixels."""
    python("draw_shapes.py", "shapes", cwd=folder)
    rows = [path.relative_to(folder / "shapes") for path in sorted((folder / "shapes").rglob("*.png"))]
    splits = {split: [path for path in rows if path.parts[0] == split] for split in {path.parts[0] for path in rows}}
    lines = [f"{path.as_posix()},{path.parts[1]},{path.parts[0]}" for path in rows]
    (folder / "shapes/all.csv").write_text("\n".join(["path,label,split", *lines]))
    for split, paths in splits.items():
        for path in paths:
            place = folder / "listed/images" / path.parts[1] / f"{split}-{path.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "shapes" / path, place)
        names = [f"{path.parts[1]}/{split}-{path.name}" for path in paths]
        (folder / f"listed/{split}.txt").write_text("\n".join(names))
    described = {}
    for name in ("shapes", "shapes/all.csv", "listed"):
        values = json.loads(command("data", name, "--json", cwd=folder, check=0).stdout)
        described[name] = (values["classes"], values["splits"], values["sizes"])
    assert described["shapes"] == described["shapes/all.csv"] == described["listed"]
    options = ["--model-args", "width=4", "--epochs", 1, "--batch-size", 50, "--cam", "none", "--name", "table"]
    command("run", "--data-dir", "shapes/all.csv", *options, *NARROW, cwd=folder, check=0)
    summary = json.loads((folder / "runs/table/summary.json").read_text())
    assert summary["dataset"]["images"] == {split: len(paths) for split, paths in splits.items()}
    assert "circle" in command("evaluate", "runs/table", "--data-dir", "shapes/all.csv", cwd=folder, check=0).stdout
    command("data", "shapes", "--output", "sheet.png", cwd=folder, check=0)
    assert (folder / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_comparison_of_schedules_prints_a_row_of_each_and_draws_them(folder):
    options = ["--seeds", 1, "--epochs", 1, "--width", 4, "--schedules", "one_cycle", "constant"]
    output = python("compare_schedules.py", *options, cwd=folder)
    rows = re.findall(r"^(\w+) +([\d.]+) % +([\d.]+) % +([\d.]+) %$", output, re.M)
    assert [row[0] for row in rows] == ["one_cycle", "constant"]
    assert all(low == mean == high for _, mean, low, high in rows)  # one seed
    assert (folder / "schedules.png").read_bytes().startswith(b"\x89PNG")


def test_the_notebook_is_valid_and_holds_no_outputs():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_in_their_order(folder):
    cells = json.loads((folder / "notebook.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (folder / "cells.py").write_text(code)
    output = python("cells.py", cwd=folder)
    assert "epoch 3" in output and "LRMAX" in output and "bit-identical: True" in output
    assert "trials      2: 2 complete" in output  # of the sweep without a server


def test_a_notebook_has_no_cell_that_is_no_python():
    for cell in json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")
