"""The analysis of forgery detection, against scikit-learn and the metric."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("sklearn")

from sklearn.metrics import roc_curve

from visionattn.heads.forgery.analysis import ForgeryAnalysis, roc
from visionattn.heads.forgery.mmlab_metric import ForgeryMetric
from visionattn.inference.analysis import TestData

RESULT = SimpleNamespace(files=[], annotations={})


def samples(folder, count: int = 12):
    rng = np.random.default_rng(1)
    for index in range(count):
        truth = np.zeros((1, 24, 20), np.int64)
        if index % 3:
            truth[:, 2 : 6 + index, 1:9] = 1
        truth[:, -1] = 255
        heat = np.clip(0.4 * (truth == 1) + rng.random(truth.shape) * 0.6, 0, 1).astype(np.float32)
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), np.full((24, 20, 3), 90, np.uint8))
        yield {
            "gt_sem_seg": {"data": torch.from_numpy(truth)}, "forgery_prob": {"data": torch.from_numpy(heat)},
            "forgery_score": torch.tensor(rng.random()), "img_path": str(path),
        }  # fmt: skip


def test_curves(tmp_path):
    analysis = ForgeryAnalysis(TestData(("authentic", "forged"), None, {}))
    given = list(samples(tmp_path))
    for sample in given:
        analysis.add(sample)
    findings = analysis.findings(RESULT)
    for threshold in (0.1, 0.5, 0.62, 0.9):
        metric = ForgeryMetric(threshold=threshold)
        metric.process({}, given)
        measured = metric.evaluate(len(given))
        assert findings.figures["pixel_f1"][round(100 * threshold)] == pytest.approx(measured["pixel_f1"], abs=2e-5)
    assert findings.figures["image_auc"] == pytest.approx(measured["image_auc"], abs=1e-5)
    best = int(np.argmax(findings.figures["pixel_f1"])) / 100
    assert findings.thresholds == {"image": findings.figures["image_threshold"], "pixels": best}
    assert findings.sections[-1].blocks[-1].count("<figure>") == 12


def test_roc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = np.round(rng.random(200), 2), rng.random(200) < 0.4  # with ties
    false, true, threshold, at = roc(scores, labels)
    expected = roc_curve(labels, scores, drop_intermediate=False)
    assert false.tolist() == pytest.approx(expected[0].tolist())
    assert true.tolist() == pytest.approx(expected[1].tolist())
    above = scores > threshold
    assert (above[labels].mean(), above[~labels].mean()) == pytest.approx((true[at], false[at]))
    assert true[at] - false[at] == pytest.approx((expected[1] - expected[0]).max())


@pytest.mark.parametrize("forged", [True, False])
def test_images_of_one_kind(tmp_path, forged):
    analysis = ForgeryAnalysis(TestData(("authentic", "forged"), None, {}))
    for index, sample in enumerate(samples(tmp_path)):
        if bool(index % 3) == forged:
            analysis.add(sample)
    findings = analysis.findings(RESULT)
    assert findings.thresholds["image"] is None
    assert (findings.thresholds["pixels"] is None) != forged
    assert "needs forged and authentic images" in findings.sections[0].blocks[0]
