"""A library's module is imported when a function of it is first called."""

import importlib
import sys

import pytest

from harness.utils.lazy import deferred_imports


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that notes its import in `sys.modules` alone."""
    (tmp_path / "deferred_for_a_test.py").write_text("def double(x, *, times=1):\n    return 2 * x * times\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield "deferred_for_a_test"
    sys.modules.pop("deferred_for_a_test", None)


def test_a_function_that_was_taken_of_a_deferred_module_imports_it_when_it_is_called(module):
    with deferred_imports(module):
        from deferred_for_a_test import double
    assert module not in sys.modules
    assert double(3, times=5) == 30 and module in sys.modules
    with deferred_imports(module):  # it is imported, and is used as it is
        from deferred_for_a_test import double as real
    assert real is sys.modules[module].double
