"""Targets of the centre head against the definition, object by object."""

import math

import pytest
import torch

from visionattn.heads.lidar.targets import BEVGrid, center_targets, gaussian_radius

GRID = BEVGrid.of([-8.0, -4.0, -2.0, 8.0, 4.0, 2.0], [0.2, 0.25, 0.5], 2)
ROWS, COLUMNS = 16, 40


def random_objects(count, seed, classes=3):
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 7, generator=g)
    boxes = torch.cat([(u[:, :2] - 0.5) * torch.tensor([17.0, 9.0]), u[:, 2:3], u[:, 3:6] * 5 + 0.3, u[:, 6:] * 6], 1)
    return boxes, torch.randint(classes, (count,), generator=g)


def radius_of(dx, dy, o=0.1):
    def root(a, b, c):
        return (b + math.sqrt(b * b - 4 * a * c)) / 2

    h, w = dx, dy
    radii = (
        root(1, h + w, h * w * (1 - o) / (1 + o)),
        root(4, 2 * (h + w), (1 - o) * h * w),
        root(4 * o, -2 * o * (h + w), (o - 1) * h * w),
    )
    return max(2, int(min(radii)))


def test_grid_is_inverted():
    xy = torch.tensor([[-8.0, -4.0], [7.9, 3.9]])
    cells = GRID.to_cells(xy)
    assert torch.allclose(cells, torch.tensor([[0.0, 0.0], [39.75, 15.8]]), atol=1e-5)
    assert torch.allclose(GRID.to_meters(cells), xy, atol=1e-5)


def test_radius():
    dx, dy = torch.tensor([1.0, 7.3, 19.5, 30.0]), torch.tensor([1.0, 3.1, 4.7, 30.0])
    got = gaussian_radius(dx, dy).int().clamp(min=2).tolist()
    assert got == [radius_of(a, b) for a, b in zip(dx.tolist(), dy.tolist(), strict=True)]


def test_targets_object_by_object():
    boxes, labels = random_objects(25, 0)
    boxes[3, 3] = 0
    boxes[4, 4] = -1
    before = boxes.clone(), labels.clone()
    got = center_targets([boxes], [labels], 3, (ROWS, COLUMNS), GRID)
    assert torch.equal(boxes, before[0])
    assert torch.equal(labels, before[1])
    heat = torch.zeros(3, ROWS, COLUMNS, dtype=torch.float64)
    for k, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        if k in (3, 4):
            assert not got.mask[0, k]
            assert got.regression[0, k].abs().sum() == 0
            continue
        x = min(max((box[0] + 8) / 0.2 / 2, 0), COLUMNS - 0.5)
        y = min(max((box[1] + 4) / 0.25 / 2, 0), ROWS - 0.5)
        column, row = int(x), int(y)
        r = radius_of(box[3] / 0.4, box[4] / 0.5)
        sigma = (2 * r + 1) / 6
        for i in range(max(0, row - r), min(ROWS, row + r + 1)):
            for j in range(max(0, column - r), min(COLUMNS, column + r + 1)):
                value = math.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * sigma**2))
                heat[label, i, j] = max(heat[label, i, j], value)
        assert got.mask[0, k]
        assert got.index[0, k] == row * COLUMNS + column
        want = [x - column, y - row, box[2], *(math.log(v) for v in box[3:6]), math.cos(box[6]), math.sin(box[6])]
        assert got.regression[0, k].tolist() == pytest.approx(want, abs=1e-5)
        assert torch.equal(got.boxes[0, k], boxes[k])
        assert got.heatmap[0, label, row, column] == 1
    assert torch.allclose(got.heatmap[0], heat.float(), atol=1e-6)
    assert got.mask.sum() == 23


def test_samples_are_apart_and_may_be_empty():
    samples = [random_objects(n, n) for n in (0, 7, 2)]
    boxes, labels = [s[0] for s in samples], [s[1] for s in samples]
    got = center_targets(boxes, labels, 3, (ROWS, COLUMNS), GRID, max_objects=5)
    assert got.mask.sum(1).tolist() == [0, 5, 2]
    assert got.heatmap[0].abs().sum() == 0
    for index in range(3):
        alone = center_targets([boxes[index]], [labels[index]], 3, (ROWS, COLUMNS), GRID, max_objects=5)
        assert torch.equal(alone.heatmap[0], got.heatmap[index])
        assert torch.equal(alone.regression[0], got.regression[index])


def test_velocity_and_foreign_labels():
    boxes, labels = random_objects(4, 1)
    labels[0], labels[1] = -1, 3
    velocity = torch.tensor([[1.0, 2]] * 3 + [[torch.nan, torch.nan]])
    got = center_targets([boxes], [labels], 3, (ROWS, COLUMNS), GRID, [velocity], with_velocity=True)
    assert got.mask[0, :4].tolist() == [False, False, True, True]
    assert got.regression[0, 2, 8:].tolist() == [1, 2]
    assert got.regression[0, 3, 8:].isnan().all()
    unknown = center_targets([boxes], [labels], 3, (ROWS, COLUMNS), GRID, with_velocity=True)
    assert unknown.regression[0, 2, 8:].isnan().all()
    with pytest.raises(ValueError, match=r"`labels` must have as many samples as `boxes` \(1\), got 0"):
        center_targets([boxes], [], 3, (ROWS, COLUMNS), GRID)
