"""Simulated scans: they repeat, their boxes hold their points, and their density is that of a real sensor."""

import numpy as np
import pytest

from visionattn.heads.lidar.data.boxes import bev_overlaps, count_points
from visionattn.heads.lidar.data.files import read_points
from visionattn.heads.lidar.simulate.rays import Lidar
from visionattn.heads.lidar.simulate.scenes import CLASSES, simulate_scan

SMALL = Lidar(beams=32, azimuths=1024)


@pytest.fixture(scope="module")
def scans():
    return [simulate_scan(seed, SMALL) for seed in range(6)]


def test_same_seed_same_scan(scans):
    again = simulate_scan(3, SMALL)
    for name in ("points", "boxes", "labels", "counts", "visible"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scans[3], name))
    assert not np.array_equal(scans[2].points[:100], scans[3].points[:100])


def test_types_and_ranges(scans):
    for scan in scans:
        assert scan.points.dtype == scan.boxes.dtype == np.float32
        assert scan.labels.dtype == scan.counts.dtype == np.int64
        assert np.isfinite(scan.points).all()
        assert 0 <= scan.points[:, 3].min() < scan.points[:, 3].max() <= 1
        assert np.linalg.norm(scan.points[:, :3], axis=1).max() < SMALL.max_range + 0.2
        assert (np.abs(scan.boxes[:, 6]) <= np.pi).all()
        assert ((scan.visible > 0) & (scan.visible <= 1)).all()
        np.testing.assert_array_equal(scan.counts, count_points(scan.points, scan.boxes))
        assert (scan.counts > 0).all()
    every = np.concatenate([scan.labels for scan in scans])
    assert set(every) == set(range(len(CLASSES)))


def test_objects_do_not_overlap_and_stand_on_the_ground(scans):
    off = []
    for scan in scans:
        overlaps = bev_overlaps(scan.boxes, scan.boxes)
        np.fill_diagonal(overlaps, False)
        assert not overlaps.any()
        bottom = scan.boxes[:, 2] - scan.boxes[:, 5] / 2
        for box, low in zip(scan.boxes, bottom, strict=True):
            around = scan.points[np.hypot(*(scan.points[:, :2] - box[:2]).T) < 4]
            if len(around) > 100:
                off.append(np.percentile(around[:, 2], 5) - low)
    assert len(off) > 40
    assert np.median(np.abs(off)) < 0.1  # some stand before a wall, of which only the upper part is seen


def test_boxes_are_tight():
    """Points of near cars reach the sides of their boxes, and hardly any lie just outside."""
    reach, outside = [], 0
    for seed in range(4):
        scan = simulate_scan(100 + seed, Lidar())
        for box in scan.boxes[(scan.labels == 0) & (scan.counts > 400)]:
            offset = scan.points[:, :3] - box[:3]
            c, s = np.cos(box[6]), np.sin(box[6])
            local = np.stack(
                [offset[:, 0] * c + offset[:, 1] * s, offset[:, 1] * c - offset[:, 0] * s, offset[:, 2]], 1
            )
            above = local[:, 2] > -box[5] / 2 + 0.3  # clear of the ground
            inside = above & (np.abs(local) <= box[3:6] / 2 + 0.08).all(1)
            near = above & (np.abs(local) <= box[3:6] / 2 + 0.15).all(1) & (local[:, 2] < box[5] / 2)
            outside += near.sum() - (inside & near).sum()
            reach.append(np.abs(local[inside]).max(0) / (box[3:6] / 2))
    assert len(reach) >= 8
    assert (np.median(reach, axis=0) > 0.93).all()
    assert outside < 100


def test_density_is_that_of_the_real_sensor(shared_dir):
    """Shares of points by distance, against the three full turns of an HDL-64E that there are."""
    bins = [3, 5, 10, 20, 30, 80]

    def shares(points):
        counts = np.histogram(np.hypot(points[:, 0], points[:, 1]), bins)[0]
        return counts / counts.sum(), len(points)

    names = [f"kitti_training_00000{n}.bin" for n in range(3)]
    real = [shares(read_points(shared_dir / "data" / "lidar" / name).points) for name in names]
    made = [shares(simulate_scan(seed).points) for seed in range(4)]
    assert 0.6 < np.mean([n for _, n in made]) / np.mean([n for _, n in real]) < 1.1
    real_shares, made_shares = (np.mean([s for s, _ in group], axis=0) for group in (real, made))
    assert np.abs(real_shares - made_shares).max() < 0.12
