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

from visionattn.inference import Predictor
from visionattn.openmmlab import ops
from visionattn.openmmlab.config import load_config
from visionattn.openmmlab.training import train

CONFIG = """
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmdet"
custom_data = dict(root={root!r}, train_ann="train.json", val_ann="val.json")
model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True,
        pad_mask=True, pad_size_divisor=32),
    backbone=dict(type="visionattn.Backbone", model_name="dinat_pico", depths=(1, 2, 1, 1), out_indices=(0, 1, 2)),
    neck=dict(type="FPN", in_channels=[32, 64, 128], out_channels=32, num_outs=3),
    rpn_head=dict(
        type="RPNHead", in_channels=32, feat_channels=32,
        anchor_generator=dict(type="AnchorGenerator", scales=[3], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0)),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=32, featmap_strides=[4, 8, 16], finest_scale=14),
        bbox_head=dict(
            type="Shared2FCBBoxHead", in_channels=32, fc_out_channels=64, roi_feat_size=7, num_classes=2,
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=True,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0)),
        mask_roi_extractor=dict(
            type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=32, featmap_strides=[4, 8, 16], finest_scale=14),
        mask_head=dict(
            type="FCNMaskHead", num_convs=1, in_channels=32, conv_out_channels=32, num_classes=2,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0))),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.6, neg_iou_thr=0.3, min_pos_iou=0.3,
                          match_low_quality=True, ignore_iof_thr=-1),
            sampler=dict(type="RandomSampler", num=64, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1, pos_weight=-1, debug=False),
        rpn_proposal=dict(nms_pre=100, max_per_img=50, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5,
                          match_low_quality=True, ignore_iof_thr=-1),
            sampler=dict(type="RandomSampler", num=32, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True),
            mask_size=14, pos_weight=-1, debug=False)),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=100, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=30, mask_thr_binary=0.5)))
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]
meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="CocoDataset", pipeline=[*load, dict(type="PackDetInputs")]))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CocoDataset", test_mode=True, pipeline=[
        *load, dict(type="Resize", scale=(64, 64), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=meta_keys)]))
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", metric="segm")
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=False, max_iters=60, val_interval=1000)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=0.002, weight_decay=0.01), clip_grad=dict(max_norm=5.0))
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=60))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
"""


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory, coco_dir):
    """A predictor that finds most rectangles, after some seconds of training."""
    folder = tmp_path_factory.mktemp("mask_rcnn")
    (folder / "mask_rcnn.py").write_text(CONFIG.replace("{root!r}", repr(str(coco_dir))))
    train(load_config(folder / "mask_rcnn.py"), work_dir=folder / "run")
    return Predictor.from_run(folder / "run", "cpu", score_thr=0.05)


def evaluate(predictor, coco_dir):
    """Predictions on the validation images, and mask AP by pycocotools."""
    truth = json.loads((coco_dir / "val.json").read_text())
    predictions = predictor([coco_dir / "images" / image["file_name"] for image in truth["images"]])
    pairs = zip(predictions, truth["images"], strict=True)
    results = [r for p, image in pairs for r in p.to_coco(image["id"])]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(coco_dir / "val.json"))
        measure = COCOeval(coco, coco.loadRes(results), "segm")
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    return predictions, float(measure.stats[0])


@pytest.mark.skipif(ops.is_compiled(), reason="mmcv has its own compiled operators here")
def test_mask_ap_does_not_depend_on_the_operators(trained, coco_dir, monkeypatch):
    ours, ap = evaluate(trained, coco_dir)
    calls = []

    def counted(function):
        def call(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return call

    extension = sys.modules["mmcv._ext"]
    monkeypatch.setattr(extension, "nms", counted(overlap_nms))
    monkeypatch.setattr(extension, "roi_align_forward", counted(matrix_roi_align))
    others, other_ap = evaluate(trained, coco_dir)

    assert calls.count("overlap_nms") >= 2 * len(ours)  # proposals, then boxes, of each image
    assert calls.count("matrix_roi_align") >= 2
    assert ap > 0.2
    assert abs(ap - other_ap) < 1e-6
    assert sum(map(len, ours)) >= 10
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert (np.asarray(one.masks) != np.asarray(other.masks)).mean() < 1e-4
