"""``visionattn benchmark`` as a person uses it."""

import pytest

from visionattn import cli
from visionattn.cli import benchmark, main
from visionattn.kernels import na2d
from visionattn.kernels.neighborhood.triton.tiles import Geometry, legal_tiles

PROBLEM = ["na2d", "--shape", "12", "14", "--kernel-size", "5", "--dim", "8"]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables by their first cell."""
    found = ([cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line)
    return {row[0]: row[1:] for row in found}


def fails(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert main(["benchmark", *argv]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "unexpected" not in error
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize("options", [[], ["--backward", "--rpb", "--dilation", "2", "--heads-kv", "1"]])
def test_times_each_backend_and_says_why_not(options, capsys):
    argv = ["benchmark", *PROBLEM, *options, "--rounds", "2", "--device", "cpu", "--backends", "torch", "reference"]
    assert main(argv) == 0
    table = rows(capsys.readouterr().out)
    assert {"torch", "reference"} <= set(table)
    assert all(float(table[name][0]) > 0 and float(table[name][3]) < 1e-4 for name in ("torch", "reference"))
    assert main(["benchmark", *PROBLEM, "--rounds", "2", "--device", "cpu"]) == 0
    assert "triton: cannot run: " in capsys.readouterr().out


def test_a_wrong_backend_is_not_timed(capsys, monkeypatch):
    def wrong(**kwargs):
        out = na2d(**kwargs)
        return out + 1 if kwargs["backend"] == "torch" else out

    monkeypatch.setitem(benchmark.OPERATORS, "na2d", wrong)
    assert "differs from 'reference'" in fails(capsys, *PROBLEM, "--device", "cpu", "--backends", "torch")


def test_dry_run_lists_the_tiles_and_marks_the_default(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "_time", None)
    argv = ["benchmark", "na2d", "--shape", "56", "56", "--kernel-size", "7", "--dtype", "bf16", "--dry-run"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    geometry = Geometry.of((56, 56), (7, 7), (1, 1), (1, 1), (False, False))
    tiles = legal_tiles(geometry, "forward", 32, 32, 2)
    table = [line for line in text[: text.index("backward")].splitlines() if "│" in line]
    assert len(table) == len(tiles)
    first = [cell.strip() for cell in table[0].strip("│").split("│")]
    rows, columns = tiles[0].shape[:2]
    assert first[:3] == [f"{rows}x{columns}", str(rows * columns), f"{rows + 6}x{columns + 6}"]
    assert first[-1] == "default"
    assert text.count("default") == 3  # forward, and two of backward


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["na2d", "--shape", "12", "--kernel-size", "3"], ["--shape must have one value per axis (2 for na2d), got 1"]),
        (["na2d", "--shape", "12", "12", "--kernel-size", "13"], ["got kernel_size=(13, 13)"]),
        ([*PROBLEM, "--dtype", "fp64", "--dry-run"], ["fp64"]),
        ([*PROBLEM, "--rounds", "1"], ["--rounds must be at least 2, got 1"]),
        ([*PROBLEM, "--device", "cpu", "--backends", "nonsense"], ["nonsense"]),
        ([*PROBLEM, "--heads", "3", "--heads-kv", "2"], ["divide the 3 heads of `query`, got 2"]),
    ],
)
def test_bad_arguments(argv, words, capsys):
    error = fails(capsys, *argv)
    assert all(word in error for word in words), error


def test_the_door_names_the_command():
    assert "benchmark" in cli.COMMANDS
