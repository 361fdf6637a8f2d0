"""The pictures of attention patterns and of the architecture show what the package does."""

import importlib.util

import pytest
import torch
from fixtures.paths import REPO

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("generate_figures", REPO / "docs/generate_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_keys_of_each_panel(figures):
    rows = [range(5, 12), range(7), range(2, 15, 2), range(7, 14), range(2, 9), range(8, 12)]
    columns = [range(5, 12), range(9, 16), range(2, 15, 2), range(7, 14), range(2, 9), range(8, 12)]
    for (title, options, query), ys, xs in zip(figures.NEIGHBORHOODS, rows, columns, strict=True):
        weights = figures.neighborhood(**options)[query]
        expected = torch.zeros(16, 16)
        for y in ys:
            for x in xs:
                expected[y, x] = 1 / (len(ys) * len(xs))
        torch.testing.assert_close(weights, expected, msg=title)


def test_routing_attends_to_whole_regions(figures):
    weights = figures.routing()[6, 9].view(4, 4, 4, 4).transpose(1, 2).flatten(2)  # [4, 4, 16 keys of a region]
    chosen = (weights > 0).all(-1)
    assert int(chosen.sum()) == 3
    assert float(weights[~chosen].abs().max()) == 0


def test_layers_are_folders(figures):
    names = [name for row in figures.layers() for name in row]
    assert set(names) == set(figures.CONTENTS)
    assert all((REPO / "visionattn" / name).is_dir() or (REPO / f"visionattn/{name}.py").is_file() for name in names)


def test_files(figures, tmp_path):
    figures.main(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in figures.FIGURES.iterdir()}
    assert "the commands" in (tmp_path / "architecture.svg").read_text()
