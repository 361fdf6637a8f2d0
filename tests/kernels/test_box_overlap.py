"""Overlap of rotated boxes and quadrilaterals against shapely, and exact greedy suppression."""

import math

import numpy as np
import pytest
import torch

from visionattn.kernels import box_overlap
from visionattn.kernels.box_overlap import (
    circles_meet,
    greedy_nms,
    overlap_matrix,
    quadrilateral_area,
    quadrilateral_intersection,
    rotated_intersection,
)

shapely = pytest.importorskip("shapely")


def random_boxes(count, seed, dtype=torch.float64):
    values = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * torch.tensor([4.0, 4, 4, 4, 20]) + torch.tensor([0.0, 0, 0.2, 0.2, -10])).to(dtype)


def corners(boxes):
    signs = boxes.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    x, y = (signs * boxes[:, None, 2:4] / 2).unbind(-1)
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    return torch.stack([x * cos - y * sin, x * sin + y * cos], -1) + boxes[:, None, :2]


def random_quads(count, seed):
    """Convex quadrilaterals: four points on an ellipse, half of them clockwise."""
    g = torch.Generator().manual_seed(seed)
    angle = (torch.rand(count, 4, generator=g, dtype=torch.float64) + torch.arange(4)) * math.pi / 2
    size = torch.rand(count, 1, 2, generator=g, dtype=torch.float64) * 3 + 0.2
    quads = torch.stack([angle.cos(), angle.sin()], -1) * size + torch.rand(count, 1, 2, generator=g).double() * 4
    quads[::2] = quads[::2].flip(1)
    return quads


def shapely_intersection(a, b):
    return shapely.area(shapely.intersection(shapely.polygons(a.numpy()), shapely.polygons(b.numpy())))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_rotated_boxes_agree_with_shapely(dtype, tolerance):
    a, b = random_boxes(4000, 0, dtype), random_boxes(4000, 1, dtype)
    expected = shapely_intersection(corners(a.double()), corners(b.double()))
    assert 0.3 < (expected > 0).mean() < 0.95
    assert np.abs(rotated_intersection(a, b).numpy() - expected).max() < tolerance


def test_quadrilaterals_agree_with_shapely():
    a, b = random_quads(4000, 2), random_quads(4000, 3)
    expected = shapely_intersection(a, b)
    assert 0.3 < (expected > 0).mean() < 0.95
    assert np.abs(quadrilateral_intersection(a, b).numpy() - expected).max() < 1e-11
    np.testing.assert_allclose(quadrilateral_area(a).numpy(), shapely.area(shapely.polygons(a.numpy())))


def test_both_functions_agree_on_rectangles():
    a, b = random_boxes(500, 4), random_boxes(300, 5)
    got = rotated_intersection(a[:, None], b)
    assert got.shape == (500, 300)
    assert (got - quadrilateral_intersection(corners(a)[:, None], corners(b))).abs().max() < 1e-11


@pytest.mark.parametrize("angle", [0.0, math.pi / 2, 0.3])
def test_coincident_and_shared_edges(angle):
    box = torch.tensor([[3.0, -2, 4, 2, angle]], dtype=torch.float64)
    along = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    for shift, expected in ((0, 8), (1, 6), (4, 0), (4.5, 0)):
        other = box.clone()
        other[:, :2] += shift * along
        assert rotated_intersection(box, other).item() == pytest.approx(expected, abs=1e-12)
        assert quadrilateral_intersection(corners(box), corners(other)).item() == pytest.approx(expected, abs=1e-12)


def test_gradient():
    a, b = random_boxes(20, 6), random_boxes(20, 7)
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotated_intersection(x, b), (a,), eps=1e-7, atol=1e-4)


def test_matrix_is_computed_in_parts_where_boxes_are_near(monkeypatch):
    monkeypatch.setattr(box_overlap, "PAIRS_AT_ONCE", 7)
    a, b = random_boxes(40, 8), random_boxes(30, 9)
    a[:10, :2] += 50
    near = circles_meet(a[:, :2], a[:, 2:4].norm(dim=-1) / 2, b[:, :2], b[:, 2:4].norm(dim=-1) / 2)
    sizes = []

    def overlap(p, q):
        sizes.append(len(p))
        return rotated_intersection(p, q)

    got = overlap_matrix(a, b, near, overlap)
    assert not near[:10].any()
    assert max(sizes) == 7
    assert sum(sizes) == near.sum() < 1200
    assert (got - rotated_intersection(a[:, None], b)).abs().max() < 1e-12
    assert overlap_matrix(a[:0], b, near[:0], overlap).shape == (0, 30)


def test_suppression_in_blocks_is_greedy(monkeypatch):
    monkeypatch.setattr(box_overlap, "NMS_BLOCK", 16)
    g = torch.Generator().manual_seed(10)
    scores = (torch.rand(200, generator=g) * 20).round()  # many are equal
    boxes = torch.zeros(200, 5)
    table = torch.rand(200, 200, generator=g) < 0.05
    order = sorted(range(200), key=lambda i: (-float(scores[i]), i))
    expected = []
    for i in order:
        if not any(table[j, i] for j in expected):
            expected.append(i)
    assert 20 < len(expected) < 180
    assert greedy_nms(boxes, scores, lambda i, j: table[i][:, j]).tolist() == expected
    assert greedy_nms(boxes, scores, lambda i, j: table[i][:, j], 5).tolist() == expected[:5]
    assert greedy_nms(boxes[:0], scores[:0], lambda i, j: table[i][:, j]).tolist() == []
