"""Results of kernels, layers, backbones and heads against those recorded in this folder; needs no other data.

The recorded values were computed by code that agreed with the recorded outputs of the published implementations. They
are made again by `parity.record`, which is only right where a result is meant to change.
"""

import importlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from parity.recipe import Recipe, differences, limit
from parity.record import AREAS, FOLDER


@cache
def recorded(area: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{area}.npz", allow_pickle=False) as file:
        return dict(file)


CASES = [(area, name) for area in AREAS for name in importlib.import_module(f"parity.{area}").CASES]


@pytest.mark.parametrize(("area", "name"), CASES, ids=[f"{area}-{name}" for area, name in CASES])
def test_equals_the_recorded_result(area, name):
    found = importlib.import_module(f"parity.{area}").CASES[name](Recipe())
    stored: dict[str, dict[str, np.ndarray]] = {}
    for path, value in recorded(area).items():
        case, key, part = path.split("/")
        if case == name:
            stored.setdefault(key, {})[part] = value
    assert set(found) == set(stored)
    for key, tensor in found.items():
        for what, difference in differences(tensor, stored[key]).items():
            assert difference <= limit(key), f"{what} of {key} differ by {difference:.1e}"


def test_every_recorded_result_has_a_case():
    for area in AREAS:
        assert {path.split("/")[0] for path in recorded(area)} == {name for a, name in CASES if a == area}


def test_size_of_the_recorded_results():
    folder = Path(__file__).parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5_000_000
