"""Measuring a checkpoint."""

import collections
import hashlib
import json

import pytest

pytest.importorskip("mmdet")

from visionattn.engine.config.load import load_config
from visionattn.engine.train.testing import machine, per_class_ap, test
from visionattn.engine.train.train import train
from visionattn.errors import CheckpointError, ConfigError


def truth(coco_dir) -> dict:
    return json.loads((coco_dir / "val.json").read_text())


def test_per_class_ap_of_perfect_and_half_wrong_detections(tmp_path, coco_dir):
    annotations = truth(coco_dir)["annotations"]
    found = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in annotations]
    (tmp_path / "p.json").write_text(json.dumps(found))
    assert per_class_ap(coco_dir / "val.json", tmp_path / "p.json", "bbox") == {
        "red": {"AP": 1.0, "AP50": 1.0},
        "blue": {"AP": 1.0, "AP50": 1.0},
    }
    # boxes of blue cover 0.64 of the true ones: right at IoU 0.50, 0.55, 0.60 of the ten thresholds
    for box in (f for f in found if f["category_id"] == 2):
        x, y, w, h = box["bbox"]
        box["bbox"] = [x, y, w * 0.8, h * 0.8]
    (tmp_path / "p.json").write_text(json.dumps(found))
    result = per_class_ap(coco_dir / "val.json", tmp_path / "p.json", "bbox")
    assert result["red"]["AP"] == 1.0
    assert result["blue"] == {"AP": 0.3, "AP50": 1.0}


def test_nothing_found(tmp_path, coco_dir):
    (tmp_path / "p.json").write_text("[]")
    assert per_class_ap(coco_dir / "val.json", tmp_path / "p.json", "bbox")["red"] == {"AP": 0.0, "AP50": 0.0}


def test_results_are_those_of_the_validation(tmp_path, config_file, coco_dir):
    result = train(load_config(config_file, {"train_cfg.max_iters": 4}), work_dir=tmp_path / "run")
    measured = test(load_config(config_file), result.checkpoint, tmp_path / "out")
    assert measured.metrics == result.metrics
    assert measured.images == 8
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["metrics"] == measured.metrics
    assert record["checkpoint_iteration"] == 4
    assert set(record["per_class"]["bbox"]) == {"red", "blue"}
    assert record["machine"] == machine()
    assert record["checkpoint_sha256"] == hashlib.sha256(result.checkpoint.read_bytes()).hexdigest()
    assert record["dataset"]["type"] == "CocoDataset"
    assert record["dataset"]["ann_file"].endswith("val.json")
    counts = collections.Counter(a["category_id"] for a in truth(coco_dir)["annotations"])
    assert record["dataset"]["objects"] == {"red": counts[1], "blue": counts[2]}
    assert record["versions"]["torch"]
    assert record["averaged_weights"] is False
    predictions = json.loads((tmp_path / "out" / "predictions.bbox.json").read_text())
    assert set(predictions[0]) >= {"image_id", "category_id", "bbox", "score"}


def test_what_testing_needs(tmp_path, config_file):
    config = load_config(config_file)
    with pytest.raises(CheckpointError, match="checkpoint file does not exist"):
        test(config, tmp_path / "none.pth", tmp_path / "out")
    config.test_evaluator = None
    with pytest.raises(ConfigError, match="has no key 'test_evaluator'"):
        test(config, tmp_path / "none.pth", tmp_path / "out")


test.__test__ = False  # the function under test, not a test
