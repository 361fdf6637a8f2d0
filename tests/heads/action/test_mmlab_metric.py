import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")

from visionattn.heads.action.mmlab_metric import ActionMetric


def test_figures():
    metric = ActionMetric(per_class=True)
    metric.dataset_meta = {"classes": ("a", "b", "c")}
    labels, best = [0, 0, 1, 1], [0, 1, 1, 1]
    samples = [
        {"sample_idx": n, "pred_scores": torch.eye(3)[b], "gt_label": torch.tensor(label)}
        for n, (label, b) in enumerate(zip(labels, best, strict=True))
    ]
    metric.process(None, samples)
    metric.process(None, samples[:1])  # a sampler repeats it to fill a batch
    figures = metric.evaluate(4)
    assert figures == {"Top1": 75.0, "MeanClass": 75.0, "recall_a": 50.0, "recall_b": 100.0}


def test_top5_with_many_classes():
    metric = ActionMetric()
    for label in range(3):
        scores = np.arange(8.0)  # 7, 6, 5, 4, 3 are the best five
        metric.process(None, [{"video_path": str(label), "pred_scores": scores, "gt_label": label + 2}])
    assert metric.evaluate(3) == {"Top1": 0.0, "Top5": pytest.approx(200 / 3), "MeanClass": 0.0}
