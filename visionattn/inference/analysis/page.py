"""The page of ``visionattn test --report``: self-contained HTML without scripts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionattn.errors import DataError
from visionattn.inference.analysis.base import Section
from visionattn.inference.analysis.blocks import text
from visionattn.inference.report import STYLE
from visionattn.inference.writing import temporary_name

__all__ = ["write_page"]

OWN_STYLE = """
h2 { margin: 2rem 0 .3rem; padding-top: .6rem; border-top: 1px solid #ddd; }
p { max-width: 62rem; margin: .5rem 0; }
nav a { margin-right: 1rem; }
table { border-collapse: collapse; background: #fff; margin: .5rem 0; }
th, td { border: 1px solid #ddd; padding: .15rem .5rem; text-align: right; font-weight: normal; white-space: nowrap; }
th { background: #f1f2f4; }
tr:first-child > th { font-weight: 600; }
.name { text-align: left; max-width: 22rem; overflow: hidden; text-overflow: ellipsis; }
.words { text-align: left; max-width: 32rem; overflow: hidden; text-overflow: ellipsis; }
.tall { max-height: 38rem; width: max-content; }
.tall tr:first-child > th { position: sticky; top: 0; }
.wide { overflow: auto; max-width: 100%; }
.turned { vertical-align: bottom; padding: .3rem .1rem; }
.turned span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11rem; overflow: hidden;
  text-overflow: ellipsis; display: inline-block; }
.matrix td { min-width: 2.2rem; text-align: center; padding: .15rem .3rem; }
.large td { min-width: 0; width: 11px; height: 13px; padding: 0; }
.large th { font-size: 11px; line-height: 12px; padding: 0 .3rem; }
.large .turned { padding: .2rem 0; font-weight: normal; }
.columns { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start; }
.columns > div { max-width: 100%; }
.plot { background: #fff; border: 1px solid #ddd; border-radius: 6px; margin: .5rem 0; padding: .4rem; width: 460px;
  max-width: 100%; box-sizing: content-box; }
.plot ul { padding: 0 .8rem; margin: .2rem 0; }
li { overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif; fill: #1d1d1f; }
svg .title { font-weight: 600; font-size: 13px; }
svg .grid { stroke: #e3e3e6; fill: none; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .diagonal { stroke: #777; stroke-dasharray: 4 4; fill: none; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1rem; }
.pair { display: flex; gap: .4rem; }
.pair div { flex: 1; min-width: 0; text-align: center; }
figure .pair img { height: 17rem; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<details><summary>model and data</summary>
<dl>{facts}</dl>
</details>
<nav>{links}</nav>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def write_page(path: Path, title: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: heading.
        facts: names and values, which are hidden until they are opened.
        sections: the sections, each with a link at the top.

    Raises:
        DataError: the file cannot be written.
    """
    content = PAGE.format(
        title=text(title),
        style=STYLE + OWN_STYLE,
        facts="".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items()),
        links="".join(f'<a href="#s{number}">{text(s.title)}</a>' for number, s in enumerate(sections)),
        sections="\n".join(
            f'<section id="s{number}"><h2>{text(section.title)}</h2>{"".join(section.blocks)}</section>'
            for number, section in enumerate(sections)
        ),
    )
    temporary = temporary_name(path)
    try:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
