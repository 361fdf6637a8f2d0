"""Bars with rates on a terminal, and nothing elsewhere."""

import io
import types

import pytest

pytest.importorskip("mmengine")

from rich.console import Console

from visionattn.engine.train import progress


def test_rates():
    column = progress.RateColumn("image")
    for speed, text in ((None, "- image/s"), (12.34, "12.3 image/s"), (0.25, "4.0 s/image")):
        task = types.SimpleNamespace(finished_speed=None, speed=speed)
        assert column.render(task).plain == text
    assert column.render(types.SimpleNamespace(finished_speed=2.0, speed=None)).plain == "2.0 image/s"


@pytest.mark.parametrize("terminal", [True, False])
def test_track(monkeypatch, terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    monkeypatch.setattr(progress, "screen", lambda: console)
    assert list(progress.track(iter(range(5)), "reading", 5)) == list(range(5))
    assert ("reading" in stream.getvalue()) == terminal
    assert ("image/s" in stream.getvalue()) == terminal
