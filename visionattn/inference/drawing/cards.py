"""Cards with text: labels and legends, and their sizes in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from visionattn.errors import require
from visionattn.inference.drawing.colors import Color, ink
from visionattn.inference.drawing.shapes import blend

cv2 = require("cv2")

__all__ = ["Label", "Panel", "Row", "label_size", "line_height", "padding", "panel_size"]

NAME_WEIGHT, VALUE_WEIGHT = 600, 450  # on a scale of 100 to 1000
LEGEND_COLOR, LEGEND_OPACITY = (26, 24, 22), 0.78


@lru_cache(maxsize=1)
def _font() -> "cv2.FontFace":
    return cv2.FontFace("sans")  # part of OpenCV, with "uni" as the fallback for missing letters


@lru_cache(maxsize=4096)
def _measure(text: str, font: int, weight: int) -> int:
    """Return the width of a text in pixels."""
    return cv2.getTextSize((0, 0), _one_line(text), (0, 0), _font(), font, weight)[2]


def _write(out: np.ndarray, text: str, start: tuple[int, int], color: Color, font: int, weight: int) -> None:
    cv2.putText(out, _one_line(text), start, color, _font(), font, weight)


def _one_line(text: str) -> str:
    """Return the text with single spaces in place of line breaks, tabs and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@dataclass(frozen=True)
class Label:
    """A name, and a value after it, on a rectangle of the given color."""

    x: int
    y: int
    width: int
    height: int
    text: str
    value: str
    color: Color
    font: int
    radius: int = 0

    def paint(self, out: np.ndarray) -> None:
        """Paint the label on a BGR image, in place."""
        _card(out, self, self.color, 1.0, self.radius)
        start, base = self.x + padding(self.font), self.y + _baseline(self.height, self.font)
        color = ink(self.color)
        _write(out, self.text, (start, base), color, self.font, NAME_WEIGHT)
        if self.value:
            start += _measure(self.text, self.font, NAME_WEIGHT) + _gap(self.font)
            _write(out, self.value, (start, base), color, self.font, VALUE_WEIGHT)


@dataclass(frozen=True)
class Row:
    """A line of a legend: a name, a value, and the color of the square before it, None for no square."""

    name: str
    value: str = ""
    color: Color | None = None


@dataclass(frozen=True)
class Panel:
    """A legend: rows on a dark rectangle through which the image is faintly visible."""

    x: int
    y: int
    width: int
    height: int
    rows: tuple[Row, ...]
    font: int

    def paint(self, out: np.ndarray) -> None:
        """Paint the legend on a BGR image, in place."""
        font, pad, step = self.font, padding(self.font), line_height(self.font)
        _card(out, self, LEGEND_COLOR, LEGEND_OPACITY, pad)
        square = round(0.75 * font)
        for index, row in enumerate(self.rows):
            x, y = self.x + pad, self.y + pad + index * step
            base = y + _baseline(step, font)
            if row.color is not None:
                cv2.rectangle(out, (x, base - square), (x + square - 1, base - 1), row.color, cv2.FILLED)
            x += _indent(self.rows, font)
            _write(out, row.name, (x, base), (255, 255, 255), font, NAME_WEIGHT)
            end = self.x + self.width - pad - _measure(row.value, font, VALUE_WEIGHT)
            _write(out, row.value, (end, base), (225, 225, 225), font, VALUE_WEIGHT)


def label_size(text: str, value: str, font: int) -> tuple[int, int]:
    """Return the width and height of a label in pixels."""
    width = 2 * padding(font) + _measure(text, font, NAME_WEIGHT) if text else 2 * padding(font)
    if value:
        width += _measure(value, font, VALUE_WEIGHT) + (_gap(font) if text else 0)
    return width, line_height(font)


def panel_size(rows: Sequence[Row], font: int) -> tuple[int, int]:
    """Return the width and height of a legend in pixels."""
    names = max(_measure(row.name, font, NAME_WEIGHT) for row in rows)
    values = max(_measure(row.value, font, VALUE_WEIGHT) for row in rows)
    width = _indent(rows, font) + names + (values + 2 * _gap(font) if values else 0) + 2 * padding(font)
    return width, len(rows) * line_height(font) + 2 * padding(font)


def padding(font: int) -> int:
    """Return the distance between the text of a card and its left and right side."""
    return max(2, round(0.3 * font))


def _gap(font: int) -> int:
    return max(4, round(0.45 * font))  # between a name and its value: wider than the space between two words


def line_height(font: int) -> int:
    """Return the height of a label, or of a row of a legend."""
    return round(1.4 * font)


def _baseline(height: int, font: int) -> int:
    return round((height + 0.7 * font) / 2)  # a capital letter has 0.7 of the size of its font


def _indent(rows: Sequence[Row], font: int) -> int:
    return round(1.15 * font) if any(row.color is not None for row in rows) else 0


def _card(out: np.ndarray, area: Label | Panel, color: Color, opacity: float, radius: int) -> None:
    """Fill a rectangle with rounded corners."""
    region = out[area.y : area.y + area.height, area.x : area.x + area.width]
    height, width = region.shape[:2]
    radius = min(radius, (min(height, width) - 1) // 2)
    if radius < 1 and opacity == 1:
        region[:] = color
        return
    cover = np.zeros((height, width), np.uint8)
    cover[radius : height - radius] = cover[:, radius : width - radius] = 255
    for x in (radius, width - 1 - radius):
        for y in (radius, height - 1 - radius):
            cv2.circle(cover, (x, y), radius, 255, cv2.FILLED, cv2.LINE_AA)
    blend(region, color, cover * np.float32(opacity / 255))
