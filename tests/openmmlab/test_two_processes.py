"""Two processes do what one does with batches twice as large, where the loss allows it, and count nothing twice."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from visionattn.openmmlab import checkpoint as checkpoints
from visionattn.openmmlab.config import load_config
from visionattn.openmmlab.curve import read_records
from visionattn.openmmlab.launch import launch
from visionattn.openmmlab.training import train

# No statistics of batches, no randomness that differs by place in the batch, and rounding that is not amplified.
SAME = {
    "model.backbone.norm_eval": True,
    "optim_wrapper.optimizer": dict(type="SGD", lr=0.02),
    "train_dataloader.num_workers": 0,
    "default_hooks.logger.interval": 1,
}
DETECTION = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs"),
]


def run_both(folder, config, options: dict, batch: int, iterations: int) -> None:
    """``one`` and ``two``: the same samples in each iteration, from one process and from two."""
    common = {**SAME, **options, "train_cfg.max_iters": iterations, "train_cfg.val_interval": iterations}
    train(load_config(config, {**common, "train_dataloader.batch_size": 2 * batch}), work_dir=folder / "one")
    halves = {**common, "train_dataloader.batch_size": batch}
    result = launch({"config": str(config), "cfg_options": halves, "work_dir": str(folder / "two")}, devices=2)
    assert result.iterations == iterations


def assert_same(folder, last: str) -> None:
    one, two = (read_records(folder / name) for name in ("one", "two"))
    losses = [[r["loss"] for r in records if "loss" in r] for records in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert len(set(losses[0])) == len(losses[0])
    first, second = (checkpoints.state_dict_of(checkpoints.read(folder / name / last)) for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-4, atol=1e-6, msg=name)
    (expected,), (measured,) = ([r["val"] for r in records if "val" in r] for records in (one, two))
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, abs=0.0005), name


def test_detection(tmp_path, coco_dir, make_config):
    """ATSS divides its losses by means over the processes; 7 images do not divide by 2 processes of 2."""
    options = {
        "model.backbone.drop_path_rate": 0.0,
        "model.bbox_head.loss_bbox.loss_weight": 2.0,
        "train_dataloader.dataset.pipeline": DETECTION,
        "val_dataloader.dataset.indices": 7,
        "param_scheduler": [],
    }
    run_both(tmp_path, make_config(tmp_path / "tiny.py", coco_dir), options, batch=2, iterations=4)
    assert_same(tmp_path, "iter_4.pth")


def test_segmentation(tmp_path, make_segmentation):
    """Cross-entropy that averages over all pixels; 3 images do not divide by 2 processes."""
    pytest.importorskip("mmseg")
    options = {
        "model.decode_head.dropout_ratio": 0.0,
        "train_dataloader.dataset.pipeline.2.prob": 0.0,
        "val_dataloader.dataset.indices": 3,
    }
    run_both(tmp_path, make_segmentation(tmp_path), options, batch=1, iterations=3)
    assert_same(tmp_path, "iter_3.pth")
