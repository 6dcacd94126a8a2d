"""Every benchmark runs, in its quick form, and writes what it measured with the machine that it was measured on."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def bench(script, *words, out):
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(BENCHMARKS / script), "--quick", "--out", str(out), *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, env=environment, cwd=out.parent)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads(out.read_text())
    assert {"date", "benchmark", "packages", "device", "cores", "threads", "load", "rows"} <= told.keys()
    assert told["packages"]["torch"] and told["rows"]
    assert str(Path.home()) not in out.read_text() and "command" not in told
    return told, done


def numbers(row):
    return {key: value for key, value in row.items() if isinstance(value, int | float)}


def test_augmentation_paths_are_measured_in_turns(tmp_path):
    told, _ = bench("augmentation.py", out=tmp_path / "a.json")
    rows = {row["way"]: row for row in told["rows"]}
    assert rows["resident"]["resident is"] == 1 and len(rows) == 6
    for row in rows.values():
        assert 0 < row["images/s, least"] <= row["images/s, median"] <= row["images/s, greatest"]


@pytest.mark.slow
def test_the_loop_is_measured_beside_its_peers_and_a_missing_one_is_named(tmp_path):
    told, _done = bench("throughput.py", out=tmp_path / "t.json")
    rows = {row["contender"]: row for row in told["rows"]}
    assert {"harness", "hand-written", "timm as it comes", "timm tuned"} <= rows.keys()
    assert rows["harness"]["ours is, training"] == 1
    assert all(math.isfinite(value) and value > 0 for row in rows.values() for value in numbers(row).values())
    for name in ("Lightning + W&B as it comes", "Lightning + W&B tuned"):
        assert name in rows or any(line.startswith(name) for line in told["left_out"])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["overheads.py", "recipe.py", "local_sweep.py"])
def test_the_other_benchmarks_run(tmp_path, script):
    told, _ = bench(script, out=tmp_path / "o.json")
    assert all(math.isfinite(value) for row in told["rows"] for value in numbers(row).values())


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_cpu_with_what_needs_cuda_left_out(tmp_path):
    told, _done = bench("gpu.py", "--device", "cpu", out=tmp_path / "g.json")
    rows = {row["what"]: row for row in told["rows"]}
    assert all(row["right"] != "NO" for row in rows.values()), rows
    assert rows["augmentation against the CPU's"]["value"] == 0
    assert rows["resumed run"]["value"] == 0
    assert [line.split(":")[0] for line in told["left_out"]] == ["host synchronisation", "CUDA graph"]
    assert any("custom-resnet" in what and "accuracy" in what for what in rows)
