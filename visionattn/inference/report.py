"""Self-contained HTML page with thumbnails of the predictions."""

import base64
import html
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from visionattn.errors import DataError, require
from visionattn.inference.writing import temporary_name

__all__ = ["REPORT_FILE", "STYLE", "Report", "thumbnail"]

REPORT_FILE = "report.html"
THUMBNAIL = 320  # pixels of the longer side

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1d1d1f; background: #fafafa; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem; }
dt { color: #666; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0; padding: .6rem; background: #fff; border: 1px solid #ddd; border-radius: 6px; }
figure img, figure video { width: 100%; height: 14rem; object-fit: contain; background: #eee; }
figcaption { overflow-wrap: anywhere; }
small { color: #666; display: block; }
ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: .5rem 0; list-style: none; }
li span { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
"""
"""Style of the pages of this package."""
OWN_STYLE = """main { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
body { display: flex; flex-direction: column; }
header { order: -2; }
#summary { order: -1; margin-bottom: 1rem; }
.failed { order: -1; border-color: #b00020; }
.failed small { color: #b00020; }
"""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<details><summary>model and settings</summary>
<dl>{facts}</dl>
</details>
</header>
<main>
"""
# Written last, as the totals are known only then; the style sheet moves it to the top.
TAIL = """</main>
<section id="summary">
<p>{summary}</p>
<ul>{legend}</ul>
</section>
</body>
</html>
"""


class Report:
    """Context manager that writes the page record by record.

    The file is created under a temporary name and renamed when the ``with`` block ends without an error.

    Args:
        path: the HTML file.
        title: heading of the page.
        facts: names and values listed above the thumbnails.

    Attributes:
        summary: summary line; set it before the block ends.
        legend: (class name, BGR color, text) of each class found; set it before the block ends.
    """

    def __init__(self, path: Path, title: str, facts: dict[str, Any]):
        self.path, self._temporary = path, temporary_name(path)
        listed = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
        self._head = HEAD.format(title=_text(title), style=STYLE + OWN_STYLE, facts=listed)
        self.summary = ""
        self.legend: list[tuple[str, tuple[int, int, int], str]] = []

    def __enter__(self) -> "Report":
        try:
            self._file = self._temporary.open("w", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._file.write(self._head)
        return self

    def add(self, record: dict[str, Any], overlay: np.ndarray | None, lines: list[str]) -> None:
        """Append the thumbnail of one input.

        Args:
            record: record of ``predictions.json``, with ``file`` and either ``overlay`` or ``error``.
            overlay: BGR uint8 ``[H, W, 3]``, or None if there is none.
            lines: text below the thumbnail.
        """
        parts = ['<figure class="failed">' if "error" in record else "<figure>"]
        link = quote(record["overlay"]) if "overlay" in record else ""
        if overlay is not None and link.endswith(".webm"):
            parts.append(f'<video controls preload="none" poster="{thumbnail(overlay)}" src="{link}"></video>')
        elif overlay is not None:
            picture = f'<img alt="{_text(record["file"])}" src="{thumbnail(overlay)}">'
            parts.append(f'<a href="{link}">{picture}</a>')
        elif "overlay" in record:
            parts.append(f'<a href="{link}">{_text(record["overlay"])}</a>')
        name = Path(record["file"]).name  # the whole path, which may be long, is shown on hover
        parts.append(f'<figcaption title="{_text(record["file"])}">{_text(name)}')
        parts += [f"<small>{_text(line)}</small>" for line in lines]
        if "error" in record:
            parts.append(f"<small>{_text(record['error'])}</small>")
        self._file.write("".join([*parts, "</figcaption></figure>\n"]))

    def __exit__(self, kind, error, trace) -> None:
        with self._file:
            entries = (
                f'<li><span style="background: rgb({red}, {green}, {blue})"></span>{_text(name)} {_text(text)}</li>'
                for name, (blue, green, red), text in self.legend
            )
            self._file.write(TAIL.format(summary=_text(self.summary), legend="".join(entries)))
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)


def _text(value: Any) -> str:
    return html.escape(str(value))


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> str:
    """Return a data URL of the image as a small WebP, which takes about half the bytes of a JPEG.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        side: longer side of the thumbnail in pixels, if the image is larger.
    """
    cv2 = require("cv2")
    height, width = image.shape[:2]
    shrink = min(1.0, side / max(height, width))
    if shrink < 1:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 75])
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
