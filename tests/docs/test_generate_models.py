"""docs/models.md is up to date, and its examples name known models and options."""

import re
import subprocess
import sys

from fixtures.paths import REPO

from visionattn.cli import build_parser
from visionattn.zoo import known_names

DOCS = REPO / "docs"


def test_the_page_is_up_to_date():
    script = [sys.executable, str(DOCS / "generate_models.py"), "--check"]
    result = subprocess.run(script, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr


def test_commands():
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    commands = re.findall(r"^visionattn (\w+) (.*?)\s*(?:#.*)?$", text, re.M)
    assert len(commands) >= 8
    for command, rest in commands:
        args = build_parser(command).parse_args([word.strip("'") for word in rest.split()])
        if command != "models":
            assert (getattr(args, "named", None) or args.model) in known_names()
