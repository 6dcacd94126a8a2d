"""Every benchmark runs in its quick form and writes its results with a description of the machine."""

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run_benchmark(script, *options, out, **variables):
    path = os.pathsep.join(filter(None, (str(BENCHMARKS.parent), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--out", str(out), *map(str, options)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=out.parent)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    result = json.loads(out.read_text())
    assert {"date", "benchmark", "packages", "device", "cores", "threads", "load", "rows"} <= result.keys()
    assert result["packages"]["torch"] and result["rows"]
    assert str(Path.home()) not in out.read_text() and "command" not in result
    return result


def numbers(row):
    return {key: value for key, value in row.items() if isinstance(value, int | float)}


@pytest.mark.slow
def test_input_pipelines_are_measured(tmp_path):
    result = run_benchmark("augmentation.py", out=tmp_path / "a.json")
    rows = {row["loader"]: row for row in result["rows"]}
    assert rows["resident"]["relative speed of resident"] == 1 and len(rows) == 6
    for row in rows.values():
        assert 0 < row["images/s, least"] <= row["images/s, median"] <= row["images/s, greatest"]


@pytest.mark.slow
def test_the_loop_is_compared_with_other_libraries_and_a_missing_one_is_named(tmp_path):
    result = run_benchmark("throughput.py", out=tmp_path / "t.json")
    rows = {row["contender"]: row for row in result["rows"]}
    assert {"harness", "reference PyTorch loop", "timm + W&B as it comes", "timm + W&B tuned"} <= rows.keys()
    assert rows["harness"]["ours is, training"] == 1
    assert all(math.isfinite(value) and value > 0 for row in rows.values() for value in numbers(row).values())
    installed = {name: importlib.util.find_spec(name.lower()) for name in ("Lightning", "fastai", "Ultralytics")}
    for name, form in itertools.product(installed, ("as it comes", "tuned")):
        row = f"{name} + W&B {form}"
        assert (row in rows) != any(line.startswith(f"{row}: ") for line in result["left_out"])
        assert row not in rows or installed[name]


@pytest.mark.slow
def test_comparing_with_other_libraries_leaves_no_settings_behind(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    variables = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "FASTAI_HOME": str(home / ".fastai")}
    run_benchmark("throughput.py", "--only", "fastai,ultralytics", "--repeats", 1, out=tmp_path / "t.json", **variables)
    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert not [path for path in left if "ltralytics" in path or "fastai" in path or "wandb" in path], left
    assert {path.name for path in tmp_path.iterdir()} == {"home", "t.json"}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["overheads.py", "recipe.py", "local_sweep.py"])
def test_the_other_benchmarks_run(tmp_path, script):
    result = run_benchmark(script, out=tmp_path / "o.json")
    assert all(math.isfinite(value) for row in result["rows"] for value in numbers(row).values())


@pytest.mark.slow
def test_the_recipe_auto_is_compared_with_a_search_on_the_same_images(tmp_path):
    result = run_benchmark("auto_recipe.py", out=tmp_path / "r.json")
    (row,) = result["rows"]
    assert row["set"] == "digits-28" and len(result["trials_of_search"]) == 2
    behind = row["search %"] - row["auto %"]
    assert row["auto is behind, points"] == pytest.approx(behind, abs=0.02)
    assert row["within a point"] == ("yes" if behind <= 1 else "NO") and row["at chance"] in (0, 1)
    assert row["search, validation %"] == pytest.approx(
        100 * max(trial["acc"] for trial in result["trials_of_search"]), abs=0.01
    )


@pytest.mark.slow
def test_fine_tuning_is_compared_with_training_from_scratch_and_results_are_kept(tmp_path):
    log, work = tmp_path / "log.jsonl", tmp_path / "work"
    first = run_benchmark("finetune.py", "--log", log, "--work", work, out=tmp_path / "f.json")
    assert [row["method"] for row in first["rows"]] == ["auto", "auto --init", "finetune"]
    assert all(0 < row["acc %"] <= 100 and row["seeds"] == 1 for row in first["rows"])
    assert not set(first["classes"]) & set(first["classes of the weights"])
    lines = log.read_text()
    again = run_benchmark("finetune.py", "--log", log, "--work", work, out=tmp_path / "g.json")
    assert (again["rows"], log.read_text()) == (first["rows"], lines)


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu_without_the_parts_that_need_cuda(tmp_path):
    result = run_benchmark("gpu.py", "--device", "cpu", out=tmp_path / "g.json")
    rows = {row["what"]: row for row in result["rows"]}
    assert all(row["right"] != "NO" for row in rows.values()), rows
    assert rows["augmentation against the CPU's"]["value"] == 0
    assert rows["resumed run"]["value"] == 0
    needs_cuda = ["losses in a CUDA graph", "fused kernels", "variants of the update"]
    left_out = ["host synchronisation", "CUDA graph", *needs_cuda]
    assert [line.split(":")[0] for line in result["left_out"]] == left_out
    assert any("custom-resnet" in what and "accuracy" in what for what in rows)
