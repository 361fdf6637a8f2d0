"""HTML blocks of the page: paragraphs, tables and matrices. All text is escaped."""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["columns", "confusions", "matrix", "number", "paragraph", "table", "text"]

LARGE = 24
"""Matrices with more rows have no numbers in their cells, and tables with more rows scroll."""
LARGEST = 200
"""Matrices with more rows are not shown."""
PAIRS = 10
"""Number of pairs of classes that are listed."""


def text(value: Any) -> str:
    """Escape text for HTML."""
    return html.escape(str(value))


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; None, NaN and the -1 of COCO for undefined values become a dash."""
    if value is None or not math.isfinite(value) or value == -1:
        return "–"
    return str(value) if isinstance(value, (int, np.integer)) else f"{value:.{digits}f}"


def paragraph(content: str) -> str:
    """Return a paragraph."""
    return f"<p>{text(content)}</p>"


def columns(*blocks: str) -> str:
    """Return blocks side by side, as far as the width of the page permits."""
    return f'<div class="columns">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 3) -> str:
    """Return a table whose first column holds names and the others numbers or text.

    Args:
        heads: column titles.
        rows: cells; numbers are formatted by `number`.
        digits: number of decimals of floats.
    """
    kinds = [' class="words"' if isinstance(value, str) else "" for value in (rows[0] if rows else heads)]
    lines = ["".join(f"<th{kind}>{text(head)}</th>" for head, kind in zip(heads, kinds, strict=True))]
    for name, *values in rows:
        cells = (
            f'<td class="words">{text(v)}</td>' if isinstance(v, str) else f"<td>{number(v, digits)}</td>"
            for v in values
        )
        lines.append(f'<th class="name" title="{text(name)}">{text(name)}</th>{"".join(cells)}')
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide{" tall" if len(rows) > LARGE else ""}"><table>{body}</table></div>'


def matrix(
    counts: np.ndarray,
    rows: Sequence[str],
    heads: Sequence[str],
    *,
    row_title: str,
    column_title: str,
    percent: bool = False,
) -> str:
    """Return a matrix with cells colored by their share of their row.

    Up to `LARGE` rows, cells show their value; in all matrices, they show it on hover. Matrices of more than `LARGEST`
    rows are replaced by a note.

    Args:
        counts: ``[len(rows), len(heads)]``.
        rows: row names.
        heads: column names.
        row_title: what rows are.
        column_title: what columns are.
        percent: show the share of the row in percent in place of the count.
    """
    counts = np.asarray(counts)
    if len(rows) > LARGEST:
        return paragraph(f"The matrix of {len(rows)} rows is not shown.")
    large = len(rows) > LARGE
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    top = "".join(f'<th class="turned" title="{text(head)}"><span>{text(head)}</span></th>' for head in heads)
    lines = [f"<tr><td></td>{top}</tr>"]
    for name, values, parts in zip(rows, counts.tolist(), shares.tolist(), strict=True):
        cells = []
        for head, value, share in zip(heads, values, parts, strict=True):
            shown = "" if large or not value else f"{100 * share:.1f}" if percent else str(value)
            light = ";color:#fff" if share > 0.42 else ""
            tip = f"{name} → {head}: {value} ({share:.1%})"
            color = f' style="background:{_blue(share)}{light}"' if value else ""
            cells.append(f'<td{color} title="{text(tip)}">{shown}</td>' if value else "<td></td>")
        lines.append(f'<tr><th class="name" title="{text(name)}">{text(name)}</th>{"".join(cells)}</tr>')
    kind = "matrix large" if large else "matrix"
    titles = f"<small>rows: {text(row_title)}; columns: {text(column_title)}</small>"
    return f'{titles}<div class="wide"><table class="{kind}">{"".join(lines)}</table></div>'


def confusions(counts: np.ndarray, names: Sequence[str], title: str) -> str:
    """Return a table of the pairs of classes that are confused most; nothing if there are none.

    Args:
        counts: confusion matrix ``[N, N]`` with truth in rows.
        names: class names, ``[N]``.
        title: title of the column with the counts.
    """
    wrong = np.array(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    rows = [[names[row], names[column], int(wrong[row, column])] for row, column in pairs if wrong[row, column]]
    return table(["truth", "prediction", title], rows) if rows else ""


def _blue(share: float) -> str:
    """Return a color from almost white to dark blue; small shares remain visible."""
    level = share**0.6
    red, green, blue = (round(light + (dark - light) * level) for light, dark in ((236, 8), (244, 60), (252, 125)))
    return f"rgb({red},{green},{blue})"
