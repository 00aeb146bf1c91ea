"""Shared fixtures: the folder of real recordings, with a red line where it is absent; the list of cases."""

import os
import threading
from pathlib import Path

import cases
import pytest

TESTS = pytest.StashKey[dict]()
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def find_data() -> Path | None:
    """The folder of test recordings: ``SVCLIB_TEST_DATA``, or ``shared/data`` beside the project."""
    folder = Path(os.environ.get("SVCLIB_TEST_DATA", DEFAULT_DATA))
    return folder if (folder / "singing").is_dir() else None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real recordings; without them the test is skipped aloud."""
    folder = find_data()
    if folder is None:
        pytest.skip(f"no test recordings at {DEFAULT_DATA}; set SVCLIB_TEST_DATA to their folder")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Where ``CI`` is set nothing may be skipped, because what a test needs is there, but what is marked so."""
    report = yield
    if report.skipped and os.environ.get("CI") and not item.get_closest_marker("may_be_skipped"):
        report.outcome, report.longrepr = "failed", f"CI is set, but this test was skipped: {report.longrepr}"
    return report


def pytest_addoption(parser):
    """``--cases``: print the list of cases and the tests marked with each, and run nothing."""
    parser.addoption("--cases", action="store_true", help="print the cases and their tests")


def pytest_collection_modifyitems(config, items):
    """Collect the tests of each case; a mark with an unknown case is an error."""
    tests = config.stash.setdefault(TESTS, {})
    for item in items:
        for case in (name for mark in item.iter_markers("case") for name in mark.args):
            if case not in cases.CASES:
                raise pytest.UsageError(f"{item.nodeid} is marked with the unknown case '{case}'")
            tests.setdefault(case, []).append(item.nodeid.partition("[")[0])
    if config.getoption("--cases"):
        items.clear()


def pytest_terminal_summary(terminalreporter, config):
    """Print the list of cases, or in red that tests on real recordings did not run."""
    if config.getoption("--cases"):
        for line in cases.table(config.stash[TESTS]):
            terminalreporter.write_line(line)
        return
    if find_data() is None:
        terminalreporter.write_line(
            "ATTENTION: tests on real recordings were skipped: set SVCLIB_TEST_DATA to their folder.", red=True
        )


@pytest.fixture
def held(monkeypatch):
    """``held(module, name)``: that function waits until told; gives the events ``(began, go)``."""

    def hold(module, name):
        began, go, real = threading.Event(), threading.Event(), getattr(module, name)

        def waiting(*args, **kwargs):
            began.set()
            go.wait(30)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, waiting)
        return began, go

    return hold


@pytest.fixture(scope="session")
def notebook_home(tmp_path_factory) -> tuple[Path, dict]:
    """A folder for copies of the notebooks and what they make, and the executed notebooks; made once per test run."""
    return tmp_path_factory.mktemp("notebooks"), {}
