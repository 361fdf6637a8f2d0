"""The blocks of the page, and the page."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.inference.analysis.base import Section
from visionattn.inference.analysis.blocks import LARGE, LARGEST, confusions, matrix, number, table
from visionattn.inference.analysis.page import write_page
from visionattn.inference.analysis.plots import Series, bars, line_plot, reliability
from visionattn.inference.analysis.worst import Worst, shrunk

NASTY = '<script>alert("x")</script> & Ä'


class Balance(HTMLParser):
    """Checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def blocks():
    curve = Series(NASTY, np.linspace(0, 1, 5000), np.linspace(1, 0, 5000), (0.5, 0.5))
    counts = np.array([[3, 1], [0, 0]])
    return [
        table([NASTY, "value"], [[NASTY, 0.25], ["b", None]]),
        matrix(counts, [NASTY, "b"], [NASTY, "b"], row_title=NASTY, column_title="y"),
        line_plot([curve, Series("empty", np.zeros(0), np.zeros(0))], title=NASTY, x_label=NASTY, y_label="y"),
        reliability(np.array([np.nan, 0.5]), np.array([0, 4]), title="t", x_label="x", y_label="y"),
        bars([NASTY], [0.0], title="none"),
    ]


def test_page_is_complete_and_escaped(tmp_path):
    write_page(tmp_path / "report.html", NASTY, {NASTY: NASTY}, [Section(NASTY, blocks())])
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(content)
    assert parser.open == []
    assert not re.search(r'(src|href)="(?!#|data:)', content)  # needs no other file and no network
    assert "url(" not in content
    assert "nan" not in content.lower()
    with pytest.raises(DataError, match="cannot be written"):
        write_page(tmp_path / "missing/report.html", "", {}, [])


def test_numbers():
    assert [number(v) for v in (None, float("nan"), -1, 3, 0.12345)] == ["–", "–", "–", "3", "0.123"]


def test_matrix_of_many_classes():
    def cells(size):
        names = [f"c{k}" for k in range(size)]
        return matrix(np.eye(size, dtype=int) * 7, names, names, row_title="", column_title="")

    assert cells(LARGE).count(">7</td>") == LARGE
    assert cells(LARGE + 1).count(">7</td>") == 0
    assert cells(LARGE + 1).count(": 7 (100.0%)") == LARGE + 1
    assert "is not shown" in cells(LARGEST + 1)


def test_confused_pairs():
    found = confusions(np.array([[9, 2, 0], [5, 9, 0], [0, 0, 9]]), ["a", "b", "c"], "objects")
    assert re.findall(r">([abc]|\d+)<", found) == ["b", "a", "5", "a", "b", "2"]
    assert confusions(np.eye(3, dtype=int), ["a", "b", "c"], "objects") == ""


def test_worst_items():
    worst, made = Worst(3), []
    for index, value in enumerate([0.2, 0.0, 0.9, 0.5, 0.1, 0.5, 0.9]):
        worst.offer(value, lambda index=index: made.append(index) or index)
    assert worst.items() == [2, 6, 3]  # the earlier of equal ones first; no item without an error
    assert 4 not in made


def test_large_maps_are_shrunk():
    assert shrunk(np.zeros((1000, 480))).shape == (333, 160)
    assert shrunk(np.arange(12).reshape(3, 4)).tolist() == np.arange(12).reshape(3, 4).tolist()
