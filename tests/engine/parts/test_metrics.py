"""AP over more than a hundred detections an image."""

import json

import numpy as np
import pytest

pytest.importorskip("mmdet")

from mmengine.registry import METRICS, DefaultScope

import visionattn.openmmlab  # noqa: F401
from visionattn.errors import ConfigError

CELLS = 150


@pytest.fixture
def truth(tmp_path):
    """One image with a grid of 150 cells of 6x6 pixels."""
    corners = [(8 * (i % 15), 8 * (i // 15)) for i in range(CELLS)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 128, "height": 96}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [x, y, 6, 6], "area": 36, "iscrowd": 0}
            for i, (x, y) in enumerate(corners)
        ],
    }
    path = tmp_path / "cells.json"
    path.write_text(json.dumps(content))
    return path, np.array([[x, y, x + 6, y + 6] for x, y in corners], dtype=np.float32)


def measure(truth, found, kind="visionattn.CocoMetric", **kwargs):
    path, _ = truth
    with DefaultScope.overwrite_default_scope("mmdet"):
        metric = METRICS.build(dict(type=kind, ann_file=str(path), metric="bbox", **kwargs))
    metric.dataset_meta = {"classes": ("cell",)}
    scores = np.linspace(0.9, 0.5, len(found))
    prediction = {"img_id": 1, "bboxes": found, "scores": scores, "labels": np.zeros(len(found), dtype=int)}
    metric.results = [({"img_id": 1, "width": 128, "height": 96}, prediction)]
    return metric.compute_metrics(metric.results)


def test_ap_counts_all_detections_of_a_crowded_image(truth, capsys):
    theirs = measure(truth, truth[1], kind="mmdet.CocoMetric")
    assert theirs["bbox_mAP"] == pytest.approx(100 / 150, abs=0.02)
    assert theirs["bbox_mAP_50"] == 1.0
    capsys.readouterr()
    ours = measure(truth, truth[1])
    assert ours == {**theirs, "bbox_mAP": 1.0}
    first = next(line for line in capsys.readouterr().out.splitlines() if "Average Precision" in line)
    assert "maxDets=1000" in first
    assert first.endswith("= 1.000")


def test_the_last_of_proposal_nums_counts(truth):
    figures = measure(truth, truth[1], proposal_nums=(1, 10, 75))
    assert figures["bbox_mAP"] == pytest.approx(0.5, abs=0.02)
    assert figures["bbox_mAP"] == figures["bbox_mAP_50"]


def test_few_detections_give_the_figures_of_mmdet(truth):
    rng = np.random.default_rng(0)
    found = truth[1][:80] + rng.normal(0, 0.8, (80, 4)).astype(np.float32)
    ours = measure(truth, found)
    assert ours == measure(truth, found, kind="mmdet.CocoMetric")
    assert 0 < ours["bbox_mAP"] < ours["bbox_mAP_50"]
    assert measure(truth, truth[1], kind="mmdet.CocoMetric")["bbox_mAP"] < 0.7, "mmdet's own is as it was"


@pytest.mark.parametrize("numbers", [(100, 300), (300, 100, 1000), (0, 10, 100), (10, 10, 100)])
def test_wrong_proposal_nums_are_named(truth, numbers):
    with pytest.raises(ConfigError, match="proposal_nums"):
        measure(truth, truth[1], proposal_nums=numbers)
