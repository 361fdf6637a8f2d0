"""Average precision by distance of centres, against cases by hand and a loop."""

import numpy as np
import pytest

from visionattn.heads.lidar.data.nuscenes import CLASSES
from visionattn.heads.lidar.data.nuscenes_results import ATTRIBUTES, attribute_names
from visionattn.heads.lidar.metrics_nuscenes import RANGES, DistancePrecision


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


# --- NDS ---------------------------------------------------------------------------------------------------------


def random_frames(rng, count=25):
    """Frames with all classes, and detections that are moved, resized, turned, repeated, missed and false."""
    frames = []
    for number in range(count):
        true = boxes(rng.uniform(-45, 45, (16, 2)))
        true[:, 3:6], true[:, 6] = rng.uniform(0.5, 5, (16, 3)), rng.uniform(-3, 3, 16)
        labels, velocity = rng.integers(0, 10, 16), rng.normal(0, 1, (16, 2))
        velocity[rng.random(16) < 0.2] = np.nan
        attributes = rng.integers(-1, 8, 16)
        take = np.repeat(np.arange(16), rng.choice(3, 16, p=(0.1, 0.7, 0.2)))
        found = np.concatenate([true[take], np.nan_to_num(velocity[take])], 1)
        found += rng.normal(0, [0.4, 0.4, 0.2, 0.1, 0.1, 0.1, 0.3, 0.3, 0.3], found.shape)
        found[:, 3:6] = np.abs(found[:, 3:6]) + 0.1
        names = labels[take].copy()
        names[rng.random(len(take)) < 0.05] = 0
        racks = boxes(true[:2, :2], size=(6.0, 6.0, 3.0))
        result = {"boxes": found, "scores": rng.permutation(10000)[: len(take)] / 10000, "labels": names}
        truth = {"boxes": true, "labels": labels, "velocity": velocity, "attributes": attributes, "bike_racks": racks}
        frames.append((result, {**truth, "frame": str(number), "ego": np.array([0.5, -0.9, 0.0])}))
    return frames


def plain_nds(frames):
    """The definition in words: loops over boxes, and linear interpolation written out."""

    def used(box, name, truth):
        far = np.hypot(box[0] - truth["ego"][0], box[1] - truth["ego"][1]) >= RANGES[name]
        racked = name in ("bicycle", "motorcycle") and any(
            abs(box[0] - r[0]) <= 3 and abs(box[1] - r[1]) <= 3 and abs(box[2] - r[2]) <= 1.5
            for r in truth["bike_racks"]
        )
        return not far and not racked

    def interpolate(x, xs, ys):
        """Of the points with increasing ``xs``, those around ``x``; the last of equal ones, and None beyond them."""
        if x > xs[-1]:
            return None
        below = [k for k in range(len(xs)) if xs[k] <= x]
        if not below:
            return ys[0]
        k = below[-1]
        if k == len(xs) - 1 or xs[k] == x:
            return ys[k]
        return ys[k] + (ys[k + 1] - ys[k]) * (x - xs[k]) / (xs[k + 1] - xs[k])

    aps, errors = [], {key: [] for key in ("ATE", "ASE", "AOE", "AVE", "AAE")}
    for label, name in enumerate(CLASSES):
        truths = {}
        for number, (_, t) in enumerate(frames):
            for j, box in enumerate(t["boxes"]):
                if t["labels"][j] == label and used(box, name, t):
                    truths[number, j] = (box, t["velocity"][j], t["attributes"][j])
        candidates = sorted(
            (-f["scores"][i], number, i)
            for number, (f, t) in enumerate(frames)
            for i in range(len(f["scores"]))
            if f["labels"][i] == label and used(f["boxes"][i], name, t)
        )
        for distance in (0.5, 1.0, 2.0, 4.0):
            free, hits, matches = dict(truths), [], []
            for score, number, i in candidates:
                box = frames[number][0]["boxes"][i]
                near = [(np.hypot(*(t[0][:2] - box[:2])), key) for key, t in free.items() if key[0] == number]
                hit = bool(near) and min(near)[0] < distance
                hits.append(hit)
                if hit:
                    matches.append((-score, box, free.pop(min(near)[1])))
            recall, precision, confidence = [], [], []
            for k in range(len(hits)):
                right = sum(hits[: k + 1])
                recall.append(right / len(truths))
                precision.append(right / (k + 1))
                confidence.append(-candidates[k][0])
            sampled = [interpolate(r / 100, recall, precision) for r in range(11, 101)]
            aps.append(sum(max((p or 0) - 0.1, 0) for p in sampled) / 90 / 0.9)
            if distance != 2.0:
                continue
            running = {key: [] for key in errors}
            lists = {key: [] for key in errors}
            for _, box, (real, velocity, attribute) in matches:
                smaller = np.prod(np.minimum(box[3:6], real[3:6]))
                period = np.pi if name == "barrier" else 2 * np.pi
                turn = abs(box[6] - real[6]) % period
                guess = attribute_names(CLASSES, [label], box[None, 7:9])[0]
                values = {
                    "ATE": np.hypot(*(box[:2] - real[:2])),
                    "ASE": 1 - smaller / (np.prod(box[3:6]) + np.prod(real[3:6]) - smaller),
                    "AOE": min(turn, period - turn),
                    "AVE": np.hypot(*(box[7:9] - velocity)),
                    "AAE": np.nan if attribute < 0 else float(guess != ATTRIBUTES[attribute]),
                }
                for key, value in values.items():
                    if not np.isnan(value):
                        lists[key].append(value)
                    running[key].append(np.mean(lists[key]) if lists[key] else 0.0)
            at = [interpolate(r / 100, recall, confidence) for r in range(11, 101)]
            for key, means in running.items():
                if key in {"traffic_cone": ("AOE", "AVE", "AAE"), "barrier": ("AVE", "AAE")}.get(name, ()):
                    continue
                scores = [m[0] for m in matches][::-1]
                means = means[::-1] if lists[key] else [1.0] * len(means)
                found = [means[-1] if c > scores[-1] else interpolate(c, scores, means) for c in at if c]
                errors[key].append(np.mean(found) if found else 1.0)
    means = {f"m{key}": np.mean(values) for key, values in errors.items()} | {"mAP": 100 * np.mean(aps)}
    right = sum(100 * (1 - min(1, means[f"m{key}"])) for key in errors)
    return means | {"NDS": (5 * means["mAP"] + right) / 10}


@pytest.mark.parametrize("seed", [0, 1])
def test_nds_agrees_with_its_definition(seed):
    frames = random_frames(np.random.default_rng(seed))
    got, wanted = figures(*frames, classes=CLASSES), plain_nds(frames)
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, abs=1e-9), name
    assert 10 < got["NDS"] < 90
    assert next(iter(got)) == "NDS"


def test_nds_by_hand():
    """A perfect car and pedestrian, of which the velocity is off by 0.5 m/s and one attribute is wrong."""
    true = boxes([(5, 0), (9, 3)])
    found = np.concatenate([true, [[1.0, 0.0], [0.0, 0.0]]], 1)
    velocity, moving = np.array([[1.5, 0.0], [0.0, 0.5]]), ATTRIBUTES.index("vehicle.moving")
    frame_ = (
        {"boxes": found, "scores": np.array([0.9, 0.8]), "labels": np.array([0, 1])},
        {"boxes": true, "labels": np.array([0, 1]), "velocity": velocity, "frame": "a",
         "attributes": np.array([moving, ATTRIBUTES.index("pedestrian.moving")])},
    )  # fmt: skip
    result = figures(frame_, classes=("car", "pedestrian"))
    assert result["mAP"] == pytest.approx(100)
    assert (result["mATE"], result["mASE"], result["mAOE"]) == pytest.approx((0, 0, 0))
    assert (result["mAVE"], result["AAE_car"], result["AAE_pedestrian"]) == pytest.approx((0.5, 0, 1))
    assert result["NDS"] == pytest.approx((500 + 100 * 3 + 50 + 50) / 10)
    table = DistancePrecision(("car", "pedestrian")).table(result)
    assert table["pedestrian"] == pytest.approx({"AP": 100, "ATE": 0, "ASE": 0, "AOE": 0, "AVE": 0.5, "AAE": 1})
    # Two of ten classes with boxes: the others count as 0, and their errors as 1.
    every = figures(frame_, classes=("car", "pedestrian", "bus", "traffic_cone"), all_classes=True)
    assert every["mAP"] == pytest.approx(50)
    assert every["mAVE"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert every["ATE_traffic_cone"] == 1
    assert "AVE_traffic_cone" not in every


def test_errors_without_values():
    true, found = boxes([(5, 0)]), np.concatenate([boxes([(5, 0)]), [[0.0, 0.0]]], 1)
    unknown = np.full((1, 2), np.nan)
    result = figures(frame(found, [0.9], true, velocity=unknown, attributes=np.array([-1])))
    assert (result["AVE_car"], result["AAE_car"]) == (1, 1)  # as of the development kit, if all are unknown
    assert result["NDS"] == pytest.approx((500 + 300) / 10)
    assert "NDS" not in figures(frame(found, [0.9], true, velocity=unknown))


def test_bicycle_racks_and_the_place_of_the_vehicle():
    true, rack = boxes([(5, 0), (9, 0)]), boxes([(5, 0)], size=(3.0, 1.0, 2.0))
    found = boxes([(5, 0), (9, 0)])
    assert figures(frame(found[1:], [0.9], true), classes=("bicycle",))["AP_bicycle"] < 60
    for name, value in (("bicycle", 100), ("motorcycle", 100), ("car", 44.4)):
        racked = frame(found[1:], [0.9], true, bike_racks=rack)
        assert figures(racked, classes=(name,))[f"AP_{name}"] == pytest.approx(value, abs=1)
    behind = frame(boxes([]), [], boxes([(50.5, 0), (-49.5, 0)]), ego=np.array([1.0, 0, 0]))
    metric = DistancePrecision(("car",))
    assert metric.measure(*behind)["true"][:, 0].tolist() == [50.5]
    tilted = np.eye(4)
    tilted[:3, :3] = [[0.6, 0, 0.8], [0, 1, 0], [-0.8, 0, 0.6]]
    assert metric.measure(*frame(boxes([]), [], boxes([(60, 0)]), to_global=tilted))["true"][:, 0].tolist() == [60]
