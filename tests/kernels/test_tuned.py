"""Tables of measured tiles."""

import csv
from types import SimpleNamespace

import pytest
import torch

from visionattn.errors import ConfigError
from visionattn.kernels import tuned
from visionattn.kernels.neighborhood.triton.tiles import Geometry, legal_tiles
from visionattn.kernels.tuned import Choice, key_of, neighborhood_tile, row_of, tuned_tile


def key(kernel: str = "forward", **changes) -> tuned.Key:
    options = dict(lengths=(56, 56), window=(7, 7), dilation=(1, 1), dim=64, dtype=torch.bfloat16, rpb=False,
                   capability=(9, 0))  # fmt: skip
    return key_of(kernel, **{**options, **changes})


@pytest.fixture
def tiles():
    return legal_tiles(Geometry.of((56, 56), (7, 7), (1, 1), (1, 1), (False, False)), "forward", 32, 32, 2)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a table and use it."""
    path = tmp_path / "tuned.csv"
    monkeypatch.setenv("VISIONATTN_TUNED", str(path))

    def write(*rows: dict) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return write


def test_the_tile_of_the_table(tiles, write, monkeypatch):
    assert len(tiles) > 2
    write(row_of(key(), Choice.of(tiles[2])) | {"microseconds": 12.5}, row_of(key("key"), Choice.of(tiles[1])))
    assert tuned_tile(tiles, key()) is tiles[2]
    assert tuned_tile(tiles, key("key")) is tiles[1]
    for changes in (
        dict(window=(9, 9)), dict(dim=128), dict(rpb=True), dict(dtype=torch.float16), dict(capability=(10, 0)),
        dict(lengths=(28, 28)), dict(lengths=(56, 56), dilation=(8, 8)), dict(lengths=(112, 112), dilation=(2, 2)),
    ):  # fmt: skip
        assert tuned_tile(tiles, key(**changes)) is None, changes
    assert tuned_tile(tiles, key(lengths=(40, 64))) is tiles[2]  # the same powers of two
    write(row_of(key(), Choice.of(tiles[1])))
    assert tuned_tile(tiles, key()) is tiles[1]  # a table that has changed is read again
    monkeypatch.setenv("VISIONATTN_TUNED", "/nonexistent/tuned.csv")
    assert tuned_tile(tiles, key()) is None


def test_a_tile_that_is_not_legal_any_more(tiles, write):
    write(row_of(key(), Choice("64x64x1", 32, 4, 2)))
    assert tuned_tile(tiles, key()) is None


@pytest.mark.parametrize("row", [{"kernel": "forward"}, None, {"rpb": "maybe"}, {"warps": "many"}])
def test_a_file_that_is_no_table(row, tiles, write):
    good = row_of(key(), Choice.of(tiles[0]))
    write(row if row == {"kernel": "forward"} else good | (row or {"rpb": ""}))
    with pytest.raises(ConfigError, match="not a table of tiles"):
        tuned_tile(tiles, key())


def test_the_table_of_the_package():
    """If the package has one, all of its rows can be read."""
    table = tuned.read_table(tuned.TABLE)
    assert bool(table) == tuned.TABLE.exists()


def test_for_the_launcher(tiles, write, monkeypatch):
    """Only on CUDA devices, and without strides and causal axes, whose tiles are not measured."""
    q, v = (torch.empty(2, 56, 56, 2, 32, dtype=torch.bfloat16, device="meta") for _ in range(2))
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    write(row_of(key(), Choice.of(tiles[2])))

    def choose(stride: int = 1, causal: bool = False, device: torch.device = cuda, rpb: torch.Tensor | None = None):
        geometry = Geometry.of((56, 56), (7, 7), (stride,) * 2, (1, 1), (causal,) * 2)
        problem = SimpleNamespace(q=q, v=v, rpb=rpb, geometry=geometry, rank=2)
        return neighborhood_tile("forward", tiles, problem, device)

    assert choose() is tiles[2]
    assert choose(stride=2) is choose(causal=True) is choose(device=torch.device("cpu")) is None
    assert choose(rpb=torch.empty(2, 13, 13)) is None


def test_buckets():
    assert [tuned.bucket(n) for n in (1, 2, 3, 7, 8, 9, 56, 64, 65)] == [1, 2, 4, 8, 8, 16, 64, 64, 128]
    assert key(lengths=(57, 30), dilation=(8, 1)) == key(lengths=(64, 17), dilation=(8, 1))
