"""Rotated boxes against an independent polygon library and against definitions written out."""

import math

import numpy as np
import pytest
import torch

from visionattn.heads.lidar import rotated_boxes
from visionattn.heads.lidar.rotated_boxes import (
    bev_corners,
    bev_iou,
    bev_iou_paired,
    box_corners,
    iou_3d,
    iou_3d_paired,
    points_in_boxes,
    rotated_nms,
)
from visionattn.kernels import box_overlap


def random_boxes(count, seed, spread=4.0, centre=0.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 7, generator=g, dtype=torch.float64)
    boxes = torch.empty(count, 7, dtype=torch.float64)
    boxes[:, :3] = (u[:, :3] - 0.5) * spread + centre
    boxes[:, 3:6] = 0.2 + u[:, 3:6] * 4
    boxes[:, 6] = (u[:, 6] - 0.5) * 20
    return boxes.to(dtype)


def clipped_area(a, b):
    """Area common to two convex counter-clockwise polygons, by cutting one at each edge of the other."""
    polygon = [tuple(p) for p in a]
    for i in range(len(b)):
        p, q = b[i], b[(i + 1) % len(b)]

        def side(r, p=p, q=q):
            return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

        cut = []
        for s, t in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            ds, dt = side(s), side(t)
            if ds >= 0:
                cut.append(s)
            if (ds >= 0) != (dt >= 0):
                f = ds / (ds - dt)
                cut.append((s[0] + f * (t[0] - s[0]), s[1] + f * (t[1] - s[1])))
        polygon = cut
        if not polygon:
            return 0.0
    return sum(s[0] * t[1] - s[1] * t[0] for s, t in zip(polygon, polygon[1:] + polygon[:1], strict=True)) / 2


def polygon_iou(a, b):
    ca, cb = bev_corners(a).tolist(), bev_corners(b).tolist()
    common = clipped_area(ca, cb)
    return common / (float(a[3] * a[4]) + float(b[3] * b[4]) - common)


def test_corners_turn_counter_clockwise():
    box = torch.tensor([1.0, 2, 3, 4, 2, 6, math.pi / 2])
    want = torch.tensor([[0.0, 4], [0, 0], [2, 0], [2, 4]])
    assert torch.allclose(bev_corners(box), want, atol=1e-6)
    corners = box_corners(box)
    assert torch.allclose(corners[:4, :2], want, atol=1e-6)
    assert torch.equal(corners[:, 2], torch.tensor([0.0] * 4 + [6.0] * 4))
    assert box_corners(torch.zeros(2, 0, 9)).shape == (2, 0, 8, 3)
    with pytest.raises(ValueError, match=r"`boxes` must have shape .* got \[3, 6\]"):
        bev_corners(torch.zeros(3, 6))


def test_overlap_agrees_with_shapely():
    shapely = pytest.importorskip("shapely")
    a, b = random_boxes(4000, 0), random_boxes(4000, 1)
    pa, pb = shapely.polygons(bev_corners(a).numpy()), shapely.polygons(bev_corners(b).numpy())
    want = shapely.area(shapely.intersection(pa, pb)) / shapely.area(shapely.union(pa, pb))
    assert 0.2 < (want > 0).mean() < 1
    assert np.abs(bev_iou_paired(a, b).numpy() - want).max() < 1e-9
    assert np.abs(bev_iou_paired(a.float(), b.float()).numpy() - want).max() < 1e-5
    assert np.abs(bev_iou(a[:60], b[:50]).diagonal().numpy() - want[:50]).max() < 1e-9


def test_overlap_agrees_with_cutting_polygons():
    a, b = random_boxes(300, 2), random_boxes(300, 3)
    want = torch.tensor([polygon_iou(p, q) for p, q in zip(a, b, strict=True)], dtype=torch.float64)
    assert torch.allclose(bev_iou_paired(a, b), want, atol=1e-10)


@pytest.mark.parametrize("turn", [0.0, 1e-7, 1e-4, 0.3])
@pytest.mark.parametrize("shift", [0.0, 1e-6, 0.01])
def test_edges_that_nearly_coincide_far_from_the_origin(turn, shift):
    a = random_boxes(500, 4, centre=70.0, dtype=torch.float32)
    for heading in (None, 0.0, math.pi / 2, math.pi):
        if heading is not None:
            a[:, 6] = heading
        b = a.clone()
        b[:, 6] += turn
        b[:, 0] += shift
        got = bev_iou_paired(a, b)
        precise = bev_iou_paired(a.double(), b.double())
        assert (got - precise).abs().max() < 2e-5
        if turn == shift == 0:
            assert (got - 1).abs().max() < 1e-6


def test_half_turn_and_quarter_turn_of_a_square_are_the_same_box():
    a = random_boxes(200, 5, dtype=torch.float32)
    b = a.clone()
    b[:, 6] += math.pi
    assert (bev_iou_paired(a, b) - 1).abs().max() < 1e-5
    a[:, 4] = a[:, 3]
    b = a.clone()
    b[:, 6] -= math.pi / 2
    assert (bev_iou_paired(a, b) - 1).abs().max() < 1e-5


def test_known_overlaps():
    a = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0]])
    others = torch.tensor(
        [[0, 0, 0, 2, 1, 1, 0.3], [2, 0, 0, 4, 2, 2, 0], [0, 0, 1, 4, 2, 2, math.pi], [9, 9, 0, 4, 2, 2, 0],
         [4, 0, 0, 4, 2, 2, 0], [0, 0, 0, 0, 2, 2, 0], [0, 0, 0, -1, 2, 2, 0], [0, 0, 0, 2, 4, 2, math.pi / 2]]
    )  # fmt: skip
    assert torch.allclose(bev_iou(a, others)[0], torch.tensor([0.25, 1 / 3, 1, 0, 0, 0, 0, 1]), atol=1e-6)
    assert torch.allclose(iou_3d(a, others)[0], torch.tensor([0.125, 1 / 3, 1 / 3, 0, 0, 0, 0, 1]), atol=1e-6)
    assert iou_3d_paired(a, a.half()).dtype == torch.float32
    nothing = torch.tensor([[0.0, 0, 0, 0, 0, 0, 0], [0, 0, 0, math.nan, 1, 1, 0]])
    assert bev_iou(nothing, nothing).abs().sum() == 0


def test_overlap_of_volumes_is_that_of_two_prisms():
    a, b = random_boxes(400, 6), random_boxes(400, 7)
    low = torch.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    high = torch.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    flat = bev_iou_paired(a, b)
    area = flat / (1 + flat) * (a[:, 3] * a[:, 4] + b[:, 3] * b[:, 4])
    common = area * (high - low).clamp(min=0)
    want = common / (a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - common)
    assert torch.allclose(iou_3d_paired(a, b), want, atol=1e-9)


def test_batched_overlap_is_that_of_each_sample(monkeypatch):
    monkeypatch.setattr(box_overlap, "PAIRS_AT_ONCE", 7)
    a, b = random_boxes(30, 8).view(2, 3, 5, 7), random_boxes(12, 9).view(3, 4, 7)
    got = bev_iou(a, b)
    assert got.shape == (2, 3, 5, 4)
    for i in range(2):
        for j in range(3):
            for n in range(5):
                assert torch.allclose(got[i, j, n], bev_iou_paired(a[i, j, n], b[j]), atol=1e-12)
    assert bev_iou(torch.zeros(0, 7), torch.zeros(3, 7)).shape == (0, 3)


def test_gradient_of_the_overlap():
    a, b = random_boxes(20, 10, spread=2.0), random_boxes(20, 11, spread=2.0)
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: iou_3d_paired(x, b), (a,), eps=1e-7, atol=1e-4)


def greedy(boxes, scores, threshold, labels):
    order = sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))
    overlap = bev_iou(boxes, boxes)
    kept = []
    for i in order:
        limit = threshold if isinstance(threshold, float) else float(threshold[labels[i]])
        if all(labels[i] != labels[j] or overlap[i, j] <= limit for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("count", [0, 1, 5, 60, 400])
def test_suppression_is_greedy(count, monkeypatch):
    monkeypatch.setattr(box_overlap, "NMS_BLOCK", 16)
    g = torch.Generator().manual_seed(count)
    boxes = random_boxes(count, 12, spread=8.0)
    scores = (torch.rand(count, generator=g) * 20).round() / 20  # many are equal
    labels = torch.randint(3, (count,), generator=g)
    one = torch.zeros_like(labels)
    assert rotated_nms(boxes, scores, 0.2).tolist() == greedy(boxes, scores, 0.2, one)
    assert rotated_nms(boxes, scores, 0.2, labels).tolist() == greedy(boxes, scores, 0.2, labels)
    limits = torch.tensor([0.05, 0.3, 0.7])
    want = greedy(boxes, scores, limits, labels)
    assert rotated_nms(boxes, scores, limits, labels).tolist() == want
    assert rotated_nms(boxes, scores, limits, labels, max_boxes=20).tolist() == want[:20]


def test_suppression_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="`boxes` and `scores` must have shapes"):
        rotated_nms(torch.zeros(3, 7), torch.zeros(2), 0.5)
    with pytest.raises(ValueError, match="`labels` must have the shape of `scores`"):
        rotated_nms(torch.zeros(3, 7), torch.zeros(3), 0.5, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="`labels` must be given"):
        rotated_nms(torch.zeros(3, 7), torch.zeros(3), torch.tensor([0.5, 0.2]))


def test_points_in_boxes(monkeypatch):
    monkeypatch.setattr(rotated_boxes, "TESTS_AT_ONCE", 4000)
    boxes = random_boxes(30, 13)
    points = torch.cat([(torch.rand(2000, 3, dtype=torch.float64) - 0.5) * 8, torch.ones(2000, 2).double()], 1)
    inside = points_in_boxes(points, boxes)
    for box, mask in zip(boxes, inside, strict=True):
        angle = box[6]
        matrix = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        local = torch.cat([(points[:, :2] - box[:2]) @ matrix, points[:, 2:3] - box[2]], 1)
        assert torch.equal(mask, (local.abs() <= box[3:6] / 2).all(1))
    assert inside.any()
    face = torch.tensor([[1.0, 0, 0], [1.001, 0, 0], [0, 0.5, 2]])
    assert points_in_boxes(face, torch.tensor([[0.0, 0, 1, 2, 1, 2, 0]])).tolist() == [[True, False, True]]
    assert points_in_boxes(torch.zeros(0, 4), torch.zeros(2, 7)).shape == (2, 0)
    assert points_in_boxes(torch.zeros(5, 4), torch.zeros(0, 7)).shape == (0, 5)
    with pytest.raises(ValueError, match="`points` must have shape"):
        points_in_boxes(torch.zeros(5, 2), torch.zeros(0, 7))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_boxes_that_are_not_finite_are_dropped(value):
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0]] * 3 + [[9.0, 9, 0, 4, 2, 1, 0]])
    boxes[0, 1], scores = value, torch.tensor([0.9, 0.8, 0.7, math.nan])
    assert rotated_boxes.rotated_nms(boxes, scores, 0.5).tolist() == [1]
    overlaps = rotated_boxes.bev_iou(boxes, boxes)
    assert (overlaps[0] == 0).all()
    assert overlaps[1, 2] == 1
    assert rotated_boxes.iou_3d(boxes, boxes).isfinite().all()
