"""configs/README.md is what its script writes now."""

import subprocess
import sys

import pytest
from fixtures.paths import REPO

pytest.importorskip("mmdet")

DOCS = REPO / "docs"


def test_the_index_is_up_to_date():
    script = [sys.executable, str(DOCS / "generate_configs.py"), "--check"]
    result = subprocess.run(script, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
