"""Salient relevance maps by their properties, and a small one by loops."""

import math

import pytest
import torch

from visionattn.inference.explain import salient
from visionattn.inference.explain.salient import salient_relevance


def test_a_bright_pixel_becomes_a_region():
    heat = torch.zeros(60, 80)
    heat[20, 50] = 1
    found = salient_relevance(heat)
    assert found.shape == heat.shape
    assert found.max() == pytest.approx(1, abs=0.05)
    row, column = divmod(int(found.argmax()), 80)
    assert abs(row - 20) <= 3
    assert abs(column - 50) <= 3
    assert (found > 0.5).sum() > 4
    assert found[50:, :20].max() < 0.1


def test_a_repeated_pattern_stands_out_less_than_a_unique_one():
    heat = torch.zeros(100, 100)
    heat[::10, ::10] = 1
    heat[52:58, 42:48] = 1
    found = salient_relevance(heat)
    assert found[52:58, 42:48].max() == found.max()
    assert found[5:40].max() < 0.7 * found.max()


def test_mirrored_maps():
    torch.manual_seed(0)
    heat = torch.nn.functional.interpolate(torch.rand(1, 1, 5, 7), (50, 70), mode="bilinear")[0, 0]
    found = salient_relevance(heat)
    mirrored = salient_relevance(heat.flip(1)).flip(1)
    assert (found - mirrored).abs().mean() < 0.05  # patches begin at the other side


def test_distances_by_hand(monkeypatch):
    monkeypatch.setattr(salient, "NEIGHBORS", 3)
    monkeypatch.setattr(salient, "CHUNK", 2)
    torch.manual_seed(0)
    patches, positions, others, places = torch.rand(5, 49), torch.rand(5, 2), torch.rand(6, 49), torch.rand(6, 2)
    found = salient._uniqueness(patches, positions, others, places)
    for i in range(5):
        distances = sorted(
            math.dist(patches[i].tolist(), o.tolist()) / 7 / (1 + 3 * math.dist(positions[i].tolist(), p.tolist()))
            for o, p in zip(others, places, strict=True)
        )
        assert found[i].item() == pytest.approx(1 - math.exp(-sum(distances[:3]) / 3), abs=1e-5)


def test_constant_and_wrong_maps():
    assert not salient_relevance(torch.full((20, 30), 0.4)).any()
    with pytest.raises(ValueError, match=r"`heat` must be \[H, W\], got shape \[1, 5, 5\]"):
        salient_relevance(torch.zeros(1, 5, 5))
    with pytest.raises(ValueError, match=r"`heat` must be in \[0, 1\], got -1"):
        salient_relevance(torch.tensor([[-1.0, 2.0]]))
