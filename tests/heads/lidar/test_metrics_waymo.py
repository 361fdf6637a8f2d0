"""Waymo's average precision, against cases by hand and a brute-force evaluation of every score threshold."""

import itertools

import numpy as np
import pytest
from shapely import affinity
from shapely.geometry import box as rectangle

from visionattn.heads.lidar.metrics_waymo import WaymoPrecision


def boxes(places, heading=0.0, size=(4.0, 2.0, 1.5)):
    return np.array([[*p, 0.0, *size, heading] for p in places], float).reshape(-1, 7)


def frame(found, scores, true, levels=None, name="a", labels=None, true_labels=None, **more):
    zeros = np.zeros(len(true), int)
    result = {"boxes": found, "scores": np.array(scores, float), "labels": np.zeros(len(found), int)}
    truth = {"boxes": true, "labels": zeros, "difficulty": zeros if levels is None else np.array(levels), "frame": name}
    if labels is not None:
        result["labels"], truth["labels"] = np.array(labels), np.array(true_labels)
    return result, {**truth, **more}


def figures(*frames, classes=("vehicle",), **options):
    metric = WaymoPrecision(classes, **options)
    return metric.summarize([metric.measure(*f) for f in frames])


def footprint(b):
    x, y, _, length, width, _, heading = b
    shape = affinity.rotate(rectangle(-length / 2, -width / 2, length / 2, width / 2), heading, use_radians=True)
    return affinity.translate(shape, x, y)


def volume_iou(a, b):
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    common = footprint(a).intersection(footprint(b)).area * max(height, 0)
    return common / (np.prod(a[3:6]) + np.prod(b[3:6]) - common)


def best_pairs(overlap):
    """The set of pairs with the largest sum, by trying all of them."""
    rows, columns = len(overlap), len(overlap[0]) if len(overlap) else 0
    best, kept = 0.0, []
    choices = [[None, *(c for c in range(columns) if overlap[r][c] > 0)] for r in range(rows)]
    for picked in itertools.product(*choices):
        used = [c for c in picked if c is not None]
        if len(set(used)) == len(used):
            total = sum(overlap[r][c] for r, c in enumerate(picked) if c is not None)
            if total > best:
                best, kept = total, [(r, c) for r, c in enumerate(picked) if c is not None]
    return kept


def brute_force(frames, threshold):
    """Counts at every score, and the area under the curve as the sum of a fine grid's trapezoids."""
    curves = {key: [] for key in ("AP L1", "APH L1", "AP L2", "APH L2")}
    for cut in sorted({s for found, _ in frames for s in found["scores"]}, reverse=True):
        right = wrong = ha = 0
        missed = {"L1": 0, "L2": 0}
        for found, truth in frames:
            kept = [b for b, s in zip(found["boxes"], found["scores"], strict=True) if s >= cut]
            overlap = [[volume_iou(a, b) for b in truth["boxes"]] for a in kept]
            overlap = [[v if v >= threshold else 0 for v in row] for row in overlap]
            pairs = best_pairs(overlap)
            for r, c in pairs:
                turn = abs(kept[r][6] - truth["boxes"][c][6]) % (2 * np.pi)
                ha += 1 - min(turn, 2 * np.pi - turn) / np.pi
            right, wrong = right + len(pairs), wrong + len(kept) - len(pairs)
            for number, level in enumerate(truth["difficulty"]):
                if number not in [c for _, c in pairs]:
                    missed["L2"] += 1
                    missed["L1"] += int(level == 0)
        for level, none in missed.items():
            curves[f"AP {level}"].append((right / max(right + none, 1), right / (right + wrong)))
            curves[f"APH {level}"].append((right / max(right + none, 1), ha / (right + wrong)))
    return {key: area(points) for key, points in curves.items()}


def area(points):
    points = [(r, max(p for q, p in points if q >= r)) for r, _ in points if r > 0]
    points = sorted(set(points), reverse=True)
    walked = [points[0]] if points else []
    for recall, precision in points[1:]:
        while walked[-1][0] - recall > 0.05 + 1e-6:
            walked.append((walked[-1][0] - 0.05, walked[-1][1]))
        walked.append((recall, precision))
    walked.append((0.0, walked[-1][1] if walked else 0.0))
    return 100 * sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(walked))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(6):
        true = boxes(rng.uniform(-15, 15, (rng.integers(0, 5), 2)), size=(4.0, 2.0, 1.6))
        true[:, 6] = rng.uniform(-3, 3, len(true))
        if len(true) > 1:
            true[1] = true[0] + [0.5, 0.3, 0, 0, 0, 0, 0.1]  # a pair that shares detections
        take = np.repeat(np.arange(len(true)), rng.integers(0, 3, len(true)))
        found = np.concatenate([true[take], boxes(rng.uniform(-15, 15, (2, 2)))])
        found += rng.normal(0, [0.15, 0.15, 0.05, 0.1, 0.1, 0.1, 0.2], (len(found), 7))
        found[::5, 6] += np.pi  # the wrong way round
        scores = rng.integers(1, 12, len(found)) / 12  # with equal ones
        frames.append(frame(found, scores, true, rng.integers(0, 2, len(true)), str(number)))
    got, wanted = figures(*frames, iou=0.5), brute_force(frames, 0.5)
    for key, value in wanted.items():
        kind, level = key.split()
        assert got[f"{kind}_vehicle_{level}"] == pytest.approx(value, abs=1e-6), key
        assert got[f"m{kind}_{level}"] == got[f"{kind}_vehicle_{level}"]
    assert 5 < got["APH_vehicle_L2"] < got["AP_vehicle_L2"] < 100


def test_by_hand():
    true = boxes([(0, 0), (10, 0), (20, 0), (30, 0)])
    found = boxes([(0, 0), (50, 0), (10, 0)])
    found[2, 6] = np.pi / 2 * 0.1  # heading accuracy 0.95; IoU about 0.75
    result = figures(frame(found, [0.9, 0.8, 0.7], true, [0, 0, 1, 1]))
    # Level 2: recall 1/4 at precision 1, 2/4 at 2/3, of 4 boxes; steps of 0.05, the last one a trapezoid.
    assert result["AP_vehicle_L2"] == pytest.approx(100 * (0.25 + 0.2 * 2 / 3 + 0.05 * (1 + 2 / 3) / 2))
    assert result["APH_vehicle_L2"] == pytest.approx(100 * (0.25 + 0.2 * 0.65 + 0.05 * (1 + 0.65) / 2))
    # Level 1: two boxes, so recall 1/2 and 1.
    assert result["AP_vehicle_L1"] == pytest.approx(100 * (0.5 + 0.45 * 2 / 3 + 0.05 * (1 + 2 / 3) / 2))
    assert result["mAPH_L1"] == result["APH_vehicle_L1"]


def test_headings_weigh_and_difficult_boxes_are_no_misses_of_level_1():
    true = boxes([(0, 0), (20, 0)])
    back = true.copy()
    back[:, 6] = np.pi
    result = figures(frame(back, [0.9, 0.8], true))
    assert (result["AP_vehicle_L1"], result["APH_vehicle_L1"]) == pytest.approx((100, 0))
    one = figures(frame(true[:1], [0.9], true, [0, 1]))
    assert one["AP_vehicle_L1"] == pytest.approx(100)
    assert one["AP_vehicle_L2"] == pytest.approx(50)
    none = figures(frame(true, [0.9, 0.8], true, [1, 1]))
    assert set(none) == {"AP_vehicle_L2", "APH_vehicle_L2", "mAP_L2", "mAPH_L2"}


def test_thresholds_of_classes_and_their_mean():
    true = boxes([(0, 0), (10, 0)])
    moved = true + 0.8 * np.eye(7)[0]  # an IoU of 2/3
    labels = [0, 1]
    both = frame(moved, [0.9, 0.8], true, labels=labels, true_labels=labels)
    result = figures(both, classes=("vehicle", "cyclist"))
    assert (result["AP_vehicle_L2"], result["AP_cyclist_L2"]) == (0, pytest.approx(100))
    assert result["mAP_L2"] == pytest.approx(50)
    assert figures(both, classes=("vehicle", "cyclist"), iou=0.6)["mAP_L1"] == pytest.approx(100)
    table = WaymoPrecision(("vehicle", "cyclist", "sign")).table(result)
    assert table["vehicle"] == {"AP L1": 0, "APH L1": 0, "AP L2": 0, "APH L2": 0}
    assert set(table) == {"vehicle", "cyclist"}


def test_ignored_boxes_excuse_and_regions_limit():
    true, other = boxes([(0, 0)]), boxes([(20, 0)])
    found = boxes([(20, 0), (0, 0)])
    assert figures(frame(found, [0.9, 0.8], true))["AP_vehicle_L1"] == pytest.approx(50)
    for labels in ([0], [-1]):
        excused = frame(found, [0.9, 0.8], true, ignore_boxes=other, ignore_labels=np.array(labels))
        assert figures(excused)["AP_vehicle_L1"] == pytest.approx(100)
    harder = frame(found, [0.9, 0.8], boxes([(0, 0), (20, 0)]), [0, -1])
    assert figures(harder)["AP_vehicle_L1"] == pytest.approx(100)

    class Region:
        @staticmethod
        def sees(rows):
            return rows[:, 0] < 10

    assert figures(frame(found, [0.9, 0.8], true, labelled_region=Region))["AP_vehicle_L1"] == pytest.approx(100)


def test_empty_frames_repeated_frames_and_arguments():
    nothing = frame(boxes([]), [], boxes([(0, 0)]), name="b")
    assert figures(nothing)["mAPH_L2"] == 0
    assert figures(frame(boxes([(0, 0)]), [0.5], boxes([]))) == {}
    one = frame(boxes([(0, 0)]), [0.9], boxes([(0, 0)]))
    assert figures(one, nothing) == figures(one, nothing, one, nothing)
    for options, message in (({"iou": 1.0}, "between 0 and 1"), ({"iou": {"car": 0.5}}, "a value for each")):
        with pytest.raises(ValueError, match=message):
            WaymoPrecision(["vehicle"], **options)
    with pytest.raises(ValueError, match="classes"):
        WaymoPrecision([])
    with pytest.raises(ValueError, match="NaN"):
        figures(frame(boxes([(0, 0)]), [np.nan], boxes([])))
    with pytest.raises(ValueError, match=r"\[D, 7\]"):
        figures(frame(np.zeros((1, 6)), [0.5], boxes([])))
