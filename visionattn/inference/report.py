"""A page of thumbnails of a run over files, in one HTML file that needs no other and no network."""

import base64
import html
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from visionattn.errors import DataError, require

__all__ = ["REPORT_FILE", "Report"]

REPORT_FILE = "report.html"
THUMBNAIL = 320  # pixels of the longer side
OPEN_LEGEND = 40  # classes

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1d1d1f; background: #fafafa; }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: 0 1rem; }}
dt {{ color: #666; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; padding: .6rem; background: #fff; border: 1px solid #ddd; border-radius: 6px; }}
figure img {{ width: 100%; height: 14rem; object-fit: contain; background: #eee; }}
figcaption {{ overflow-wrap: anywhere; }}
small {{ color: #666; display: block; }}
.failed {{ color: #b00020; }}
.legend {{ margin: 1rem 0; }}
.legend ul {{ display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .4rem 0; padding: 0; list-style: none; }}
.swatch {{ display: inline-block; width: 1em; height: 1em; margin-right: .4em; vertical-align: -.12em;
  border: 1px solid #0003; border-radius: 3px; }}
</style>
</head>
<body>
<h1>{title}</h1>
<dl>{facts}</dl>
{legend}<main>
"""
TAIL = """</main>
</body>
</html>
"""


class Report:
    """Writes the page record by record; it appears under its name when the block ends without an error.

    Args:
        path: the HTML file.
        title: its heading.
        facts: what stands above the pictures, name and value.
        legend: the colour (blue, green, red) of each class, by its name; a long one is folded up.
    """

    def __init__(
        self, path: Path, title: str, facts: dict[str, Any], legend: dict[str, tuple[int, int, int]] | None = None
    ):
        self.path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        listed = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
        self._head = HEAD.format(title=_text(title), facts=listed, legend=_legend(legend or {}))

    def __enter__(self) -> "Report":
        try:
            self._file = self._temporary.open("w", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._file.write(self._head)
        return self

    def add(self, record: dict[str, Any], overlay: np.ndarray | None, lines: list[str]) -> None:
        """Append one input.

        Args:
            record: as in ``predictions.json``: ``file``, and ``overlay`` or ``error``.
            overlay: the picture as drawn, BGR uint8 ``[H, W, 3]``, or None where there is none to show.
            lines: what was found.
        """
        parts = ["<figure>"]
        if overlay is not None:
            picture = f'<img alt="{_text(record["file"])}" src="{_thumbnail(overlay)}">'
            parts.append(f'<a href="{quote(record["overlay"])}">{picture}</a>')
        elif "overlay" in record:
            parts.append(f'<a href="{quote(record["overlay"])}">{_text(record["overlay"])}</a>')
        parts.append(f"<figcaption>{_text(record['file'])}")
        parts += [f"<small>{_text(line)}</small>" for line in lines]
        if "error" in record:
            parts.append(f'<small class="failed">{_text(record["error"])}</small>')
        self._file.write("".join([*parts, "</figcaption></figure>\n"]))

    def __exit__(self, kind, error, trace) -> None:
        with self._file:
            self._file.write(TAIL)
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)


def _legend(colors: dict[str, tuple[int, int, int]]) -> str:
    if not colors:
        return ""
    items = "".join(
        f'<li><span class="swatch" style="background:rgb({red},{green},{blue})"></span>{_text(name)}</li>'
        for name, (blue, green, red) in colors.items()
    )
    state = " open" if len(colors) <= OPEN_LEGEND else ""
    return f'<details class="legend"{state}><summary>{len(colors)} classes</summary><ul>{items}</ul></details>\n'


def _text(value: Any) -> str:
    return html.escape(str(value))


def _thumbnail(image: np.ndarray) -> str:
    """A data URL of the picture as a small JPEG."""
    cv2 = require("cv2")
    height, width = image.shape[:2]
    shrink = min(1.0, THUMBNAIL / max(height, width))
    if shrink < 1:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
