"""The centre head: names, decoding, suppression, learning."""

import math

import pytest
import torch

from visionattn.heads.lidar.center_head import CenterHead
from visionattn.heads.lidar.decoding import Decoding
from visionattn.heads.lidar.rotated_boxes import iou_3d
from visionattn.heads.lidar.targets import BEVGrid, center_targets

GRID = BEVGrid.of([-8.0, -4.0, -2.0, 8.0, 4.0, 2.0], [0.2, 0.2, 0.5], 2)
SIZE = (20, 40)


def perfect_outputs(boxes, labels, classes=3, iou=1.0, score=0.9, groups=None, velocity=None):
    """Maps that say exactly what is in `boxes`, and nothing elsewhere."""
    groups = groups or [list(range(classes))]
    outputs = []
    for group in groups:
        mine = [k for k in range(len(boxes)) if int(labels[k]) in group]
        inner = torch.tensor([group.index(int(labels[k])) for k in mine])
        speed = None if velocity is None else [velocity[mine]]
        t = center_targets([boxes[mine]], [inner], len(group), SIZE, GRID, speed, velocity is not None)
        out = {"hm": torch.full((1, len(group), *SIZE), -20.0), "iou": torch.full((1, 1, *SIZE), iou)}
        for name, part in (("center", slice(2)), ("center_z", slice(2, 3)), ("dim", slice(3, 6)), ("rot", slice(6, 8))):
            out[name] = torch.zeros(1, part.stop - (part.start or 0), *SIZE)
            out[name].flatten(2)[0][:, t.index[0, : len(mine)]] = t.regression[0, : len(mine), part].T
        if velocity is not None:
            out["vel"] = torch.zeros(1, 2, *SIZE)
            out["vel"].flatten(2)[0][:, t.index[0, : len(mine)]] = t.regression[0, : len(mine), 8:].T
        for k, label in enumerate(inner.tolist()):
            out["hm"].flatten(2)[0, label, t.index[0, k]] = math.log(score / (1 - score)) - k * 0.01
        outputs.append(out)
    return outputs


BOXES = torch.tensor(
    [
        [1.0, 2, 0.5, 4, 2, 1.5, 0.7],
        [-5, -3, 0, 1, 0.8, 1.8, -2],
        [-5, 2, 0, 0.8, 0.6, 1.7, 3.1],
        [6, -2, 0, 4, 2, 1, 2],
    ]
)
LABELS = torch.tensor([0, 1, 2, 0])


def test_names_are_openpcdets():
    head = CenterHead(12, 3, GRID, 8, velocity=True)
    names = set(head.state_dict())
    want = {"shared_conv.0.weight"} | {f"shared_conv.1.{n}" for n in ("weight", "bias", "running_mean", "running_var")}
    for branch in ("hm", "center", "center_z", "dim", "rot", "vel", "iou"):
        inner = f"heads_list.0.{branch}"
        want |= {f"{inner}.0.0.weight", f"{inner}.1.weight", f"{inner}.1.bias"}
        want |= {f"{inner}.0.1.{n}" for n in ("weight", "bias", "running_mean", "running_var")}
    assert {n for n in names if "num_batches" not in n} == want
    assert torch.allclose(head.heads_list[0]["hm"][-1].bias, torch.tensor(-2.19))
    assert head.heads_list[0]["dim"][-1].bias.abs().sum() == 0


def test_maps_have_the_size_of_the_input_and_branches_their_channels():
    head = CenterHead(6, 3, GRID, 8, velocity=True, class_groups=[[0], [1, 2]]).eval()
    outputs = head(torch.randn(2, 6, 10, 14))
    assert [out["hm"].shape for out in outputs] == [(2, 1, 10, 14), (2, 2, 10, 14)]
    shapes = {n: out.shape[1] for n, out in outputs[1].items()}
    assert shapes == {"hm": 2, "center": 2, "center_z": 1, "dim": 3, "rot": 2, "vel": 2, "iou": 1}


@pytest.mark.parametrize("groups", [None, [[2, 0], [1]]])
def test_what_the_targets_say_is_found_again(groups):
    velocity = torch.arange(8.0).view(4, 2)
    head = CenterHead(4, 3, GRID, 8, velocity=True, class_groups=groups)
    (found,) = head.predict(perfect_outputs(BOXES, LABELS, groups=groups, velocity=velocity))
    assert sorted(found.labels.tolist()) == [0, 0, 1, 2]
    overlap = iou_3d(found.boxes, BOXES)
    best = overlap.argmax(1)
    assert (overlap.amax(1) > 0.999).all()
    assert torch.equal(LABELS[best], found.labels)
    assert torch.allclose(found.velocity, velocity[best], atol=1e-5)
    assert torch.allclose(torch.cos(found.boxes[:, 6] - BOXES[best, 6]), torch.ones(4), atol=1e-5)
    assert (found.scores.diff() <= 0).all()


def test_scores_are_rectified_for_each_class():
    head = CenterHead(4, 3, GRID, 8, decoding=Decoding(rectify=(0.68, 0.0, 1.0), nms_iou=(0.75, 0.6, 0.55)))
    (found,) = head.predict(perfect_outputs(BOXES, LABELS, iou=0.2, score=0.8))
    for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True):
        a = (0.68, 0.0, 1.0)[label]
        assert score == pytest.approx(0.8 ** (1 - a) * 0.6**a, rel=0.01)
    (found,) = head.predict(perfect_outputs(BOXES, LABELS, iou=-3.0, score=0.8))
    assert found.scores.min() == 0  # a rating below -1 is one of -1


def test_thresholds_and_range():
    outputs = perfect_outputs(BOXES, LABELS, score=0.3)
    assert len(CenterHead(4, 3, GRID, 8, decoding=Decoding(score_threshold=0.31)).predict(outputs)[0].boxes) == 0
    near = Decoding(post_range=[-6, -4, -1, 2, 4, 1])
    found = CenterHead(4, 3, GRID, 8, decoding=near).predict(outputs)[0]
    assert found.boxes[:, 0].max() < 2
    assert len(found.boxes) == 3
    assert len(CenterHead(4, 3, GRID, 8, decoding=Decoding(max_candidates=2)).predict(outputs)[0].boxes) == 2
    assert len(CenterHead(4, 3, GRID, 8, decoding=Decoding(max_boxes=1)).predict(outputs)[0].boxes) == 3  # of a class


def test_boxes_of_one_class_suppress_each_other():
    boxes = torch.stack([BOXES[0], BOXES[0] + torch.tensor([0.5, 0, 0, 0, 0, 0, 0])])
    for labels, count in (([0, 0], 1), ([0, 1], 2)):
        outputs = perfect_outputs(boxes, torch.tensor(labels))
        head = CenterHead(4, 3, GRID, 8, decoding=Decoding(nms_iou=(0.2, 0.2, 0.2)))
        assert len(head.predict(outputs)[0].boxes) == count


def test_losses_of_groups_add_up_and_truth_is_not_written():
    torch.manual_seed(0)
    head = CenterHead(4, 3, GRID, 8, class_groups=[[1], [2, 0]])
    outputs = head(torch.randn(2, 4, *SIZE))
    boxes, labels = [BOXES, BOXES[:0]], [LABELS, LABELS[:0]]
    before = BOXES.clone(), LABELS.clone()
    losses = head.loss(outputs, boxes, labels)
    assert torch.equal(BOXES, before[0])
    assert torch.equal(LABELS, before[1])
    assert set(losses) == {"loss_heatmap", "loss_bbox", "loss_iou", "loss_diou"}
    first = CenterHead(4, 1, GRID, 8).loss(outputs[:1], [BOXES[1:2], BOXES[:0]], [LABELS[:1], LABELS[:0]])
    second = CenterHead(4, 2, GRID, 8).loss(
        outputs[1:], [BOXES[[0, 2, 3]], BOXES[:0]], [torch.tensor([1, 0, 1]), LABELS[:0]]
    )
    for name, value in losses.items():
        assert float(value.detach()) == pytest.approx(float((first[name] + second[name]).detach()), rel=1e-5)


def test_empty_maps_and_frames_give_nothing_and_finite_losses():
    head = CenterHead(4, 3, GRID, 8)
    x = torch.zeros(2, 4, *SIZE)
    losses = head.loss(head(x), [BOXES[:0]] * 2, [LABELS[:0]] * 2)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    strict = CenterHead(4, 3, GRID, 8, decoding=Decoding(score_threshold=0.9)).eval()
    found = strict.predict(strict(x))
    assert [f.boxes.shape for f in found] == [(0, 7), (0, 7)]


def test_it_learns_one_map():
    torch.manual_seed(0)
    head = CenterHead(6, 3, GRID, 16, decoding=Decoding(rectify=0.5, nms_iou=0.2))
    x = torch.randn(1, 6, *SIZE)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        sum(head.loss(head(x), [BOXES], [LABELS]).values()).backward()
        optimizer.step()
    (found,) = head.predict(head(x))
    overlap = iou_3d(BOXES, found.boxes[found.scores > 0.5])
    assert overlap.amax(1).min() > 0.7
    assert len(overlap[0]) == 4


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`class_groups` must contain each"):
        CenterHead(4, 3, GRID, class_groups=[[0], [1]])
    with pytest.raises(ValueError, match="`nms_iou` must have one value for each of 3 classes, got 2"):
        CenterHead(4, 3, GRID, decoding=Decoding(nms_iou=(0.5, 0.5)))
    with pytest.raises(ValueError, match="without the IoU branch"):
        CenterHead(4, 3, GRID, iou=False, decoding=Decoding(rectify=0.5))
    with pytest.raises(ValueError, match=r"`rectify` must be in \[0, 1\], got 1\.5"):
        Decoding(rectify=1.5)
    with pytest.raises(ValueError, match="must be 6 numbers"):
        Decoding(post_range=[0, 1])
