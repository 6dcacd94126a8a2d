"""Peer libraries, whose import takes a second, are not imported by the default suite: all tests here are slow."""


def pytest_ignore_collect(config):
    return True if config.getoption("markexpr") == "not slow" else None
