"""What W&B refuses is refused before training; the rules of its client are read from the client."""

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st

from harness.config.settings import Config
from harness.tracking.wandb.limits import check_wandb_values
from harness.utils.errors import UsageError
from tests.support.commands import QUICK, command

TEXT = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=140)


def is_refused(config):
    try:
        check_wandb_values(config)
    except UsageError:
        return True
    return False


def is_refused_by_client(**settings):
    try:
        wandb.Settings(**settings)
    except Exception:
        return True
    return False


@given(TEXT)
def test_a_project_is_refused_where_wandbs_client_refuses_it(text):
    assert is_refused(Config(project=text)) == is_refused_by_client(project=text)


@given(TEXT)
def test_a_tag_is_refused_where_wandbs_client_refuses_it(text):
    assert is_refused(Config(tags=(text,))) == is_refused_by_client(run_tags=(text,))


@given(TEXT)
def test_no_run_id_passes_that_wandbs_client_refuses(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", text)
        assert is_refused(Config()) >= is_refused_by_client(run_id=text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tags", "a" * 90], f"--tags: '{'a' * 90}': W&B takes tags of 1 to 64 characters, got 90"),
        (["--project", "a/b:1"], "--project='a/b:1': W&B does not take the character '/' here"),
        (["--job-type", "t" * 65], f"--job-type='{'t' * 65}': W&B takes at most 64 characters, got 65"),
        (["--name", "n" * 129], f"--name='{'n' * 129}': W&B takes at most 128 characters, got 129"),
    ],
)
def test_a_value_that_wandb_refuses_ends_a_command_in_one_line_before_anything_is_made(options, message, tmp_path):
    done = command("run", *QUICK, *options, cwd=tmp_path, check=2)
    assert done.err.splitlines() == [f"error: {message}"]
    assert list(tmp_path.iterdir()) == []


def test_without_wandb_any_name_will_do(tmp_path):
    check_wandb_values(Config(tags=("a" * 90,), project="a/b:1", wandb="disabled"))


@pytest.mark.parametrize(
    ("variable", "value"), [("WANDB_PROJECT", "a:b"), ("WANDB_TAGS", "ok," + "a" * 65), ("WANDB_RUN_GROUP", "g" * 129)]
)
def test_a_variable_that_wandb_would_refuse_is_named(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"^{variable}"):
        check_wandb_values(Config())
