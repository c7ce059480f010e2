"""What several test folders share: where the built-in models are."""

from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parent.parent / "src" / "quire" / "assets"


@pytest.fixture(scope="session")
def demo_path() -> str:
    """Directory of the built-in model."""
    return str(ASSETS / "quire-demo")


@pytest.fixture(scope="session")
def draft_path() -> str:
    """Directory of the built-in model's small sibling."""
    return str(ASSETS / "quire-demo-draft")
