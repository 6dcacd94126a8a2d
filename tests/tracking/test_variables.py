"""Every variable WANDB_* is followed, or one line says why not; no file of the current folder decides the server."""

import os
from pathlib import Path

import pytest
import wandb

from harness.config.settings import Config, setting_fields
from harness.tracking.wandb import init, variables
from harness.tracking.wandb.client import set_up
from tests.support.records import epoch
from tests.support.wandb_files import offline_runs
from tests.support.wandb_server import KEY, Server

SLIM = ("X_DISABLE_STATS", "DISABLE_GIT", "X_DISABLE_MACHINE_INFO")


@pytest.fixture(autouse=True)
def slim(monkeypatch):
    for name in SLIM:
        monkeypatch.setenv(f"WANDB_{name}", "true")
    monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "false")


def run(folder, **settings):
    """Track an epoch; return the lines for the user and the tracker."""
    lines = []
    config = Config(**{"epochs": 2, "peak_epoch": 1, "finish_timeout": 5, **settings})
    tracker = init.start(config, folder, run_name="made", notify=lines.append)
    tracker.record(epoch(1))
    tracker.finish("finished", 0)
    return lines, tracker


def test_the_variables_that_describe_a_run_are_those_of_the_run(tmp_path, monkeypatch):
    described = {"NAME": "mine", "JOB_TYPE": "trial", "RUN_GROUP": "g", "TAGS": "a,b", "NOTES": "why", "PROJECT": "p2"}
    for name, value in described.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    lines, _ = run(tmp_path / "one", wandb="offline")
    (one,) = offline_runs(tmp_path / "one")
    assert (one.name, one.job_type, one.group, one.tags) == ("mine", "trial", "g", ["a", "b"])
    assert (one.notes, one.project) == ("why", "p2")
    assert lines == []
    given = {"name": "given", "job_type": "other", "group": "h", "tags": ("c",), "notes": "so", "project": "p3"}
    run(tmp_path / "two", wandb="offline", **given)
    (two,) = offline_runs(tmp_path / "two")
    assert (two.name, two.job_type, two.group, two.tags) == ("given", "other", "h", ["c"])
    assert (two.notes, two.project) == ("so", "p3")


@pytest.mark.parametrize("mode", ["OFFLINE", "offline", "dryrun"])
def test_a_mode_in_any_case_is_followed(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    _, tracker = run(tmp_path)
    assert tracker.state == "offline"
    assert len(offline_runs(tmp_path)) == 1
    assert os.environ["WANDB_MODE"] == mode


def test_a_variable_that_is_not_used_has_one_line_that_says_why(tmp_path, monkeypatch):
    (tmp_path / "values.yaml").write_text("lr_max: {value: 77}\n")
    values = dict.fromkeys(variables.NOT_USED, "1") | {"WANDB_DIR": str(tmp_path / "dir"), "WANDB_RESUME": "must"}
    values |= {"WANDB_CONFIG_PATHS": str(tmp_path / "values.yaml"), "WANDB_FORK_FROM": "other?_step=1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    lines, tracker = run(tmp_path / "run", wandb="offline")
    assert [line.split("=")[0] for line in lines] == list(variables.NOT_USED)
    assert all(" is not used: " in line for line in lines)
    assert tracker.state == "offline"
    (offline_run,) = offline_runs(tmp_path / "run")
    assert offline_run.config["lr_max"] == Config().lr_max
    assert not (tmp_path / "dir").exists()


@pytest.mark.parametrize(("mode", "changed"), [("shared", None), ("Shared", None), ("OFFLINE", "offline")])
def test_a_mode_that_wandbs_client_must_not_see_is_taken_from_it(monkeypatch, mode, changed):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert variables.environment_changes()["WANDB_MODE"] == changed
    lines = [line for line in variables.unused_lines() if line.startswith("WANDB_MODE")]
    assert lines == ([] if changed else ["WANDB_MODE=shared is not used: a single process writes the run"])


def test_defaults_of_the_harness_give_way_to_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "7")
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "2.5")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    seen = {}
    original = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **arguments: seen.setdefault("run", original(**arguments)))
    config = Config(epochs=2, peak_epoch=1, wandb="offline")
    tracker = init.start(config, tmp_path / "run", run_name="r")
    assert tracker._session.finish_timeout == 7.0
    tracker.finish("finished", 0)
    settings = seen["run"].settings
    assert (settings.console, settings.x_file_stream_transmit_interval) == ("wrap", 2.5)
    assert (settings.silent, settings.save_code, settings.x_transaction_log_flush_interval) == (True, False, 1.0)


def test_a_value_that_wandb_cannot_read_does_not_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_CONSOLE", "nonsense")
    lines, tracker = run(tmp_path)
    assert tracker.state == "incomplete"
    assert len(lines) == 1
    assert "console" in lines[0]
    assert "its journal is complete" in lines[0]


def test_every_variable_of_wandbs_client_is_in_the_table_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs/wandb.md").read_text()
    from wandb import env

    names = {value for value in vars(env).values() if isinstance(value, str) and value.startswith("WANDB_")}
    names |= {*variables.OF_SETTINGS, *variables.OWN_DEFAULTS, *variables.NOT_USED}
    assert {name for name in names if f"`{name}`" not in page} == set()
    assert set(variables.OF_SETTINGS.values()) <= set(setting_fields())


@pytest.mark.parametrize("hidden", ["wandb", ".wandb"])
def test_a_settings_file_of_the_current_folder_does_not_get_the_key_or_the_run(
    tmp_path, monkeypatch, server, hidden, request
):
    """As in a downloaded run: the folder names another server."""
    with Server() as other:
        seen = []
        other.answer = lambda operation, variables: seen.append(operation) or {}
        file = tmp_path / hidden / "settings"
        file.parent.mkdir()
        file.write_text(
            f"[default]\nbase_url = {other.url}\napi_key = {'f' * 40}\nproject = theirs\nhttp_proxy = {other.url}\n"
        )
        monkeypatch.chdir(tmp_path)
        # The address is in the user's own settings file, not in the environment, which would win in any case.
        own = Path(os.environ["HOME"]) / ".config/wandb/settings"
        own.parent.mkdir(parents=True)
        own.write_text(f"[default]\nbase_url = {server.url}\n")
        monkeypatch.delenv("WANDB_BASE_URL")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        lines, tracker = run(tmp_path / "run", wandb="online")
        assert not seen
        assert server.steps
        assert tracker.state == "online"
        assert len(lines) == 1
        assert lines[0].startswith(f"{hidden}/settings of the current folder is not used")
        assert Path.cwd() == tmp_path


def test_the_users_own_settings_file_is_used(monkeypatch):
    own = Path(os.environ["HOME"]) / ".config/wandb/settings"
    own.parent.mkdir(parents=True)
    own.write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    assert set_up(wandb).base_url == "http://127.0.0.1:9"
    wandb.teardown()
