"""The parts of ``results.json`` beside the metrics."""

import hashlib
import types

import pytest
import torch

pytest.importorskip("visionattn.openmmlab")
pytest.importorskip("mmseg")

from mmseg.evaluation import IoUMetric

from visionattn.engine.train import record


def test_sha256(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    expected = hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert record.file_sha256(tmp_path / "a") == expected
    monkeypatch.delattr(hashlib, "file_digest", raising=False)  # Python 3.10 does not have it
    assert record.file_sha256(tmp_path / "a") == expected


def test_class_iou_is_what_the_mean_is_of():
    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": ("a", "b", "absent")}
    found = record.keep_class_iou(types.SimpleNamespace(test_evaluator=types.SimpleNamespace(metrics=[metric])))
    samples = []
    for predicted, true in (([[0, 0], [1, 1]], [[0, 1], [1, 255]]), ([[0, 0], [0, 0]], [[0, 0], [0, 0]])):
        maps = {"pred_sem_seg": {"data": torch.tensor([predicted])}, "gt_sem_seg": {"data": torch.tensor([true])}}
        samples.append(maps)
    metric.process({}, samples)
    mean = metric.evaluate(2)["mIoU"]
    # a: 5 right, 6 predicted, 5 true; b: 1 right, 1 predicted, 2 true
    assert found == {
        "a": {"IoU": 83.33, "Acc": 100.0, "pixels": 71.43},
        "b": {"IoU": 50.0, "Acc": 50.0, "pixels": 28.57},
        "absent": {"IoU": -1.0, "Acc": -1.0, "pixels": 0.0},
    }
    assert mean == pytest.approx((83.33 + 50) / 2, abs=0.01)


def test_versions():
    found = record.versions()
    assert found["torch"].startswith(str(torch.__version__).split("+")[0])
    assert {"timm", "mmdet", "mmsegmentation"} <= set(found)
