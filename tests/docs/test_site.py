"""The documentation site builds without a warning, and its links and the options of the commands are right."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from fixtures.paths import REPO

from visionattn.cli import COMMANDS, build_parser

pytest.importorskip("furo")
pytest.importorskip("myst_nb")
pytest.importorskip("mmdet")

DOCS = REPO / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The pages; the notebooks are tested in test_tutorials.py."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(out / "doctrees")]
    environment = {**os.environ, "VISIONATTN_NOTEBOOKS": "off"}
    done = subprocess.run(
        [*command, str(DOCS), str(out / "html")], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return out / "html"


def test_every_page_is_in_the_site(site):
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md") if path.parts[-2][0] != "_"}
    pages = {page for page in pages if not page.parts[0].startswith("_") and page.name != "licenses.html"}
    assert len(pages) > 40
    assert [page for page in pages if not (site / page).is_file()] == []


def test_links(site):
    texts = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    names = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    wrong = []
    for page, text in texts.items():
        for target in re.findall(r'(?:href|src)="([^"]+)"', text):
            address, _, anchor = unquote(target).partition("#")
            if re.match(r"[a-z]+:|//", address):
                continue
            file = (page.parent / address.split("?")[0]).resolve() if address else page
            if not file.is_file() or (anchor and file in names and anchor not in names[file]):
                wrong.append(f"{page.relative_to(site)}: {target}")
    assert len(texts) > 80
    assert wrong == []


def test_options_of_the_commands(site):
    for command in COMMANDS:
        text = (site / "_generated/commands" / f"{command}.html").read_text(encoding="utf-8")
        documented = set(re.findall(rf'id="cmdoption-visionattn-{command}-([\w-]+)"', text))
        options = {name.lstrip("-") for action in build_parser(command)._actions for name in action.option_strings}
        assert options - {"h", "help"} <= documented, command


def test_links_between_files_of_the_repository():
    """Those that GitHub shows."""
    pages = [*REPO.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("[a-z]*/*.md")]
    wrong = []
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                wrong.append(f"{page.relative_to(REPO)}: {target}")
    assert len(pages) > 45
    assert wrong == []
