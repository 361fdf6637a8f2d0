"""Average precision in point clouds against KITTI's procedure written out box by box, and against cases by hand."""

import pickle

import numpy as np
import pytest
import torch

from visionattn.heads.lidar.data.camera_view import CameraView
from visionattn.heads.lidar.metrics_kitti import BevPrecision, precision_at_recalls, score_levels

CLASSES = ("car", "pedestrian")


def boxes_at(places, size=(4.0, 2.0, 1.5), heading=0.0) -> np.ndarray:
    return np.array([[x, y, 0.0, *size, heading] for x, y in places], np.float32).reshape(-1, 7)


def truth(places=(), labels=None, **more):
    boxes = boxes_at(places)
    return {"boxes": boxes, "labels": np.zeros(len(boxes), int) if labels is None else np.array(labels), **more}


def found(places=(), scores=(), labels=None, **more):
    boxes = boxes_at(places, **more)
    return {
        "boxes": boxes,
        "scores": np.array(scores, float),
        "labels": np.zeros(len(boxes), int) if labels is None else np.array(labels),
    }


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Of boxes that are not turned."""
    sides = np.minimum(a[:3] + a[3:6] / 2, b[:3] + b[3:6] / 2) - np.maximum(a[:3] - a[3:6] / 2, b[:3] - b[3:6] / 2)
    inside = sides.clip(min=0).prod()
    return inside / (a[3:6].prod() + b[3:6].prod() - inside)


def by_kitti(frames, label, level, least):
    """KITTI's evaluation of one class and difficulty, in loops over boxes; percent at 40 and at 11 recalls."""

    def run(detections, truths, ious, limit):
        """Scores of right ones (limit None), or the numbers of right and of wrong ones above the limit."""
        used = [False] * len(detections)
        right, scores = 0, []
        for i, (_, difficulty) in enumerate(truths):
            counted = 0 <= difficulty <= level
            best, value = -1, -1.0
            for j, (_, score) in enumerate(detections):
                if used[j] or (limit is not None and score < limit):
                    continue
                rank = score if limit is None else ious[j][i]
                if ious[j][i] > least and rank > value:
                    best, value = j, rank
            if best >= 0:
                used[best] = True
                if counted:
                    right += 1
                    scores.append(detections[best][1])
        wrong = sum(not u and (limit is None or s >= limit) for u, (_, s) in zip(used, detections, strict=True))
        return scores if limit is None else (right, wrong)

    parts = []
    for result, real in frames:
        detections = [
            (b, s) for b, s, c in zip(result["boxes"], result["scores"], result["labels"], strict=True) if c == label
        ]
        truths = [
            (b, d) for b, c, d in zip(real["boxes"], real["labels"], real["difficulty"], strict=True) if c == label
        ]
        truths += [
            (b, -1) for b, c in zip(real["ignore_boxes"], real["ignore_labels"], strict=True) if c in (label, -1)
        ]
        parts.append((detections, truths, [[overlap(d, t) for t, _ in truths] for d, _ in detections]))
    total = sum(0 <= d <= level for _, truths, _ in parts for _, d in truths)
    assert total >= 41
    scores = sorted((s for part in parts for s in run(*part, None)), reverse=True)
    limits, recall = [], 0.0
    for i, score in enumerate(scores):
        left = (i + 1) / total
        right = (i + 2) / total if i < len(scores) - 1 else left
        if right - recall < recall - left and i < len(scores) - 1:
            continue
        limits.append(score)
        recall += 1 / 40.0
    precision = np.zeros(41)
    for i, limit in enumerate(limits):
        counts = np.sum([run(*part, limit) for part in parts], axis=0)
        precision[i] = counts[0] / counts.sum()
    precision = [precision[i:].max() for i in range(41)]
    return {40: 100 * sum(precision[1:]) / 40, 11: 100 * sum(precision[0::4]) / 11}


def random_frames(seed: int, count: int = 12):
    """Objects on a grid, most of them found, none turned; some ignored, some found twice, some that are not there."""
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        n = int(rng.integers(8, 17))
        cells = rng.permutation(36)[: n + 3]
        places = np.stack([cells % 6 * 8.0, cells // 6 * 6.0], 1)
        boxes, labels = boxes_at(places[:n]), rng.integers(0, 2, n)
        real = {
            "boxes": boxes, "labels": labels, "difficulty": rng.integers(-1, 3, n), "frame": f"{seed}-{number}",
            "ignore_boxes": boxes_at(places[n : n + 2]), "ignore_labels": rng.integers(-1, 2, 2),
        }  # fmt: skip
        everything = np.concatenate([boxes, boxes_at(places[n:])])
        kinds = np.concatenate([labels, rng.integers(0, 2, 3)])
        take = rng.choice([0, 1, 1, 1, 2], len(everything))
        take = np.repeat(np.arange(len(everything)), take)
        moved = everything[take].copy()
        moved[:, :3] += rng.normal(0, 0.15, (len(take), 3))
        kinds = np.where(rng.random(len(take)) < 0.1, 1 - kinds[take], kinds[take])
        scores = rng.random(len(take)).round(2)
        frames.append(({"boxes": moved, "scores": scores, "labels": kinds}, real))
    return frames


@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_kitti_written_out(seed):
    frames = random_frames(seed, count=40)
    least = {"car": 0.6, "pedestrian": 0.4}
    metrics = {points: BevPrecision(CLASSES, least, points) for points in (40, 11)}
    records = [metrics[40].measure(*frame) for frame in frames]
    figures = {points: metric.summarize(records) for points, metric in metrics.items()}
    checked = 0
    for label, name in enumerate(CLASSES):
        for level, level_name in enumerate(("easy", "moderate", "hard")):
            expected = by_kitti(frames, label, level, least[name])
            for points, value in expected.items():
                assert figures[points][f"AP_3d_{name}_{level_name}"] == pytest.approx(value, abs=1e-6)
                checked += 10 < value < 100
    assert checked == 12


def test_all_found_is_a_hundred_and_nothing_found_is_zero():
    metric = BevPrecision(["car"], levels=("all",))
    real = truth([(i * 10, 0) for i in range(50)])
    perfect = metric.summarize([metric.measure(found([(i * 10, 0) for i in range(50)], np.linspace(1, 0.1, 50)), real)])
    assert perfect["AP_bev_car_all"] == perfect["AP_3d_car_all"] == perfect["mAP_3d_all"] == pytest.approx(100)
    assert perfect["AOS_3d_car_all"] == pytest.approx(100)
    nothing = metric.summarize([metric.measure(found(), real)])
    assert nothing["AP_3d_car_all"] == 0
    assert metric.summarize([metric.measure(found([(0, 0)], [0.5]), truth())]) == {}


def test_few_boxes_are_sampled_at_their_recalls():
    """Two of four found, then a wrong one, then the third."""
    metric = BevPrecision(["car"], levels=("all",))
    real = truth([(0, 0), (10, 0), (20, 0), (30, 0)])
    result = found([(0, 0), (10, 0), (99, 0), (20, 0)], [0.9, 0.8, 0.7, 0.6])
    figures = metric.summarize([metric.measure(result, real)])
    assert figures["AP_3d_car_all"] == pytest.approx(100 * (20 + 10 * 0.75) / 40)
    eleven = BevPrecision(["car"], levels=("all",), recall_points=11)
    figures = eleven.summarize([eleven.measure(result, real)])
    assert figures["AP_3d_car_all"] == pytest.approx(100 * (6 + 2 * 0.75) / 11)


def test_height_counts_in_three_dimensions_only():
    metric = BevPrecision(["car"], levels=("all",))
    result = found([(0, 0)], [0.9])
    result["boxes"][:, 2] += 1.0
    figures = metric.summarize([metric.measure(result, truth([(0, 0)]))])
    assert figures["AP_bev_car_all"] == pytest.approx(100)
    assert figures["AP_3d_car_all"] == 0


def test_heading_weights_the_orientation_score():
    metric = BevPrecision(["car"], levels=("all",))
    result = found([(0, 0), (20, 0)], [0.9, 0.8])
    result["boxes"][0, 6] = np.pi  # the same box, driving backwards
    figures = metric.summarize([metric.measure(result, truth([(0, 0), (20, 0)]))])
    assert figures["AP_3d_car_all"] == pytest.approx(100)
    assert figures["AOS_3d_car_all"] == pytest.approx(50, abs=1)


@pytest.mark.parametrize("turned", [0.0, np.pi / 2])
def test_a_turned_box_must_be_turned(turned):
    metric = BevPrecision(["car"], levels=("all",))
    real = truth([(0, 0)])
    real["boxes"][:, 6] = np.pi / 2
    figures = metric.summarize([metric.measure(found([(0, 0)], [0.9], heading=turned), real)])
    assert figures["AP_3d_car_all"] == pytest.approx(0 if turned == 0 else 100)


def test_ignored_boxes_excuse_detections_of_their_class():
    metric = BevPrecision(CLASSES, levels=("all",))
    for excused, wrong in ((0, 0), (-1, 0), (1, 1)):
        real = truth([(0, 0)], ignore_boxes=boxes_at([(20, 0)]), ignore_labels=np.array([excused]))
        result = found([(0, 0), (20, 0)], [0.5, 0.9])
        figures = metric.summarize([metric.measure(result, real)])
        assert figures["AP_3d_car_all"] == pytest.approx(50 if wrong else 100)


def test_detections_out_of_the_labelled_region_are_not_counted():
    view = CameraView.from_matrices(
        [[50.0, 0, 50, 0], [0, 50, 25, 0], [0, 0, 1, 0]], np.eye(3), [[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]],
        (100, 50), np.array([[0.0, 0, 35, 49]]),
    )  # fmt: skip
    result = found([(10, 0), (-10, 0), (12, 7)], [0.5, 0.9, 0.8])  # behind; and among what nobody labelled
    for options, expected in (({}, 50), ({"dont_care": True}, 100)):
        metric = BevPrecision(["car"], levels=("all",), **options)
        figures = metric.summarize([metric.measure(result, truth([(10, 0)], labelled_region=view))])
        assert figures["AP_3d_car_all"] == pytest.approx(expected)
    metric = BevPrecision(["car"], levels=("all",), least_height=[7.0])
    far = found([(10, 0), (60, 0)], [0.5, 0.9])
    figures = metric.summarize([metric.measure(far, truth([(10, 0)], labelled_region=view))])
    assert figures["AP_3d_car_all"] == pytest.approx(100)  # the far one is 1.3 pixels high


def test_frames_that_fill_the_last_batch_count_once():
    frames = random_frames(3, 6)
    metric = BevPrecision(CLASSES)
    records = [metric.measure(*frame) for frame in frames]
    assert metric.summarize(records) == metric.summarize(records + records[:3])
    twins = [
        metric.measure(result, {**real, "frame": "same", "path": f"{n}.bin"}) for n, (result, real) in enumerate(frames)
    ]
    assert metric.summarize(twins) == metric.summarize(records)  # frames of two folders may share a name
    assert metric.summarize(pickle.loads(pickle.dumps(records))) == metric.summarize(records)
    nameless = [{**record, "key": None} for record in records]
    assert metric.summarize(nameless) != metric.summarize(nameless + nameless[:3])


def test_order_of_frames_and_kind_of_array_do_not_matter():
    frames = random_frames(2, 6)
    metric = BevPrecision(CLASSES)
    records = [metric.measure(*frame) for frame in frames]
    tensors = [
        metric.measure(
            *({k: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in part.items()} for part in frame)
        )
        for frame in reversed(frames)
    ]
    first, second = metric.summarize(records), metric.summarize(tensors)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key] == pytest.approx(value)


def test_levels_and_recalls():
    np.testing.assert_array_equal(score_levels(np.linspace(1, 0, 41), 41)[:3], np.linspace(1, 0, 41)[:3])
    assert len(score_levels(np.random.default_rng(0).random(1000), 1000)) == 41
    assert len(score_levels(np.array([0.5]), 1000)) == 1
    assert len(score_levels(np.zeros(0), 5)) == 0
    assert precision_at_recalls(np.ones(41), 40) == precision_at_recalls(np.ones(41), 11) == 1
    assert precision_at_recalls(np.ones(21), 40) == 0.5  # recall ends at 20/40
    assert precision_at_recalls(np.array([0.2, 0.8]), 11) == pytest.approx(0.8 / 11)


def test_arguments():
    for bad, reason in (
        ({"classes": []}, "classes"),
        ({"classes": ["a", "a"]}, "classes"),
        ({"recall_points": 101}, "`recall_points` must be 11 or 40, got 101"),
        ({"iou": {"car": 0.5}}, "a value for the class 'pedestrian'"),
        ({"iou": 1.0}, "between 0 and 1"),
        ({"levels": ()}, "levels"),
        ({"least_height": [1]}, "least_height"),
    ):
        with pytest.raises(ValueError, match=reason):
            BevPrecision(**{"classes": CLASSES, **bad})
    metric = BevPrecision(CLASSES)
    with pytest.raises(ValueError, match=r"must have shapes \[D, 7\]"):
        metric.measure({"boxes": np.zeros((2, 7)), "scores": np.zeros(1), "labels": np.zeros(2)}, truth())
    with pytest.raises(ValueError, match="NaN"):
        metric.measure(found([(0, 0)], [np.nan]), truth())
    assert BevPrecision(["Car", "Cyclist"]).iou == [0.7, 0.5]
