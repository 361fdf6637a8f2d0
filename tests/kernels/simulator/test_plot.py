"""The pictures of ``visionattn simulate``."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.image import imread

from visionattn.cli import main
from visionattn.kernels.simulator.plot import COLORS, axis_states
from visionattn.kernels.simulator.simulate import FULL, PARTIAL, simulate

IMAGE = ["--shape", "256", "256", "--window", "80", "--q-tile", "16", "8", "--kv-tile", "16", "8"]


def share(path: Path, state: int) -> float:
    """Share of the pixels of a picture that have the color of a state."""
    image = imread(path)[..., :3]
    color = [int(COLORS[state][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return float((np.abs(image - color).max(axis=-1) < 0.02).mean())


def test_picture_shows_what_is_masked(capsys, tmp_path):
    for stride, partial in ((1, True), (16, False)):
        path = tmp_path / f"{stride}.png"
        assert main(["simulate", *IMAGE, "--stride", str(stride), "--plot", str(path)]) == 0
        assert f"written: {path}" in capsys.readouterr().out
        assert share(path, FULL) > 0.03
        assert (share(path, PARTIAL) > 0.03) is partial


@pytest.mark.parametrize(
    "argv",
    [
        ("--shape", "100", "--window", "7", "--q-tile", "16", "--kv-tile", "8"),
        ("--shape", "100", "--window", "7", "--q-tile", "16", "--kv-tile", "8", "--dilation", "3", "--dynamic"),
        ("--shape", "20", "30", "--window", "5", "--q-tile", "4", "--kv-tile", "8", "--dilation", "3", "2"),
        ("--shape", "9", "300", "--window", "5", "--q-tile", "1", "--kv-tile", "1", "--causal"),
        ("--shape", "6", "8", "9", "--window", "4", "--q-tile", "2", "4", "4", "--kv-tile", "2", "--dilation", "1"),
        ("--shape", "6", "8", "9", "--window", "3", "--q-tile", "2", "--kv-tile", "4", "--dynamic"),
        ("--shape", "1", "1", "--window", "1", "--q-tile", "8", "--kv-tile", "8"),
    ],
)
def test_every_kind_of_picture(tmp_path, argv):
    path = tmp_path / "tiles.png"
    assert main(["simulate", *argv, "--plot", str(path)]) == 0
    assert share(path, PARTIAL) + share(path, FULL) > 0.005


@pytest.mark.parametrize("seed", range(20))
def test_axis_states_add_up_to_the_counts(seed):
    rng = random.Random(seed)
    length, dilation, size = rng.randint(4, 40), rng.randint(1, 3), rng.choice((1, 2, 3, 4))
    window = rng.randint(1, length // dilation)
    q_tile = rng.choice((1, 3, 8))
    case = simulate(length, window, rng.randint(1, window), dilation, rng.random() < 0.5, q_tile=q_tile, kv_tile=size)
    keys = np.arange(length)
    states = axis_states(case, 0, np.arange(case.query_tiles), keys % dilation, keys // dilation)
    tiles = {(x % dilation, x // dilation // size): x for x in range(length)}  # a position of every key tile
    found = [states[row, x] for row, x in itertools.product(range(case.query_tiles), tiles.values())]
    assert found.count(FULL) == case.full_tiles
    assert found.count(PARTIAL) == case.partial_tiles
