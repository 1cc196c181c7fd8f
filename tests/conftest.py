"""The tests import microgpt from this checkout."""
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import microgpt  # noqa: E402,F401

# Beside microgpt.py stand folders named like other people's packages: `import tokenizers` must not
# find ours. So the checkout leaves the path as soon as microgpt, which knows where they are, is in.
sys.path[:] = [path for path in sys.path if os.path.abspath(path) != str(ROOT)]

REFERENCE = ROOT.parent / "shared" / "data"


def reference(name):
    """Returns the path of a file of reference data, or skips the test where there is none."""
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"reference data not here: {name}")
    return path


@pytest.fixture(scope="session")
def golden():
    """The project's own golden run, on the bundled names, written by benchmarks/textbook.py."""
    return json.loads((ROOT / "tests" / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden_short():
    """The same over 60 steps, so that a quick test can hold its samples too."""
    return json.loads((ROOT / "tests" / "golden-short.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def reference_golden():
    return json.loads(reference("golden-run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def reference_names():
    return reference("names.txt")


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    """The folder that a test's runs are kept in: never the checkout's."""
    monkeypatch.setenv("MICROGPT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def one_thread():
    """Small tensors are faster on one thread, and a busy machine punishes more."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_missing = []


def pytest_runtest_logreport(report):
    if report.skipped and "could not import" in str(report.longrepr):
        _missing.append(report.nodeid)


def pytest_collectreport(report):
    if report.skipped and "could not import" in str(report.longrepr):
        _missing.append(report.nodeid)


def pytest_sessionfinish(session):
    if _missing and os.environ.get("MICROGPT_NO_MISSING_PACKAGE"):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    if _missing:
        terminalreporter.line(f"{len(_missing)} skipped for a missing package, first: "
                              f"{_missing[0]}")
