"""The measures of `visionattn.metrics` behind mmengine's evaluator."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement, InstanceData

from visionattn.errors import ConfigError
from visionattn.heads.lidar.metrics_kitti import BevPrecision
from visionattn.heads.lidar.metrics_nuscenes import DistancePrecision
from visionattn.heads.lidar.metrics_waymo import WaymoPrecision

CLASSES = ("car", "pedestrian")


def frames(count=6, velocity=False):
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        boxes = np.concatenate([rng.uniform(-20, 20, (8, 2)), rng.normal(0, 0.2, (8, 1)), rng.uniform(1, 4, (8, 4))], 1)
        boxes, labels = torch.from_numpy(boxes).float(), torch.from_numpy(rng.integers(2, size=8))
        found = boxes[:6] + torch.from_numpy(rng.normal(0, 0.1, (6, 7))).float()
        sample = BaseDataElement(metainfo={"frame": f"{number}", "ignore_boxes": np.zeros((0, 7), np.float32)})
        truth = InstanceData(boxes=boxes, labels=labels, difficulty=torch.zeros(8, dtype=torch.long))
        result = InstanceData(boxes=found, labels=labels[:6], scores=torch.from_numpy(rng.uniform(size=6)).float())
        if velocity:
            truth.velocity, result.velocity = boxes[:, :2] * 0.1, found[:, :2] * 0.1 + 1
        sample.set_field(truth, "gt_instances")
        sample.set_field(result, "pred_instances")
        samples.append(sample)
    return samples


def evaluate(metric, samples):
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = {"classes": CLASSES}
    for start in range(0, len(samples), 4):
        evaluator.process(data_samples=samples[start : start + 4], data_batch=None)
    return evaluator.evaluate(len(samples))


def test_overlap_figures_are_those_of_the_measure():
    samples = frames()
    got = evaluate(dict(type="visionattn.BEVMetric", iou=0.5), samples)
    measure = BevPrecision(CLASSES, 0.5)
    records = [
        measure.measure(dict(s.pred_instances.items()), dict(s.gt_instances.items()) | {"frame": s.metainfo["frame"]})
        for s in samples
    ]
    assert got == measure.summarize(records)
    assert 10 < got["AP_bev_car_easy"] < 100
    twice = evaluate(dict(type="visionattn.BEVMetric", iou=0.5), samples + samples)
    assert twice == got  # a sampler repeats frames to fill the last batch


def test_distance_figures_know_the_velocity():
    samples = frames(velocity=True)
    got = evaluate(dict(type="visionattn.BEVDistanceMetric"), samples)
    assert got["AVE_car"] == pytest.approx(2**0.5, abs=0.05)
    assert set(got) >= {"mAP", "mATE", "AP_car_0.5m"}
    assert DistancePrecision(CLASSES).distances == (0.5, 1.0, 2.0, 4.0)


def test_waymo_figures_are_those_of_the_measure():
    samples = frames()
    got = evaluate(dict(type="visionattn.WaymoMetric", iou=0.5), samples)
    measure = WaymoPrecision(CLASSES, 0.5)
    records = [
        measure.measure(dict(s.pred_instances.items()), dict(s.gt_instances.items()) | {"frame": s.metainfo["frame"]})
        for s in samples
    ]
    assert got == measure.summarize(records)
    assert 10 < got["mAPH_L1"] <= got["mAP_L1"]


def test_tables_and_the_results_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples = frames(velocity=True)
    for sample in samples:
        sample.gt_instances.attributes = torch.full((8,), 5)
        sample.set_metainfo({"to_global": np.eye(4)})
    options = dict(results_file="out/results_nusc.json", all_classes=True)
    evaluator = Evaluator(dict(type="visionattn.BEVDistanceMetric", **options))
    evaluator.dataset_meta = {"classes": CLASSES}
    evaluator.process(data_samples=samples + samples[:1], data_batch=None)
    figures = evaluator.evaluate(len(samples))
    (metric,) = evaluator.metrics
    (table,) = metric.class_table.values()
    assert table["car"]["AAE"] == figures["AAE_car"]
    assert [str(file) for file in metric.files] == ["out/results_nusc.json"]
    results = json.loads(metric.files[0].read_text())["results"]
    assert {token: len(rows) for token, rows in results.items()} == {str(number): 6 for number in range(6)}
    best = samples[0].pred_instances.scores.argmax()
    row = results["0"][0]
    assert row["translation"] == pytest.approx(samples[0].pred_instances.boxes[best, :3].tolist(), abs=1e-3)
    assert row["velocity"] == pytest.approx(samples[0].pred_instances.velocity[best].tolist(), abs=1e-3)
    with pytest.raises(ConfigError, match="`results_file` requires frames with a pose, but 0 has none"):
        evaluate(dict(type="visionattn.BEVDistanceMetric", **options), frames())


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="BEVMetric: `recall_points` must be 11 or 40, got 12"):
        evaluate(dict(type="visionattn.BEVMetric", recall_points=12), frames(1))
