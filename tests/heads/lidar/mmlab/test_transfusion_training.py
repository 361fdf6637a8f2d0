"""A small ScatterFormer with a TransFusion head: some training steps on simulated scans."""

import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from visionattn.engine.config.build import quiet
from visionattn.engine.config.load import load_config
from visionattn.heads.lidar.simulate.rays import Lidar
from visionattn.heads.lidar.simulate.samples import build_lidar_samples


def test_the_losses_of_the_small_config_decrease(tmp_path):
    build_lidar_samples(tmp_path / "scans", train=2, val=1, lidar=Lidar(beams=16, azimuths=256), extent=10.0)
    config = load_config("scatterformer-pico-transfusion_30e_lidar-samples", resolve_data=False)
    near = [-9.6, -9.6, -3.0, 9.6, 9.6, 1.0]
    config.model.point_cloud_range = near
    dataset = config.train_dataloader.dataset
    dataset.data_root = str(tmp_path / "scans")
    # The same two scans in each step, without augmentation.
    dataset.pipeline = [{**step, "point_cloud_range": near} if "Range" in step["type"] else step
                        for step in dataset.pipeline if "Range" in step["type"] or "Pack" in step["type"]]  # fmt: skip
    init_default_scope("mmengine")
    torch.manual_seed(0)
    with quiet():
        batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
        model = MODELS.build(config.model)
        optimizer = build_optim_wrapper(model, config.optim_wrapper)
    assert all(len(sample.gt_instances) >= 3 for sample in batch["data_samples"])
    model.train()
    totals = []
    for _ in range(6):
        losses = model.train_step(batch, optimizer)
        totals.append({name: value.item() for name, value in losses.items()})
    first, last = totals[0], totals[-1]
    assert set(first) >= {"loss_heatmap", "loss_cls", "loss_bbox", "loss_iou", "loss_diou"}
    assert last["loss"] < 0.5 * first["loss"]
    assert last["loss_heatmap"] < 0.5 * first["loss_heatmap"]
    assert last["loss_bbox"] < 0.8 * first["loss_bbox"]
    found = model.eval().test_step(batch)
    assert all(set(sample.pred_instances.keys()) == {"boxes", "scores", "labels"} for sample in found)
