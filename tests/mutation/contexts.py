"""A plugin of pytest: names the test or the shared fixture that is running, for `lines.py`.

What a fixture of a module or a session executes counts for each test that uses it, not only for the first one.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pytest

from tests.mutation import lines

_names: list[str] = [""]
_tests: dict[str, dict] = {}


def test_name(nodeid: str) -> str:
    """Return the name of a test without its parameters."""
    return nodeid.partition("[")[0]


test_name.__test__ = False  # type: ignore[attr-defined]


def _fixture_name(fixture: pytest.FixtureDef) -> str:
    return f"fixture {fixture.baseid}::{fixture.argname}"


def _enter(name: str) -> None:
    _names.append(name)
    lines.switch(name)


def _leave() -> None:
    _names.pop()
    lines.switch(_names[-1])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    definitions = item._fixtureinfo.name2fixturedefs.values()
    shared = sorted({_fixture_name(each[-1]) for each in definitions if each and each[-1].scope != "function"})
    _tests.setdefault(test_name(item.nodeid), {"seconds": 0.0})["fixtures"] = shared
    _enter(test_name(item.nodeid))
    try:
        return (yield)
    finally:
        _leave()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    if fixturedef.scope == "function":
        return (yield)
    _enter(_fixture_name(fixturedef))
    try:
        return (yield)
    finally:
        _leave()


def pytest_runtest_logreport(report):
    _tests.setdefault(test_name(report.nodeid), {"seconds": 0.0, "fixtures": []})["seconds"] += report.duration


def pytest_sessionfinish(session):
    lines.save()
    if folder := os.environ.get(lines.FOLDER):
        (Path(folder) / f"tests-{uuid.uuid4().hex}.json").write_text(json.dumps(_tests))
