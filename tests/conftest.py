"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no network from a test


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of development data beside the checkout, or a skip where it is not there."""
    path = Path(os.environ.get("VISIONATTN_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"needs the development data folder, which is not at {path}; set VISIONATTN_SHARED")
    return path
