"""A trained Mask R-CNN gives the same objects and the same mask AP whether NMS and RoIAlign are the operators
here or definitions of another form: a matrix of overlaps, and bilinear interpolation as two dense matrices.

No compiled mmcv fits a current PyTorch, so its place is taken by what its operators are defined to compute.
"""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visionattn.engine.compat import ops
from visionattn.inference import Predictor


def overlap_nms(boxes, scores, iou_threshold, offset):
    """Greedy suppression from the whole matrix of overlaps, in float64."""
    b = boxes.double().numpy()
    low, high = np.maximum(b[:, None, :2], b[None, :, :2]), np.minimum(b[:, None, 2:], b[None, :, 2:])
    common = (high - low + offset).clip(min=0).prod(2)
    area = (b[:, 2:] - b[:, :2] + offset).prod(1)
    over = common > iou_threshold * (area[:, None] + area - common)
    keep = []
    for index in np.argsort(-scores.double().numpy(), kind="stable"):
        if not over[index, keep].any():
            keep.append(int(index))
    return torch.tensor(keep, dtype=torch.long)


def interpolation(start, size, bins, length):
    """``[bins, length]``: mean over a bin's samples of bilinear weights; RoIAlign is one such matrix per axis."""
    samples = max(int(np.ceil(size / bins)), 1)
    at = start + (np.arange(bins * samples) + 0.5) * size / (bins * samples)
    weight = np.maximum(0, 1 - np.abs(at.clip(0, length - 1)[:, None] - np.arange(length)))
    weight[(at < -1) | (at > length)] = 0
    return torch.from_numpy(weight.reshape(bins, samples, length).mean(1))


def matrix_roi_align(
    input, rois, output, argmax_y, argmax_x, aligned_height, aligned_width, spatial_scale, **options
):  # fmt: skip
    assert options == {"sampling_ratio": 0, "pool_mode": 1, "aligned": True}
    scaled = rois[:, 1:].double() * spatial_scale
    for target, image, (x1, y1, x2, y2) in zip(output, rois[:, 0].long(), scaled.tolist(), strict=True):
        rows = interpolation(y1 - 0.5, y2 - y1, aligned_height, input.size(2))
        columns = interpolation(x1 - 0.5, x2 - x1, aligned_width, input.size(3))
        target.copy_(rows @ input[image].double() @ columns.T)


def evaluate(predictor, folder):
    """Predictions on the validation images, and mask AP by pycocotools."""
    truth = json.loads((folder / "val.json").read_text())
    predictions = predictor([folder / "images" / image["file_name"] for image in truth["images"]])
    pairs = zip(predictions, truth["images"], strict=True)
    results = [r for p, image in pairs for r in p.to_coco(image["id"])]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "val.json"))
        measure = COCOeval(coco, coco.loadRes(results), "segm")
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    return predictions, float(measure.stats[0])


@pytest.mark.skipif(ops.is_compiled(), reason="mmcv has its own compiled operators here")
def test_mask_ap_does_not_depend_on_the_operators(mask_rcnn_run, shapes_dir, monkeypatch):
    predictor = Predictor.from_run(mask_rcnn_run, "cpu", score_thr=0.05)
    ours, ap = evaluate(predictor, shapes_dir)
    calls = []

    def counted(function):
        def call(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return call

    extension = sys.modules["mmcv._ext"]
    monkeypatch.setattr(extension, "nms", counted(overlap_nms))
    monkeypatch.setattr(extension, "roi_align_forward", counted(matrix_roi_align))
    others, other_ap = evaluate(predictor, shapes_dir)

    assert calls.count("overlap_nms") >= 2 * len(ours)  # proposals, then boxes, of each image
    assert calls.count("matrix_roi_align") >= 2
    assert ap > 0.5
    assert abs(ap - other_ap) < 1e-6
    assert sum(map(len, ours)) >= 100
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert (np.asarray(one.masks) != np.asarray(other.masks)).mean() < 1e-4
