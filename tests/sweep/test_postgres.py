"""Several schedulers on one search, as on several machines: with a real PostgreSQL server that the test starts."""

import csv
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from tests.support.commands import begun
from tests.support.commands import command as harness
from tests.support.sweeps import read_trials, sweep_folder, write_sweep

PROGRAMS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
PROGRAMS += [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed (Debian: apt-get install postgresql)"),
]


def is_ready(port):
    try:
        psycopg.connect(f"postgresql://tester@127.0.0.1:{port}/postgres", connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def database():
    """Yield the URL of a database on a server that runs as long as the test."""
    folder = Path(tempfile.mkdtemp(prefix="harness-postgres-"))
    account = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    programs, data = PROGRAMS[0], folder / "data"
    initdb = [programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **account)
    server = subprocess.Popen(
        [
            programs / "postgres",
            "-D",
            data,
            "-p",
            str(port),
            "-k",
            folder,
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "fsync=off",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **account,
    )
    try:
        began = time.monotonic()
        while not is_ready(port):
            assert time.monotonic() - began < 60 and server.poll() is None
            time.sleep(0.1)
        yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder)


def test_two_machines_share_one_search_and_a_killed_ones_trial_is_run_by_the_other(tmp_path, database):
    machines = [tmp_path / name for name in ("one", "two")]
    for machine in machines:
        machine.mkdir()
        write_sweep(machine, method="bayes", parameters={"epochs": {"value": 3}})
    arguments = ["sweep", "sweep.yaml", "--count", 7, "--storage", database, "--name", "shared"]
    first, second = (begun(*arguments, cwd=machine) for machine in machines)
    began = time.monotonic()
    while not list(machines[0].glob("runs/shared/runs/trial-*/checkpoints/last.pt")):
        assert time.monotonic() - began < 120 and first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    output = second.communicate(timeout=400)
    assert second.returncode == 0, output
    rows = read_trials(sweep_folder(machines[1]))
    assert [row["state"] for row in rows] == ["complete"] * 7, output
    assert len({row["trial"] for row in rows}) == len({row["lr_max"] for row in rows}) == 7
    ran = [{path.name for path in machine.glob("runs/shared/runs/trial-????")} for machine in machines]
    assert ran[0] | ran[1] == {row["trial"] for row in rows}
    assert ran[0]  # both took part

    harness(*arguments, cwd=machines[0], check=0)  # the other machine has the same results
    with open(machines[0] / "runs/shared/trials.csv", newline="") as file:
        assert [row["best/val_acc"] for row in csv.DictReader(file)] == [row["best/val_acc"] for row in rows]


def test_a_grid_on_two_machines_visits_each_point_once(tmp_path, database):
    machines = [tmp_path / name for name in ("one", "two")]
    for machine in machines:
        machine.mkdir()
        write_sweep(
            machine,
            method="grid",
            parameters={
                "epochs": {"value": 1},
                "lr_max": {"values": [0.02, 0.03, 0.04]},
                "lr_min": {"values": [0.001, 0.002]},
            },
        )
    arguments = ["sweep", "sweep.yaml", "--storage", database, "--name", "shared"]
    both = [begun(*arguments, cwd=machine) for machine in machines]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    rows = read_trials(sweep_folder(machines[0]))
    assert sorted((row["lr_max"], row["lr_min"], row["state"]) for row in rows) == [
        (high, low, "complete") for high in ("0.02", "0.03", "0.04") for low in ("0.001", "0.002")
    ]
