"""Plots as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionattn.inference.analysis.blocks import text

__all__ = ["Series", "bars", "line_plot", "reliability"]

COLORS = ("#1f6fd1", "#d1431f", "#188a4b", "#8a3fc1", "#b07a00", "#0b8a94", "#c22f80", "#5a6472", "#6b8f00", "#7a4a2a")
WIDTH, HEIGHT = 460, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 46
POINTS = 400
"""Number of points of a line; more could not be distinguished."""


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: text in the legend.
        x, y: coordinates in [0, 1], ``[N]``.
        mark: a point to mark with a dot, or None.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    mark: tuple[float, float] | None = None


def _place(x: float, y: float) -> tuple[float, float]:
    return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)


def _frame(title: str, x_label: str, y_label: str) -> list[str]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [f'<text x="{middle}" y="18" text-anchor="middle" class="title">{text(title)}</text>']
    for value in np.linspace(0, 1, 6):
        x, y = _place(value, value)
        x0, y0 = _place(0, 0)
        x1, y1 = _place(1, 1)
        parts.append(f'<path d="M{x:.1f} {y0:.1f}V{y1:.1f}M{x0:.1f} {y:.1f}H{x1:.1f}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{y0 + 15:.1f}" text-anchor="middle">{value:.1f}</text>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{text(x_label)}</text>')
    center = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{center}" text-anchor="middle" transform="rotate(-90 14 {center})">{text(y_label)}</text>'
    )
    return parts


def _svg(parts: Sequence[str], title: str, height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{text(title)}">{"".join(parts)}</svg>'
    )


def line_plot(series: Sequence[Series], *, title: str, x_label: str, y_label: str, diagonal: bool = False) -> str:
    """Return lines in the unit square, with a legend.

    Args:
        series: the lines.
        title: text above the plot.
        x_label, y_label: texts at the axes.
        diagonal: draw the diagonal.
    """
    parts = _frame(title, x_label, y_label)
    if diagonal:
        parts.append(_diagonal())
    entries = []
    for index, line in enumerate(series):
        color = COLORS[index % len(COLORS)]
        dashes = "" if index < len(COLORS) else ' stroke-dasharray="6 3"'
        keep = np.unique(np.linspace(0, len(line.x) - 1, POINTS).astype(int)) if len(line.x) else []
        points = (_place(float(line.x[i]), float(line.y[i])) for i in keep)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" stroke="{color}" class="line"{dashes}/>')
        if line.mark is not None:
            x, y = _place(*line.mark)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}" stroke="#fff"/>')
        entries.append(f'<li><span style="background:{color}"></span>{text(line.name)}</li>')
    return f'<div class="plot">{_svg(parts, title)}<ul>{"".join(entries)}</ul></div>'


def _diagonal() -> str:
    (x0, y0), (x1, y1) = _place(0, 0), _place(1, 1)
    return f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" class="diagonal"/>'


def reliability(observed: np.ndarray, counts: np.ndarray, *, title: str, x_label: str, y_label: str) -> str:
    """Return a reliability diagram: one bar per bin of equal width, whose opacity grows with its number of samples.

    Args:
        observed: share of correct samples in each bin, ``[bins]``, NaN in empty bins.
        counts: number of samples in each bin, ``[bins]``.
        title: text above the plot.
        x_label, y_label: texts at the axes.
    """
    parts, bins = _frame(title, x_label, y_label), len(observed)
    for index, (share, count) in enumerate(zip(observed.tolist(), counts.tolist(), strict=True)):
        if not count:
            continue
        (x0, y0), (x1, y1) = _place(index / bins, 0), _place((index + 1) / bins, share)
        tip = f"scores {index / bins:.2f} to {(index + 1) / bins:.2f}: {count} samples, {share:.3f} correct"
        parts.append(
            f'<rect x="{x0 + 1:.1f}" y="{y1:.1f}" width="{x1 - x0 - 2:.1f}" height="{y0 - y1:.1f}" fill="{COLORS[0]}" '
            f'opacity="{0.35 + 0.65 * (count / counts.max()) ** 0.5:.2f}"><title>{text(tip)}</title></rect>'
        )
    return f'<div class="plot">{_svg([*parts, _diagonal()], title)}</div>'


def bars(names: Sequence[str], values: Sequence[float], *, title: str) -> str:
    """Return horizontal bars with their values.

    Args:
        names: text left of the bars.
        values: lengths, not negative.
        title: text above the bars.
    """
    parts = [f'<text x="{WIDTH / 2}" y="18" text-anchor="middle" class="title">{text(title)}</text>']
    left, largest = 130, max([*values, 1e-12])
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        y = TOP + 8 + 26 * index
        width = (WIDTH - left - 60) * value / largest
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{text(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{max(width, 1):.1f}" height="19" fill="{COLORS[0]}"/>')
        parts.append(f'<text x="{left + width + 6:.1f}" y="{y + 14}">{value:.2f}</text>')
    return f'<div class="plot">{_svg(parts, title, TOP + 26 * len(names) + 14)}</div>'
