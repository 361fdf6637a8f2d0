"""Losses of the centre head against their definitions."""

import math

import pytest
import torch

from visionattn.heads.lidar.losses import center_losses, decode_cells, diou_paired, focal_loss
from visionattn.heads.lidar.rotated_boxes import iou_3d
from visionattn.heads.lidar.targets import BEVGrid, center_targets

GRID = BEVGrid.of([-8.0, -4.0, -2.0, 8.0, 4.0, 2.0], [0.2, 0.2, 0.5], 2)
SIZE = (20, 40)


def truth(velocity=None):
    boxes = torch.tensor([[1.0, 2.03, 0.5, 4, 2, 1.5, 0.7], [-5, -3, 0, 1, 0.8, 1.8, -2]])
    return center_targets(
        [boxes, boxes[:0]], [torch.tensor([0, 1]), torch.zeros(0)], 2, SIZE, GRID, velocity, velocity is not None
    )


def random_outputs(seed=0, vel=False, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    channels = {"hm": 2, "center": 2, "center_z": 1, "dim": 3, "rot": 2, "iou": 1} | ({"vel": 2} if vel else {})
    outputs = {n: torch.randn(2, c, *SIZE, generator=g).to(dtype).requires_grad_() for n, c in channels.items()}
    return outputs


def test_focal_loss_is_that_of_cornernet():
    logits = torch.tensor([[[[0.3, -1.0, 2.0, -9.5]]]], dtype=torch.float32)
    target = torch.tensor([[[[1.0, 0.5, 0.0, 0.9]]]])
    want = 0.0
    for x, t in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = min(max(1 / (1 + math.exp(-x)), 1e-4), 1 - 1e-4)
        want -= (1 - p) ** 2 * math.log(p) if t == 1 else (1 - t) ** 4 * p**2 * math.log(1 - p)
    assert float(focal_loss(logits, target)) == pytest.approx(want, rel=1e-5)
    two = torch.cat([target, target]), torch.cat([logits, logits])
    assert float(focal_loss(two[1], two[0])) == pytest.approx(want, rel=1e-5)
    assert float(focal_loss(logits[..., 1:], target[..., 1:])) == pytest.approx(want - hit(0.3), rel=1e-5)


def hit(x):
    p = 1 / (1 + math.exp(-x))
    return -((1 - p) ** 2) * math.log(p)


def test_decoding_inverts_the_targets():
    targets = truth()
    boxes = decode_cells(targets.regression, targets.index, SIZE[1], GRID)[targets.mask]
    assert torch.allclose(boxes, targets.boxes[targets.mask], atol=1e-5)
    wild = decode_cells(torch.full((8,), 500.0), torch.tensor(3), SIZE[1], GRID)
    assert torch.isfinite(wild).all()


def test_distance_iou():
    a = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0.3]]).expand(4, 7)
    b = torch.tensor([[0.0, 0, 0, 2, 2, 2, 1], [1, 0, 0, 2, 2, 2, 0], [9, 0, 0, 2, 2, 2, 0], [0, 0, 0, 4, 2, 2, 0]])
    want = [1, 1 / 3 - 1 / (9 + 4 + 4), -81 / (121 + 8), 0.5]
    assert diou_paired(a, b).tolist() == pytest.approx(want, abs=1e-6)


def test_losses_at_the_centres():
    targets, outputs = truth(), random_outputs()
    got = center_losses(outputs, targets, GRID, regression_weight=3.0, iou_weight=0.5, diou_weight=1.5)
    l1, iou_loss, diou = 0.0, 0.0, 0.0
    for k in range(2):
        row, column = divmod(int(targets.index[0, k]), SIZE[1])
        numbers = torch.cat([outputs[n][0, :, row, column] for n in ("center", "center_z", "dim", "rot")])
        l1 += float((numbers - targets.regression[0, k]).abs().sum().detach())
        x, y = (column + numbers[0]) * 0.4 - 8, (row + numbers[1]) * 0.4 - 4
        heading = torch.atan2(numbers[7], numbers[6])
        box = torch.stack([x, y, numbers[2], *numbers[3:6].exp(), heading])[None]
        overlap = float(iou_3d(box, targets.boxes[0, k : k + 1]))
        iou_loss += abs(float(outputs["iou"][0, 0, row, column]) - (2 * overlap - 1))
        diou += 1 - float(diou_paired(box, targets.boxes[0, k : k + 1]))
    assert float(got["loss_bbox"]) == pytest.approx(3 * l1 / 2, rel=1e-5)
    assert float(got["loss_iou"]) == pytest.approx(0.5 * iou_loss / 2, rel=1e-5)
    assert float(got["loss_diou"]) == pytest.approx(1.5 * diou / 2, rel=1e-5)
    assert float(got["loss_heatmap"]) == pytest.approx(float(focal_loss(outputs["hm"], targets.heatmap)), rel=1e-6)
    got["loss_iou"].backward(retain_graph=True)
    assert outputs["dim"].grad is None or outputs["dim"].grad.abs().sum() == 0  # the box it rates is not moved
    sum(got.values()).backward()
    assert all(v.grad is not None and torch.isfinite(v.grad).all() for v in outputs.values())


def test_code_weights_and_unknown_velocity():
    velocity = [torch.tensor([[1.0, 2], [torch.nan, torch.nan]]), torch.zeros(0, 2)]
    targets, outputs = truth(velocity), random_outputs(vel=True)
    weights = [0.0] * 8 + [1.0, 0.0]
    got = center_losses(outputs, targets, GRID, code_weights=weights)["loss_bbox"]
    row, column = divmod(int(targets.index[0, 0]), SIZE[1])
    assert float(got) == pytest.approx(2 * abs(float(outputs["vel"][0, 0, row, column]) - 1) / 2, rel=1e-5)
    got.backward()
    assert torch.isfinite(outputs["vel"].grad).all()
    with pytest.raises(ValueError, match=r"`code_weights` must be 10 numbers, got \[1\.0\]"):
        center_losses(outputs, targets, GRID, code_weights=[1.0])


def test_no_object_anywhere():
    nothing = [torch.zeros(0, 7)] * 2
    targets = center_targets(nothing, [torch.zeros(0, dtype=torch.long)] * 2, 2, SIZE, GRID)
    outputs = random_outputs()
    losses = center_losses(outputs, targets, GRID)
    assert float(losses["loss_heatmap"]) > 0
    assert [float(losses[n]) for n in ("loss_bbox", "loss_iou", "loss_diou")] == [0, 0, 0]
    sum(losses.values()).backward()
    assert all(v.grad is not None and torch.isfinite(v.grad).all() for v in outputs.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_give_float_losses(dtype):
    outputs = random_outputs(dtype=dtype)
    losses = center_losses(outputs, truth(), GRID)
    full = center_losses({k: v.detach().float() for k, v in outputs.items()}, truth(), GRID)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(full[name]), rel=1e-5)
