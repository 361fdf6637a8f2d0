"""Pages from Markdown files outside of docs/, and links to such files.

The pages of the site also have to be readable in the repository, where links to files are relative paths.
"""

import os
import re
from pathlib import Path
from typing import Any

from visionattn.zoo import model_names

DOCS = Path(__file__).resolve().parents[1]
REPO = DOCS.parent
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "configs/README.md": "configs.md",
    "docs/licenses.md": "licenses.md",
    **{f"visionattn/zoo/{name}.md": f"cards/{name}.md" for name in model_names()},
    "README.md": None,
}
"""Files of the repository, and their pages in ``docs/_generated``; the start page is in place of the README."""
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    return {
        page: _text(REPO / source, DOCS / "_generated" / page) for source, page in PAGES.items() if page is not None
    }


def resolve_links(app: Any, docname: str, content: list[str]) -> None:
    """Let links to files outside of docs/ refer to their pages."""
    file = Path(app.env.doc2path(docname))
    if file.suffix == ".md" and DOCS / "_generated" not in file.parents:
        content[0] = _relinked(content[0], file, file)


def _text(source: Path, page: Path) -> str:
    text = source.read_text(encoding="utf-8")
    text = re.sub(r"```mermaid\n.*?```\n", "", text, flags=re.DOTALL)  # GitHub draws it; the site has a picture
    if not text.startswith("# "):  # the table of pip-licenses
        text = f"# Licenses of the dependencies\n\n{text}"
    return _relinked(text, source, page)


def _relinked(text: str, source: Path, page: Path) -> str:
    """Return text of one file with its links changed for another place."""

    def change(found: re.Match) -> str:
        target = (source.parent / found[1]).resolve()
        name = target.relative_to(REPO).as_posix() if target.is_relative_to(REPO) else ""
        if name in PAGES:
            target = DOCS / ("index.md" if PAGES[name] is None else f"_generated/{PAGES[name]}")
        elif target.is_dir():
            target /= "README.md"  # not a page: there is no link to a folder
        return os.path.relpath(target, page.parent).replace(os.sep, "/") + (found[2] or "")

    return LINK.sub(change, text)
