"""``visionattn simulate`` as a person uses it."""

import json

import numpy as np
import pytest

from visionattn.cli import main
from visionattn.kernels.simulator.simulate import simulate

IMAGE = ["--shape", "256", "256", "--window", "80", "80"]
TILES = ["--q-tile", "16", "8", "--kv-tile", "16", "8"]


def prints(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert main(["simulate", *argv]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


def fails(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert main(["simulate", *argv]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "unexpected" not in lines[0]
    return lines[0]


def cells(text: str) -> dict[str, list[str]]:
    """The rows of the tables by their first cell."""
    rows = ([cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line)
    return {row[0]: row[1:] for row in rows}


def test_table(capsys):
    text = prints(capsys, *IMAGE, *TILES)
    assert text.startswith("map 256x256, window 80x80; query tile 16x8, key tile 16x8\n")
    rows = cells(text)
    assert rows["tiles of dense attention"] == ["262,144"]
    assert rows["tiles visited"] == ["34,884"]
    assert rows["full, no mask"] == ["17,284"]
    assert rows["partial, masked"] == ["17,600"]
    assert rows["speed-up bound (FLOPs)"] == ["10.24x"]
    assert rows["speed-up bound (tiles)"] == ["7.51x"]
    assert rows["speed-up with mask overhead 50%"] == ["6.00x"]
    assert rows["fully block-sparse"] == ["no"]
    assert "over dense attention on the flat map" not in rows  # the tiles divide the axes


def test_search_of_strides(capsys):
    rows = cells(prints(capsys, *IMAGE, *TILES, "--search", "stride"))
    assert rows["0"] == ["16 48 80", "16"]
    assert rows["1"] == ["16 32 48 64 80", "16"]
    assert rows["tiles visited"] == ["34,884", "25,600"]
    assert rows["fully block-sparse"] == ["no", "yes"]


def test_search_of_strides_says_why_there_is_none(capsys):
    argv = ("--shape", "64", "--kv-tile", "8", "--q-tile", "8", "--search", "stride")
    text = prints(capsys, *argv, "--window", "12")
    assert "No stride is fully block-sparse" in text
    assert "none: the window 12 is not a multiple of the key tile" in text
    assert "none: on a causal axis, the queries of a tile" in prints(capsys, *argv, "--window", "16", "--causal")


def test_search_of_tiles(capsys):
    argv = (*IMAGE, "--stride", "16", "--search", "tile", "--q-sizes", "128", "256", "--kv-sizes", "128")
    found = json.loads(prints(capsys, *argv, "--json"))["search"]["found"]
    assert [np.prod(case["q_tile"]) for case in found] == [128, 256]
    assert all(case["fully_block_sparse"] and case["speedup_bound"] == 10.24 for case in found)
    table = prints(capsys, *argv)
    for case in found:
        assert "x".join(map(str, case["q_tile"])) in table


def test_json_holds_the_counts(capsys):
    argv = ("--shape", "50", "30", "--window", "7", "9", "--dilation", "3", "1", "--stride", "2", "9", "--causal", "no")
    record = json.loads(prints(capsys, *argv, "yes", "--q-tile", "8", "--kv-tile", "4", "--dynamic", "--json"))
    case = simulate((50, 30), (7, 9), (2, 9), (3, 1), (False, True), q_tile=8, kv_tile=4, dynamic=True)
    found = record["case"]
    assert found["causal"] == [False, True]
    assert found["visited_tiles"] == case.visited_tiles
    assert found["full_tiles"] == case.full_tiles
    assert found["achievable_speedup"] == case.achievable_speedup()
    strides = json.loads(prints(capsys, *IMAGE, *TILES, "--search", "stride", "--json"))["search"]
    assert strides["smallest"] == strides["best"] == [16, 16]
    assert strides["block_sparse"][0] == [16, 48, 80]


def test_errors_are_one_line(capsys, tmp_path):
    small = ("--shape", "56", "56", "--window", "7")
    both = ("--q-tile", "8", "--kv-tile", "8")
    wide = fails(capsys, "--shape", "56", "56", "--window", "57", *both)
    assert "--window must be at most the length of axis 0, 56, got window=(57, 57)" in wide
    assert "--stride must be at most --window (7, 7)" in fails(capsys, *small, *both, "--stride", "8")
    text = fails(capsys, "--shape", "56", "56", "--window", "7", "7", "7", *both)
    assert "--window must have one entry or one for each of the 2 axes" in text
    assert "--q-tile is required" in fails(capsys, *small, "--kv-tile", "8")
    assert "--kv-tile is required" in fails(capsys, *small, "--q-tile", "8", "--search", "stride")
    assert "--q-tile and --kv-tile must be set together" in fails(capsys, *small, "--q-tile", "8", "--search", "tile")
    assert "--q-sizes requires --search tile" in fails(capsys, *small, *both, "--q-sizes", "64")
    assert "--q-sizes must be at least 1 on every axis" in fails(capsys, *small, "--search", "tile", "--q-sizes", "0")
    assert "--mask-overhead must be a finite number of at least 0, got -1.0" in fails(
        capsys, *small, "--search", "tile", "--mask-overhead", "-1"
    )
    assert "--plot must end in .png" in fails(capsys, *small, *both, "--plot", "tiles.gif")
    pytest.importorskip("matplotlib")
    assert "cannot be written" in fails(capsys, *small, *both, "--plot", str(tmp_path / "missing" / "tiles.png"))


def test_wrong_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["simulate", "--shape", "8", "--window", "3", "--causal", "maybe"])
    assert caught.value.code == 2
    assert "'maybe' is neither true nor false" in capsys.readouterr().err
