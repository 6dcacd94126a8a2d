"""The CPUs that a process may use, by affinity and by the limits of its cgroup, and how torchrun's processes are seen."""

import os
import platform
import re
from pathlib import Path

import pytest

from harness.utils import environment
from harness.utils.environment import cgroup_cpu_limit, launch_command, processor, rank, usable_cpus, world_size


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "cgroup"
    path.mkdir()
    return path


@pytest.fixture
def limit(root, tmp_path):
    """Return the limit below `root` for a process whose /proc/self/cgroup holds the given text."""

    def read(membership):
        (tmp_path / "self").write_text(membership)
        return cgroup_cpu_limit(root, tmp_path / "self")

    return read


# --- version 2


def test_without_cgroups_there_is_no_limit(root, limit, tmp_path):
    assert limit("0::/\n") is None
    assert cgroup_cpu_limit(root, tmp_path / "missing") is None
    assert cgroup_cpu_limit(tmp_path / "missing", tmp_path / "missing") is None


@pytest.mark.parametrize(("text", "cpus"), [("200000 100000\n", 2), ("50000 100000\n", 0.5), ("150000 50000\n", 3)])
def test_version_2_is_quota_over_period(root, limit, text, cpus):
    write(root / "pod" / "cpu.max", text)
    assert limit("0::/pod\n") == cpus


@pytest.mark.parametrize("text", ["max 100000\n", "", "max\n", "100000\n", "a b\n", "100000 0\n", "0 100000\n"])
def test_version_2_without_a_valid_quota_is_no_limit(root, limit, text):
    write(root / "pod" / "cpu.max", text)
    assert limit("0::/pod\n") is None


def test_the_lowest_limit_of_nested_cgroups_counts(root, limit):
    write(root / "a" / "cpu.max", "300000 100000\n")
    write(root / "a" / "b" / "cpu.max", "max 100000\n")
    write(root / "a" / "b" / "c" / "cpu.max", "800000 100000\n")
    assert limit("0::/a/b/c\n") == 3
    assert limit("0::/a\n") == 3
    assert limit("0::/\n") is None
    write(root / "a" / "b" / "c" / "cpu.max", "100000 100000\n")
    assert limit("0::/a/b/c\n") == 1
    assert limit("0::/a/b\n") == 3


def test_the_limits_of_other_cgroups_do_not_count(root, limit):
    write(root / "a" / "cpu.max", "100000 100000\n")
    write(root / "ab" / "cpu.max", "400000 100000\n")
    assert limit("0::/ab\n") == 4


def test_in_a_container_the_limit_is_in_the_mount_itself(root, limit):
    write(root / "cpu.max", "250000 100000\n")
    assert limit("0::/\n") == 2.5
    assert limit("0::/../../system.slice\n") == 2.5
    assert limit("0::/not/mounted\n") == 2.5


# --- version 1


def quota(folder, quota_us, period_us=100_000):
    write(folder / "cpu.cfs_quota_us", f"{quota_us}\n")
    write(folder / "cpu.cfs_period_us", f"{period_us}\n")


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1_is_quota_over_period_of_the_cpu_controller(root, limit, mount):
    quota(root / mount / "docker" / "id", 400_000)
    assert limit(f"9:memory:/other\n4:{mount}:/docker/id\n") == 4
    assert limit("4:memory:/docker/id\n") is None


def test_version_1_without_a_limit_is_minus_one(root, limit):
    quota(root / "cpu" / "docker", -1)
    assert limit("4:cpu:/docker\n") is None
    quota(root / "cpu" / "docker", 100_000, 0)
    assert limit("4:cpu:/docker\n") is None


def test_version_1_takes_the_lowest_of_nested_cgroups_and_the_mount(root, limit):
    quota(root / "cpu", -1)
    quota(root / "cpu" / "job", 200_000)
    quota(root / "cpu" / "job" / "step", 600_000)
    assert limit("4:cpu,cpuacct:/job/step\n") == 2
    quota(root / "cpu", 100_000)
    assert limit("4:cpu,cpuacct:/job/step\n") == 1


def test_in_a_container_of_version_1_the_limit_is_in_the_mount_of_the_controller(root, limit):
    quota(root / "cpu", 150_000)
    assert limit("4:cpu,cpuacct:/docker/not-mounted\n") == 1.5


def test_a_system_with_both_versions_takes_the_lower_limit(root, limit):
    quota(root / "cpu" / "job", 200_000)
    write(root / "unified" / "cpu.max", "100000 100000\n")
    assert limit("4:cpu:/job\n0::/unified\n") == 1


# --- affinity


@pytest.mark.parametrize(
    ("affinity", "cgroup_limit", "cpus"),
    [(24, None, 24), (24, 4.0, 4), (24, 3.2, 4), (24, 0.5, 1), (2, 8.0, 2), (1, None, 1)],
)
def test_usable_cpus_are_the_affinity_or_the_limit_rounded_up(monkeypatch, affinity, cgroup_limit, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(environment, "cgroup_cpu_limit", lambda: cgroup_limit)
    assert usable_cpus() == cpus


def test_without_affinity_all_cpus_are_usable(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(environment, "cgroup_cpu_limit", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_usable_cpus_follow_the_affinity_of_this_process():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_cpus_are_counted_in_one_place():
    package = Path(environment.__file__).parents[1]
    files = [
        path
        for path in package.rglob("*.py")
        if re.search(r"(os|multiprocessing)\.(cpu_count|sched_getaffinity)|import .*cpu_count", path.read_text())
    ]
    assert files == [Path(environment.__file__)]


def test_the_processor_is_the_model_that_linux_names_and_else_the_machine(tmp_path):
    of_arm, of_x86 = tmp_path / "arm", tmp_path / "x86"
    of_arm.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    of_x86.write_text("processor\t: 0\nmodel name\t: Xeon(R) 8481C @ 2: 7\nmodel name\t: other\n")
    assert processor(of_x86) == "Xeon(R) 8481C @ 2: 7"
    for path in (of_arm, tmp_path / "missing"):  # Linux names no model of an ARM processor; macOS has no such file
        assert processor(path) == (platform.processor() or platform.machine()) != ""


# --- torchrun


def test_without_torchrun_a_run_has_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (world_size(), rank(), launch_command()) == (1, 0, ["harness"])
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a cluster's job, not of torchrun, which sets RANK too
    assert (world_size(), rank()) == (1, 0)


@pytest.mark.parametrize(
    ("local", "nodes"), [("4", ["--standalone"]), ("2", ["--nnodes", "2"])], ids=["one machine", "two machines"]
)
def test_a_run_is_resumed_with_as_many_processes_as_it_has(monkeypatch, local, nodes):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": local}.items():
        monkeypatch.setenv(name, value)
    assert (world_size(), rank()) == (4, 3)
    assert launch_command() == ["torchrun", *nodes, "--nproc-per-node", local, "-m", "harness"]
