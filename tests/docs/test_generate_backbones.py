"""docs/backbones.md is up to date."""

import subprocess
import sys

from fixtures.paths import REPO

DOCS = REPO / "docs"


def test_the_table_is_up_to_date():
    script = [sys.executable, str(DOCS / "generate_backbones.py"), "--check"]
    result = subprocess.run(script, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
