"""Suppression against loops written from the definitions, in numpy scalars."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv")
from visionattn.engine.compat.ops.boxes import bbox_overlaps
from visionattn.engine.compat.ops.nms import nms, nms_match, softnms


def random_boxes(number, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * 40
    size = torch.rand(number, 2, generator=generator) * 30
    return torch.cat((corner, corner + size), 1).to(dtype), torch.rand(number, generator=generator).to(dtype)


def iou(a, b, offset=0):
    a, b = [float(v) for v in a], [float(v) for v in b]
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area_a, area_b = ((t[2] - t[0] + offset) * (t[3] - t[1] + offset) for t in (a, b))
    union = area_a + area_b - width * height
    return width * height / union if union else math.nan


def slow_nms(boxes, scores, threshold, offset):
    keep = []
    for i in sorted(range(len(scores)), key=lambda i: -float(scores[i])):
        if not any(iou(boxes[i], boxes[k], offset) > threshold for k in keep):
            keep.append(i)
    return keep


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0, 1])
def test_nms(dtype, offset):
    boxes, scores = random_boxes(80, 1)
    boxes, scores = boxes.to(dtype), (scores.argsort().argsort() / 128).to(dtype)  # no ties in bfloat16
    keep = nms(boxes, scores, iou_threshold=0.35, offset=offset)
    assert keep.dtype == torch.long
    assert keep.tolist() == slow_nms(boxes, scores, 0.35, offset)
    assert 5 < len(keep) < 75


def test_nms_edge_cases():
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 0).shape == (0,)
    twice = torch.tensor([[1.0, 1, 5, 5], [1, 1, 5, 5]])
    assert nms(twice, torch.tensor([0.1, 0.9]), 0.5, 0).tolist() == [1]
    empty = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3]])  # 0 / 0 suppresses nothing
    assert nms(empty, torch.tensor([0.9, 0.1]), 0.5, 0).tolist() == [0, 1]
    assert nms(empty, torch.tensor([0.9, 0.1]), 0.5, 1).tolist() == [0]


def test_nms_threshold_is_strict():
    """An IoU of exactly the threshold keeps both, in float32 too, where 3 / 5 rounds above 0.6."""
    pair = torch.tensor([[0.0, 0, 5, 1], [0, 0, 3, 1]])
    assert nms(pair, torch.tensor([0.9, 0.8]), 0.6, 0).tolist() == [0, 1]
    assert nms(pair, torch.tensor([0.9, 0.8]), 0.59, 0).tolist() == [0]


@pytest.mark.parametrize("options", [{"type": "nms"}, {"type": "nms", "split_thr": 20}, {"type": "nms", "offset": 1}])
def test_batched_nms_is_nms_of_each_class(options):
    """mmcv moves the classes apart, or with many boxes takes them in turn; either way they never meet."""
    from visionattn.engine.compat import ops

    ops.install()
    from mmcv.ops import batched_nms

    boxes, scores = random_boxes(90, 7)
    labels = torch.arange(90) % 4
    dets, keep = batched_nms(boxes, scores, labels, options | {"iou_threshold": 0.4})
    expected = []
    for label in range(4):
        index = (labels == label).nonzero().flatten()
        expected += index[slow_nms(boxes[index], scores[index], 0.4, options.get("offset", 0))].tolist()
    expected.sort(key=lambda i: -float(scores[i]))
    assert keep.tolist() == expected
    assert 20 < len(keep) < 85
    torch.testing.assert_close(dets, torch.cat((boxes, scores[:, None]), 1)[keep])


def slow_softnms(boxes, scores, threshold, sigma, min_score, method, offset):
    """The published loop on a list of (box, score, index), the removed one replaced by the last."""
    items = [[tuple(b.tolist()), float(s), i] for i, (b, s) in enumerate(zip(boxes, scores, strict=True))]
    i = 0
    while i < len(items):
        best = max(range(i, len(items)), key=lambda k: (items[k][1], -k))
        items[i], items[best] = items[best], items[i]
        k = i + 1
        while k < len(items):
            overlap = iou(items[i][0], items[k][0], offset)
            if method == 2:
                items[k][1] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                items[k][1] *= 0 if method == 0 else 1 - overlap
            if items[k][1] < min_score:
                items[k] = items[-1]
                items.pop()
            else:
                k += 1
        i += 1
    return items


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", [0, 1, 2])
def test_softnms(method, offset, ties):
    boxes, scores = random_boxes(60, 2, torch.float64)
    if ties:
        scores = (scores * 4).round() / 4
    dets = torch.full((60, 5), math.nan, dtype=torch.float64)
    keep = softnms(boxes, scores, dets, iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method, offset=offset)
    expected = slow_softnms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert keep.tolist() == [item[2] for item in expected]
    assert 2 < len(keep) < 60
    torch.testing.assert_close(dets[: len(keep), :4], boxes[keep])
    torch.testing.assert_close(dets[: len(keep), 4].tolist(), [item[1] for item in expected])


def test_softnms_edge_cases():
    assert softnms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 5), 0.3, 0.5, 0.1, 1, 0).shape == (0,)
    dets = torch.zeros(1, 5)  # the first selection stays even below the minimum
    one = torch.tensor([[0.0, 0, 4, 4]])
    assert softnms(one, torch.tensor([0.01]), dets, 0.3, 0.5, 0.1, 1, 0).tolist() == [0]
    torch.testing.assert_close(dets, torch.tensor([[0, 0, 4, 4, 0.01]]))


def test_softnms_leaves_inputs_alone():
    boxes, scores = random_boxes(20, 3)
    before = boxes.clone(), scores.clone()
    softnms(boxes, scores, torch.empty(20, 5), 0.3, 0.5, 0.001, 2, 0)
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


def test_nms_match():
    boxes, scores = random_boxes(50, 4)
    groups = nms_match(torch.cat((boxes, scores[:, None]), 1), iou_threshold=0.3)
    order = scores.argsort(descending=True).tolist()
    expected = []
    while order:
        top = order[0]
        near = [k for k in order[1:] if iou(boxes[top], boxes[k]) >= 0.3]
        expected.append([top, *near])
        order = [k for k in order[1:] if k not in near]
    assert groups == expected
    assert max(map(len, groups)) > 1
    exact = torch.tensor([[0.0, 0, 4, 1, 0.9], [0, 0, 2, 1, 0.8]])
    assert nms_match(exact, 0.5) == [[0, 1]]  # equal to the threshold joins


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bbox_overlaps(mode, offset, dtype):
    a, b = random_boxes(9, 5)[0].to(dtype), random_boxes(9, 6)[0].to(dtype)

    def overlap(p, q):
        value = iou(p, q, offset)
        if mode == 0:
            return value
        areas = [float((t[2] - t[0] + offset) * (t[3] - t[1] + offset)) for t in (p.double(), q.double())]
        return value * sum(areas) / (1 + value) / areas[0]

    matrix = torch.full((9, 7), math.nan, dtype=dtype)
    bbox_overlaps(a, b[:7], matrix, mode=mode, aligned=False, offset=offset)
    expected = np.array([[overlap(p, q) for q in b[:7]] for p in a])
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    np.testing.assert_allclose(matrix.numpy(), expected, atol=tolerance)
    rows = torch.full((9,), math.nan, dtype=dtype)
    bbox_overlaps(a, b, rows, mode=mode, aligned=True, offset=offset)
    np.testing.assert_allclose(rows.numpy(), [overlap(p, q) for p, q in zip(a, b, strict=True)], atol=tolerance)


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", BAD)
def test_boxes_that_are_not_finite_are_dropped(value):
    """The others are suppressed as without them."""
    from visionattn.engine.compat import ops

    ops.install()
    from mmcv.ops import batched_nms

    boxes, scores = random_boxes(60, 8)
    labels = torch.arange(60) % 3
    bad = torch.tensor([4, 20, 41])
    boxes[bad, torch.tensor([0, 2, 3])] = value
    scores[7] = math.nan
    good = torch.tensor([i for i in range(60) if i not in (4, 7, 20, 41)])
    given = (boxes, scores)
    kept = (boxes[good], scores[good])
    assert torch.equal(nms(*given, 0.4, 0), good[nms(*kept, 0.4, 0)])
    options = {"type": "nms", "iou_threshold": 0.4}
    dets, keep = batched_nms(*given, labels, options)
    expected, among = batched_nms(*kept, labels[good], options)
    assert torch.equal(dets, expected)
    assert torch.equal(keep, good[among])
    rows, some = torch.zeros(60, 5), torch.zeros(len(good), 5)
    assert torch.equal(softnms(*given, rows, 0.3, 0.5, 1e-3, 2, 0), good[softnms(*kept, some, 0.3, 0.5, 1e-3, 2, 0)])
    groups = nms_match(torch.cat((boxes, scores[:, None]), 1), 0.4)
    assert sorted(index for group in groups for index in group) == good.tolist()
    ious = torch.empty(60, 60)
    bbox_overlaps(boxes, boxes, ious, 0, False, 0)
    assert (ious[bad] == 0).all()
    assert (ious[:, bad] == 0).all()
    assert (ious[good, good] == 1).all()
