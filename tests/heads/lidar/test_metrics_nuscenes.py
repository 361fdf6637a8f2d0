"""Average precision by distance of centres, against cases by hand and a loop."""

import numpy as np
import pytest

from visionattn.heads.lidar.metrics_nuscenes import DistancePrecision


def boxes(places, heading=0.0, size=(4.0, 2.0, 1.5)):
    return np.array([[*p, 0.0, *size, heading] for p in places], float).reshape(-1, 7)


def frame(found, scores, true, name="a", **more):
    result = {"boxes": found, "scores": np.array(scores, float), "labels": np.zeros(len(found), int)}
    return result, {"boxes": true, "labels": np.zeros(len(true), int), "frame": name, **more}


def figures(*frames, classes=("car",), **options):
    metric = DistancePrecision(classes, **options)
    return metric.summarize([metric.measure(*f) for f in frames])


def by_loop(frames, distance):
    """nuScenes' procedure: best scores first, the nearest free box of the same frame, 101 recalls."""
    order = sorted(
        ((s, number, i) for number, (found, _) in enumerate(frames) for i, s in enumerate(found["scores"])),
        key=lambda entry: -entry[0],
    )
    total = sum(len(real["boxes"]) for _, real in frames)
    taken, tp, fp = set(), [], []
    for _, number, i in order:
        best, least = None, np.inf
        for j, box in enumerate(frames[number][1]["boxes"]):
            d = np.linalg.norm(box[:2] - frames[number][0]["boxes"][i][:2])
            if (number, j) not in taken and d < least:
                best, least = j, d
        if least < distance:
            taken.add((number, best))
        tp.append(least < distance)
        fp.append(least >= distance)
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    precision = np.interp(np.linspace(0, 1, 101), tp / total, tp / (tp + fp), right=0)[11:]
    return 100 * np.mean(np.maximum(precision - 0.1, 0)) / 0.9


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_loop(seed):
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(15):
        true = boxes(rng.uniform(-20, 20, (rng.integers(0, 8), 2)))
        take = np.repeat(np.arange(len(true)), rng.integers(0, 3, len(true)))
        found = np.concatenate([true[take], boxes(rng.uniform(-20, 20, (3, 2)))])
        found[:, :2] += rng.normal(0, 0.8, (len(found), 2))
        frames.append(frame(found, rng.permutation(1000)[: len(found)] / 1000, true, str(number)))
    result = figures(*frames)
    for distance in (0.5, 1, 2, 4):
        assert result[f"AP_car_{distance}m"] == pytest.approx(by_loop(frames, distance), abs=1e-9)
    assert result["AP_car"] == pytest.approx(np.mean([result[f"AP_car_{d}m"] for d in (0.5, 1, 2, 4)]))
    assert result["mAP"] == result["AP_car"]
    assert result["AP_car_0.5m"] < result["AP_car_4m"] < 100


def test_distance_decides():
    true = boxes([(0, 0), (10, 0)])
    result = figures(frame(boxes([(0.7, 0), (10, 3)]), [0.9, 0.8], true))
    assert result["AP_car_0.5m"] == 0
    assert result["AP_car_4m"] == pytest.approx(100)
    assert 40 < result["AP_car_2m"] < 50  # half of the recall


def test_errors_of_right_detections():
    true = boxes([(0, 0), (20, 0)], heading=3.1)
    found = boxes([(0, 0.5), (20, 1.5)], heading=-3.1, size=(4.0, 2.0, 1.2))
    found = np.concatenate([found, [[1.0, 0.0], [2.0, 2.0]]], axis=1)
    result = figures(frame(found, [0.9, 0.8], true, velocity=np.array([[1.0, 1.0], [2.0, 2.0]])))
    # Running means, 0.5 and then 1, at recalls from 0.11 on: flat to 0.5, then a line.
    assert result["ATE_car"] == pytest.approx((40 * 0.5 + 50 * 0.755) / 90)
    assert result["ASE_car"] == pytest.approx(0.2)
    assert result["AOE_car"] == pytest.approx(2 * np.pi - 6.2, abs=1e-6)  # the short way around
    assert result["AVE_car"] == pytest.approx((40 * 1 + 50 * 0.745) / 90)
    assert result["mATE"] == result["ATE_car"]
    nothing = figures(frame(boxes([]), [], true, velocity=np.ones((2, 2))))
    assert (nothing["AP_car"], nothing["ATE_car"], nothing["AOE_car"]) == (0, 1, 1)


def test_classes_without_a_front_or_a_heading():
    for name, expected in (("barrier", 0.0), ("car", np.pi)):
        result = figures(frame(boxes([(5, 0)], np.pi), [0.9], boxes([(5, 0)])), classes=(name,))
        assert result[f"AOE_{name}"] == pytest.approx(expected, abs=1e-9)
    assert "AOE_traffic_cone" not in figures(frame(boxes([(5, 0)]), [0.9], boxes([(5, 0)])), classes=("traffic_cone",))


def test_ranges():
    far = frame(boxes([(60, 0), (5, 0)]), [0.9, 0.8], boxes([(45, 45), (5, 0)]))
    assert figures(far)["AP_car"] == pytest.approx(100)  # beyond 50 m neither counts
    assert figures(far, ranges={})["AP_car"] < 50
    assert figures(frame(boxes([]), [], boxes([(60, 0)]))) == {}


def test_repeated_frames_count_once_and_arguments_are_checked():
    one, other = frame(boxes([(0, 0)]), [0.9], boxes([(0, 0)])), frame(boxes([(9, 9)]), [0.95], boxes([(0, 0)]), "b")
    assert figures(one, other) == figures(one, other, one, other)
    with pytest.raises(ValueError, match="distances"):
        DistancePrecision(["car"], distances=[0])
    with pytest.raises(ValueError, match="classes"):
        DistancePrecision([])
    with pytest.raises(ValueError, match=r"\[D, 7 or 9\]"):
        figures(frame(np.zeros((2, 8)), [1, 1], boxes([])))
