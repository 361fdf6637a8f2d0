"""Sphinx extension of the documentation site: pages generated from the package, and links to files outside of docs/.

The pages are written to ``docs/_generated`` before the sources are read.
"""

from pathlib import Path
from typing import Any

from extension import commands, config_types, outside, python

GENERATED = Path(__file__).resolve().parents[1] / "_generated"


def write_pages(app: Any) -> None:
    """Write all generated pages, and remove those of an earlier build that no longer exist."""
    pages = {**commands.pages(), **python.pages(), **config_types.pages(), **outside.pages()}
    for file in GENERATED.rglob("*.*"):
        if file.relative_to(GENERATED).as_posix() not in pages:
            file.unlink()
    for name, text in pages.items():
        file = GENERATED / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:  # Sphinx reads changed files again
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", outside.resolve_links)
    app.connect("autodoc-process-docstring", python.without_fences)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
