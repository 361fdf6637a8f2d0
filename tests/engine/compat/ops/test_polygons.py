"""Overlap of rotated boxes against polygon clipping (Sutherland and Hodgman), and known figures."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv")
from visionattn.engine.compat.ops.polygons import (
    box_iou_quadri,
    box_iou_rotated,
    nms_quadri,
    nms_rotated,
)


def corners(box):
    x, y, width, height, angle = (float(v) for v in box)
    c, s = math.cos(angle), math.sin(angle)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    halves = [(i * width / 2, j * height / 2) for i, j in signs]
    return [(x + c * u - s * v, y + s * u + c * v) for u, v in halves]


def area(polygon):
    return sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True)) / 2


def clip(subject, window):
    """The part of a polygon inside a counter-clockwise convex window."""
    for a, b in zip(window, window[1:] + window[:1], strict=True):

        def side(p, a=a, b=b):
            return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])

        output = []
        for p, q in zip(subject, subject[1:] + subject[:1], strict=True):
            if side(p) >= 0:
                output.append(p)
            if (side(p) < 0) != (side(q) < 0):
                t = side(p) / (side(p) - side(q))
                output.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        subject = output
        if not subject:
            return []
    return subject


def overlap(a, b, mode=0):
    a, b = (p if area(p) > 0 else p[::-1] for p in (a, b))
    common = clip(a, b)
    intersection = area(common) if common else 0.0
    return intersection / (area(a) + area(b) - intersection if mode == 0 else area(a))


def random_rotated(number, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(number, 5, generator=generator)
    return values * torch.tensor([20.0, 20, 15, 15, 12]) + torch.tensor([0.0, 0, 1, 1, -6])


@pytest.mark.parametrize("mode", [0, 1])
def test_box_iou_rotated(mode):
    a, b = random_rotated(12, 1), random_rotated(12, 2)
    expected = np.array([[overlap(corners(p), corners(q), mode) for q in b[:9]] for p in a])
    ious = torch.full((12 * 9,), math.nan)
    box_iou_rotated(a, b[:9], ious, mode_flag=mode, aligned=False)
    np.testing.assert_allclose(ious.view(12, 9), expected, atol=1e-6)
    assert 0 < (expected > 0.1).sum() < expected.size
    rows = torch.full((12,), math.nan)
    box_iou_rotated(a, b, rows, mode_flag=mode, aligned=True)
    np.testing.assert_allclose(
        rows, [overlap(corners(p), corners(q), mode) for p, q in zip(a, b, strict=True)], atol=1e-6
    )


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((5, 5, 4, 2, 0.3), 1),  # itself
        ((5, 5, 4, 2, 0.3 + math.pi), 1),  # half a turn
        ((5, 5, 2, 4, 0.3 - math.pi / 2), 1),  # a quarter with sides exchanged
        ((5, 5, 2, 1, 0.3), 0.25),  # nested
        ((50, 5, 4, 2, 0.3), 0),  # apart
        ((5 + 4 * math.cos(0.3), 5 + 4 * math.sin(0.3), 4, 2, 0.3), 0),  # sharing a side
        ((5 + 2 * math.cos(0.3), 5 + 2 * math.sin(0.3), 4, 2, 0.3), 1 / 3),  # slid half its length
        ((5, 5, 0, 2, 0.3), 0),  # without area
    ],
)
def test_degenerate_pairs(other, expected):
    box = torch.tensor([[5, 5, 4, 2, 0.3]])
    ious = torch.full((1,), math.nan)
    box_iou_rotated(box, torch.tensor([other]), ious, mode_flag=0, aligned=True)
    assert ious.item() == pytest.approx(expected, abs=1e-5)


def test_angle_is_clockwise_with_y_down():
    """A thin bar turned by 45° covers the corner (+, +) of a square, not (+, -)."""
    bar = torch.tensor([[0.0, 0, 10, 0.2, math.pi / 4]])
    squares = torch.tensor([[3.0, 3, 1, 1, 0], [3, -3, 1, 1, 0]])
    ious = torch.full((2,), math.nan)
    box_iou_rotated(bar, squares, ious, mode_flag=0, aligned=False)
    assert ious[0] > 0.01
    assert ious[1].abs() < 1e-12


def test_box_iou_quadri():
    """Convex quadrilaterals that are no rectangles, some with the ring the other way round."""
    quads = torch.tensor([corners(b) for b in random_rotated(10, 4)])
    quads[:, 0] = quads[:, 0] * 0.7 + quads.mean(1) * 0.3
    quads[::2] = quads[::2].flip(1)
    flat = quads.reshape(10, 8)
    ious = torch.full((100,), math.nan)
    box_iou_quadri(flat, flat, ious, mode_flag=0, aligned=False)
    polygons = [[tuple(p) for p in q] for q in quads.tolist()]
    expected = [[overlap(p, q) for q in polygons] for p in polygons]
    np.testing.assert_allclose(ious.view(10, 10), expected, atol=1e-5)


def slow_nms(polygons, scores, threshold, labels):
    keep = []
    for i in sorted(range(len(scores)), key=lambda i: -float(scores[i])):
        rivals = [k for k in keep if labels[k] == labels[i]]
        if not any(overlap(polygons[i], polygons[k]) > threshold for k in rivals):
            keep.append(i)
    return keep


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("kind", ["rotated", "quadri"])
def test_nms(kind, multi_label):
    boxes = random_rotated(40, 5)
    scores = torch.rand(40, generator=torch.Generator().manual_seed(6))
    labels = torch.arange(40) % 3 if multi_label else torch.zeros(40)
    polygons = [corners(b) for b in boxes]
    dets = boxes if kind == "rotated" else torch.tensor(polygons).view(40, 8)
    if multi_label:
        dets = torch.cat((dets, labels[:, None].to(dets)), 1)
    order = scores.argsort(descending=True)
    if kind == "rotated":
        keep = nms_rotated(dets, scores, order, dets[order], labels, 0.2, multi_label)
    else:
        keep = nms_quadri(dets, scores, order, dets[order], 0.2, multi_label)
    assert keep.tolist() == slow_nms(polygons, scores, 0.2, labels.tolist())
    assert 3 < len(keep) < 40


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_boxes_that_are_not_finite_are_dropped(value):
    boxes = torch.tensor([[0.0, 0, 4, 4, 0.1], [0.2, 0, 4, 4, 0.1], [30, 30, 4, 4, 0], [0, 0, 4, 4, 0.2]])
    boxes[1, 2], scores = value, torch.tensor([0.5, 0.9, 0.4, 0.3])
    none = torch.empty(0)
    assert nms_rotated(boxes, scores, none, none, none, 0.5, False).tolist() == [0, 2]
    quads = torch.tensor([[0.0, 0, 4, 0, 4, 4, 0, 4]] * 3)
    quads[0, 5] = value
    assert nms_quadri(quads, torch.tensor([0.9, 0.8, 0.7]), none, none, 0.5, False).tolist() == [1]
    for aligned in (False, True):
        overlaps = torch.empty(4) if aligned else torch.empty(4, 4)
        box_iou_rotated(boxes, boxes, overlaps, 0, aligned)
        assert overlaps.isfinite().all()
        assert (overlaps[1] == 0).all()
