"""The analysis of localization, by hand."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")

from visionattn.heads.localization.analysis import LocalizationAnalysis
from visionattn.inference.analysis import TestData


def test_confusion_and_worst_images(tmp_path):
    analysis = LocalizationAnalysis(TestData(("cat", "dog"), None, {}))
    given = [  # truth, score of a dog, predicted box
        ("right", 1, 0.9, (0, 0, 20, 20)),
        ("loose", 1, 0.6, (0, 0, 20, 40)),
        ("wrong", 0, 0.7, (0, 0, 20, 20)),
        ("worst", 0, 0.8, (0, 0, 20, 20)),
    ]
    for name, label, score, box in given:
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((40, 40, 3), np.uint8))
        analysis.add({
            "pred_scores": torch.tensor([1 - score, score]), "gt_label": torch.tensor(label),
            "pred_instances": {"bboxes": torch.tensor([box], dtype=torch.float32)},
            "true_boxes": np.array([[0, 0, 20, 20]]), "img_path": str(tmp_path / f"{name}.png"),
        })  # fmt: skip
    findings = analysis.findings(SimpleNamespace(files=[], annotations={}))
    assert findings.figures == {"confusion": [[0, 2], [0, 2]], "mean_iou": pytest.approx(0.875)}
    worst = findings.sections[-1].blocks[-1]
    assert [worst.count(f"{name}.png") > 0 for name, *_ in given] == [False, True, True, True]
    assert worst.index("worst.png") < worst.index("wrong.png") < worst.index("loose.png")
    assert "dog, predicted dog 0.600, IoU 0.500" in worst
