"""Dynamic voxelization against a loop over points."""

import numpy as np
import pytest
import torch

from visionattn.heads.lidar.data.voxelize import grid_size, in_range, voxelize

RANGE, SIZE = (-4.0, -2.0, -1.0, 4.0, 2.0, 1.0), (0.5, 0.25, 0.5)


def by_loop(samples):
    cells = {}
    kept = []
    row = 0
    for b, points in enumerate(samples):
        for point in points:
            z, y, x = (
                int(np.floor((np.float32(point[i]) - np.float32(RANGE[i])) / np.float32(SIZE[i]))) for i in (2, 1, 0)
            )
            if 0 <= x < 16 and 0 <= y < 16 and 0 <= z < 4:
                cells.setdefault((b, z, y, x), []).append(row)
                kept.append(row)
            row += 1
    return cells, kept


def random_samples(seed: int, counts=(200, 0, 150)):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.uniform(-5, 5, (n, 5)).astype(np.float32)) for n in counts]


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_loop(seed):
    samples = random_samples(seed)
    found = voxelize(samples, RANGE, SIZE)
    cells, kept = by_loop([s.numpy() for s in samples])
    assert [tuple(row) for row in found.coords.tolist()] == sorted(cells)
    assert found.kept.tolist() == kept
    assert found.coords.dtype == found.point_voxel.dtype == torch.int64
    assert torch.equal(found.points, torch.cat(samples)[found.kept])
    for number, cell in enumerate(sorted(cells)):
        assert found.kept[found.point_voxel == number].tolist() == cells[cell]
    assert found.grid == (4, 16, 16)
    assert found.batch_size == 3


def test_order_of_points_changes_no_voxel():
    (points,) = random_samples(5, (300,))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    first, second = voxelize(points, RANGE, SIZE), voxelize(points[order], RANGE, SIZE)
    assert torch.equal(first.coords, second.coords)
    assert torch.equal(first.point_voxel.bincount(), second.point_voxel.bincount())


def test_edges_and_what_is_no_coordinate():
    below = float(np.nextafter(np.float32(4.0), np.float32(0)))
    rows = [
        (-4, -2, -1),
        (4, 0, 0),
        (3.9999, 0, 0),
        (float("nan"), 0, 0),
        (1e30, 0, 0),
        (-1e30, 0, 0),
        (0, 0, float("inf")),
        (below, 0, 0),  # rounds to the upper end, and must not become the first cell of the next row
    ]
    points = torch.tensor(rows)
    found = voxelize(points, RANGE, SIZE)
    assert found.kept.tolist() == [0, 2]
    assert found.coords.tolist() == [[0, 0, 0, 0], [0, 2, 8, 15]]
    assert in_range(points, RANGE).nonzero().flatten().tolist() == [0, 2, 7]


def test_nothing():
    for points in (torch.zeros(0, 4), [torch.zeros(0, 4), torch.zeros(0, 4)], torch.full((3, 4), 100.0)):
        found = voxelize(points, RANGE, SIZE)
        assert found.coords.shape == (0, 4)
        assert found.points.shape == (0, 4)
        assert found.point_voxel.shape == (0,)


def test_large_grids_do_not_overflow():
    """Keys reach beyond 2^31 cells."""
    points = torch.tensor([[0.0, 0, 0], [999.95, 999.95, 99.95]])
    found = voxelize([points] * 30, (0, 0, 0, 1000, 1000, 100), (0.1, 0.1, 0.1))
    assert found.coords[-1].tolist() == [29, 999, 9999, 9999]
    assert len(found.coords) == 60


def test_arguments():
    assert grid_size((-76.8, -76.8, -2, 76.8, 76.8, 4), (0.32, 0.32, 0.1875)) == (480, 480, 32)
    assert grid_size((-54, -54, -5, 54, 54, 3), (0.3, 0.3, 0.2)) == (360, 360, 40)
    with pytest.raises(ValueError, match="whole number of voxels"):
        grid_size((0, 0, 0, 1, 1, 1), (0.3, 0.5, 0.5))
    with pytest.raises(ValueError, match="voxel_size"):
        grid_size((0, 0, 0, 1, 1, 1), (0.5, 0.0, 0.5))
    with pytest.raises(ValueError, match="whole number"):
        grid_size((0, 0, 0, 0, 1, 1), (0.5, 0.5, 0.5))
    for bad in (torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="`points` must be floating"):
            voxelize(bad, RANGE, SIZE)
    with pytest.raises(ValueError, match="same number of columns in all samples, got 4 and 3"):
        voxelize([torch.zeros(1, 4), torch.zeros(1, 3)], RANGE, SIZE)
    with pytest.raises(ValueError, match="empty list"):
        voxelize([], RANGE, SIZE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees():
    samples = random_samples(1, (5000, 0, 3000))
    here, there = voxelize(samples, RANGE, SIZE), voxelize([s.cuda() for s in samples], RANGE, SIZE)
    for name in ("points", "coords", "point_voxel", "kept"):
        assert torch.equal(getattr(here, name), getattr(there, name).cpu())
