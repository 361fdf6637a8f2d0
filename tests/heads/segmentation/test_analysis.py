"""The analysis of semantic and panoptic maps, against counts by hand and the evaluators of OpenMMLab."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from visionattn.data.panoptic import PanopticStats, id2rgb
from visionattn.heads.segmentation.analysis import PanopticAnalysis, SemanticAnalysis
from visionattn.inference.analysis import TestData

CLASSES = ("sky", "road", "never")
RESULT = SimpleNamespace(files=[], annotations={})


def semantic_samples(folder, count: int = 30):
    rng = np.random.default_rng(0)
    for index in range(count):
        truth = rng.integers(0, 2, (20, 30))
        found = np.where(rng.random(truth.shape) < index / count, 1 - truth, truth)
        truth[:2] = 255
        path = folder / f"{index:02d}.png"
        cv2.imwrite(str(path), np.full((20, 30, 3), 90, np.uint8))
        yield {
            "gt_sem_seg": {"data": torch.from_numpy(truth)[None]},
            "pred_sem_seg": {"data": torch.from_numpy(found)[None]},
            "img_path": str(path),
        }


def test_pixels(tmp_path):
    from mmseg.evaluation import IoUMetric

    analysis, metric = SemanticAnalysis(TestData(CLASSES, None, {})), IoUMetric()
    metric.dataset_meta = {"classes": CLASSES}
    samples = list(semantic_samples(tmp_path))
    (tmp_path / "29.png").unlink()  # an image that no longer exists is named, not drawn
    for sample in samples:
        analysis.add(sample)
        metric.process({}, [sample])
    expected = np.zeros((3, 3), int)
    for sample in samples:
        truth, found = (sample[key]["data"].numpy() for key in ("gt_sem_seg", "pred_sem_seg"))
        for row in range(3):
            for column in range(3):
                expected[row, column] += int(((truth == row) & (found == column)).sum())
    common, union, _, labels = (np.asarray(sum(part)) for part in zip(*metric.results, strict=True))
    counts = np.array(analysis.findings(RESULT).figures["confusion"])
    assert (counts == expected).all()
    assert np.diag(counts).tolist() == common.tolist()
    assert counts.sum(1).tolist() == labels.tolist()
    assert (counts.sum(0) + counts.sum(1) - np.diag(counts)).tolist() == union.tolist()
    worst = analysis.findings(RESULT).sections[-1].blocks[-1]
    assert worst.index("29.png") < worst.index("28.png") < worst.index("27.png")
    assert worst.count("<figure>") == 24
    assert "00.png" not in worst  # it has no error
    assert worst.count("data:image/webp") == 2 * 23
    assert "29.png: the file does not exist" in worst


def test_no_labeled_pixels():
    analysis = SemanticAnalysis(TestData(CLASSES, None, {}))
    ignored = torch.full((1, 4, 4), 255)
    analysis.add({"gt_sem_seg": {"data": ignored}, "pred_sem_seg": {"data": torch.zeros_like(ignored)}})
    (section,) = analysis.findings(RESULT).sections
    assert "no labeled pixels" in section.blocks[0]


def test_segments(tmp_path):
    """Two segments of one class, of which one is found; a segment of class 0 in the corner is code 0."""
    truth = np.zeros((20, 20), np.int32)
    truth[:, :10], truth[:10, 10:], truth[10:, 10:] = 7, 8, 9
    cv2.imwrite(str(tmp_path / "a.png"), id2rgb(truth)[..., ::-1])
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    known = [{"id": 7, "category_id": 30}, {"id": 8, "category_id": 10}, {"id": 9, "category_id": 10}]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": known}],
        "categories": [{"id": 30, "name": "sky"}, {"id": 10, "name": "road"}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    config = {"test_evaluator": [{"ann_file": str(tmp_path / "panoptic.json"), "seg_prefix": str(tmp_path)}]}
    found = np.zeros((20, 20), np.int64)  # the sky, code 0
    found[:10, 10:], found[10:, 10:] = 1001, 3  # 3 is no class
    analysis = PanopticAnalysis(TestData(("sky", "road", "never"), None, config))
    image = {"img_id": 1, "img_path": str(tmp_path / "a.jpg")}
    analysis.add({**image, "pred_panoptic_seg": {"sem_seg": torch.from_numpy(found)[None]}})
    findings = analysis.findings(RESULT)
    expected = PanopticStats()
    expected.add_image(
        truth,
        known,
        np.where(found == 3, 0, found + 1),
        [{"id": 1, "category_id": 30}, {"id": 1002, "category_id": 10}],
    )
    assert findings.figures["segments"] == {
        "sky": {"matched": 1, "extra": 0, "missed": 0, "PQ": 1.0},
        "road": {"matched": 1, "extra": 0, "missed": 1, "PQ": pytest.approx(2 / 3)},
        "never": {"matched": 0, "extra": 0, "missed": 0, "PQ": None},
    }
    assert expected[10].quality()["pq"] == pytest.approx(2 / 3)
    assert findings.sections[-1].blocks[-1].count("data:image/webp") == 2
    assert "0 predicted segments without a match, 1 of 3 true ones" in findings.sections[-1].blocks[-1]
