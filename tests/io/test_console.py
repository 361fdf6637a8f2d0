"""Progress bars with rates on a terminal, and nothing elsewhere."""

import io
import types

import pytest
from rich.console import Console

from visionattn.io import console as console_module
from visionattn.io.console import count_of, progress_bar, track


def test_counts():
    assert [count_of(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_rates():
    column = progress_bar("image").columns[3]
    for speed, text in ((None, "- image/s"), (12.34, "12.3 image/s"), (0.25, "4.0 s/image")):
        task = types.SimpleNamespace(finished_speed=None, speed=speed)
        assert column.render(task).plain == text
    assert column.render(types.SimpleNamespace(finished_speed=2.0, speed=None)).plain == "2.0 image/s"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("disable", [True, False])
def test_track(monkeypatch, terminal, disable):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    monkeypatch.setattr(console_module, "Console", lambda stderr: console)
    assert list(track(iter(range(5)), "reading", 5, disable=disable)) == list(range(5))
    assert ("reading" in stream.getvalue()) == (terminal and not disable)
    assert ("image/s" in stream.getvalue()) == (terminal and not disable)
