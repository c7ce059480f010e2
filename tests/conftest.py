"""What several test folders share: where the built-in models are, and a cache directory of their own."""

import logging
import os
import sys
from pathlib import Path

import pytest

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)  # for what tests of several folders import
ASSETS = Path(__file__).resolve().parent.parent / "src" / "quire" / "assets"


@pytest.fixture(scope="session")
def demo_path() -> str:
    """Directory of the built-in model."""
    return str(ASSETS / "quire-demo")


@pytest.fixture(scope="session")
def draft_path() -> str:
    """Directory of the built-in model's small sibling."""
    return str(ASSETS / "quire-demo-draft")


@pytest.fixture(scope="session", autouse=True)
def _weights_kept_apart(tmp_path_factory):
    """No test reads the packed weights of whoever runs it, or leaves any there; processes inherit it."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """A command that runs within a test sets up the log; the next test's must reach pytest again."""
    log = logging.getLogger("quire")
    before = log.level, log.propagate, list(log.handlers)
    yield
    log.level, log.propagate, log.handlers = before
    log.setLevel(log.level)  # also clears what loggers below remember of it
