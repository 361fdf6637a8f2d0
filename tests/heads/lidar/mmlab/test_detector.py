"""The detector of point clouds as a model of mmengine."""

import math

import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, InstanceData

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.build import building
from visionattn.engine.config.load import load_config
from visionattn.engine.train.curve import read_records
from visionattn.engine.weights import fit
from visionattn.errors import CheckpointError, ConfigError
from visionattn.heads.lidar.mmlab.detector import PointDataPreprocessor, SparseBackbone
from visionattn.heads.lidar.rotated_boxes import bev_iou


@pytest.fixture(scope="module")
def config(pillars, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("configs")
    (folder / "p.py").write_text(pillars.config_text(folder))
    return load_config(folder / "p.py").model


def items(pillars, seeds, empty=False):
    samples = []
    for seed in seeds:
        points, boxes = pillars.make_scan(seed)
        sample = BaseDataElement()
        truth = InstanceData(
            boxes=torch.tensor([b["box"] for b in boxes]).reshape(-1, 7),
            labels=torch.tensor([pillars.CLASSES.index(b["class"]) for b in boxes]),
        )
        if empty:
            points, truth = points[:0], truth[torch.zeros(len(truth), dtype=torch.bool)]
        sample.set_field(truth, "gt_instances")
        samples.append({"inputs": {"points": torch.from_numpy(points)}, "data_samples": sample})
    return samples


def batch(pillars, seeds):
    return pseudo_collate(items(pillars, seeds))


def test_training_left_a_detector_that_finds_blocks(pillars_run):
    (measured,) = [r["val"] for r in read_records(pillars_run) if r.get("val")]
    assert measured["mAP_bev_all"] > 80
    assert measured["mAP_3d_all"] > 70


def test_modes(pillars, config):
    torch.manual_seed(0)
    model = MODELS.build(config)
    data = model.data_preprocessor(batch(pillars, (0, 1)), True)
    voxels = data["inputs"]["voxels"]
    assert voxels.batch_size == 2
    assert voxels.grid == (4, 32, 64)
    before = [s.gt_instances.boxes.clone() for s in data["data_samples"]]
    losses = model(**data, mode="loss")
    assert set(losses) == {"loss_heatmap", "loss_bbox", "loss_iou", "loss_diou"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(torch.equal(a, s.gt_instances.boxes) for a, s in zip(before, data["data_samples"], strict=True))
    maps = model(**data)
    assert maps[0]["hm"].shape == (2, 2, 16, 32)
    found = model.eval()(**data, mode="predict")
    assert [set(s.pred_instances.keys()) for s in found] == [{"boxes", "scores", "labels"}] * 2


@pytest.mark.parametrize("seeds", [((0, True),), ((0, True), (1, False))], ids=["alone", "beside another"])
def test_frames_without_points_or_boxes(pillars, config, seeds):
    model = MODELS.build(config)
    data = pseudo_collate([item for seed, empty in seeds for item in items(pillars, (seed,), empty)])
    ready = model.data_preprocessor(data, True)
    losses = model(**ready, mode="loss")
    assert all(math.isfinite(float(v.detach())) for v in losses.values())
    assert len(model(**ready, mode="predict")) == len(seeds)


def test_predictions_of_a_sample_do_not_depend_on_its_batch(pillars, pillars_run):
    model = MODELS.build(load_config(next(pillars_run.glob("*.py"))).model)
    checkpoint = next(pillars_run.glob("epoch_*.pth"))
    fit(model, checkpoints.read(checkpoint), checkpoint)
    model.eval()
    alone = model.test_step(batch(pillars, (1001,)))[0].pred_instances
    together = model.test_step(batch(pillars, (1000, 1001)))[1].pred_instances
    assert len(alone) > 0
    assert torch.allclose(alone.boxes, together.boxes, atol=1e-4)
    truth = batch(pillars, (1001,))["data_samples"][0].gt_instances
    assert (bev_iou(truth.boxes, alone.boxes).amax(1) > 0.5).float().mean() >= 0.5


def test_columns_through_tanh():
    points = torch.tensor([[0.5, 0.5, 0.5, 3.0, -2.0]])
    before = points.clone()
    plain = PointDataPreprocessor([0, 0, 0, 4, 4, 4], [1, 1, 1])
    squashed = PointDataPreprocessor([0, 0, 0, 4, 4, 4], [1, 1, 1], tanh_columns=(3, 4))
    data = {"inputs": {"points": [points]}, "data_samples": None}
    assert torch.equal(plain(data)["inputs"]["voxels"].points, points)
    got = squashed(data)["inputs"]["voxels"].points
    assert torch.allclose(got[0, 3:], torch.tensor([3.0, -2.0]).tanh())
    assert torch.equal(points, before)


def test_networks_in_the_axes_of_nuscenes_sensor(pillars, config):
    """A network that reads x right, y forward finds what one in x forward, y left does in rotated data."""
    torch.manual_seed(0)
    square = {**config, "point_cloud_range": [-6.4, -6.4, -2.0, 6.4, 6.4, 2.0]}
    head = {**config["bbox_head"], "velocity": True}
    plain = MODELS.build({**square, "bbox_head": head}).eval()
    turned = MODELS.build({**square, "bbox_head": head, "x_right": True, "data_preprocessor": {"intensity_max": 4}})
    turned.load_state_dict(plain.state_dict())
    ahead, right = items(pillars, (0, 1)), items(pillars, (0, 1))
    for a, b in zip(ahead, right, strict=True):
        for item in (a, b):  # within the range, and with a speed
            kept = item["inputs"]["points"][:, :2].abs().amax(1) < 6.3
            item["inputs"]["points"] = item["inputs"]["points"][kept]
            truth = item["data_samples"].gt_instances
            truth = truth[truth.boxes[:, :2].abs().amax(1) < 6]
            truth.velocity = truth.boxes[:, 3:5].clone()
            item["data_samples"].set_field(truth, "gt_instances")
        points, truth = b["inputs"]["points"], b["data_samples"].gt_instances
        points[:, :2] = torch.stack([-points[:, 1], points[:, 0]], 1)  # x right is -y, y forward is x
        points[:, 3] *= 4
        truth.boxes[:, :2] = torch.stack([-truth.boxes[:, 1], truth.boxes[:, 0]], 1)
        truth.boxes[:, 6] += math.pi / 2
        truth.velocity = torch.stack([-truth.velocity[:, 1], truth.velocity[:, 0]], 1)
    given, wanted = pseudo_collate(ahead), pseudo_collate(right)
    plain.train(), turned.train()
    losses = [m(**m.data_preprocessor(d, True), mode="loss") for m, d in ((plain, wanted), (turned, given))]
    for name, value in losses[0].items():
        assert losses[1][name].item() == pytest.approx(value.item(), rel=1e-4), name
    plain.eval(), turned.eval()
    for a, b in zip(turned.test_step(given), plain.test_step(wanted), strict=True):
        a, b = a.pred_instances, b.pred_instances
        assert len(a) == len(b) > 0
        assert torch.allclose(a.boxes[:, :2], torch.stack([b.boxes[:, 1], -b.boxes[:, 0]], 1), atol=1e-4)
        assert torch.allclose(a.velocity, torch.stack([b.velocity[:, 1], -b.velocity[:, 0]], 1), atol=1e-4)
        assert torch.allclose((a.boxes[:, 6] - b.boxes[:, 6] + math.pi / 2).cos(), torch.ones(len(a)), atol=1e-4)
        assert (a.boxes[:, 6].abs() <= math.pi + 1e-5).all()
    with pytest.raises(ConfigError, match="must be symmetric and the same for x and y"):
        MODELS.build({**config, "x_right": True})


def test_openpcdet_names(pillars, config):
    model = MODELS.build(config)
    own = model.state_dict()
    official = {}
    for name, value in own.items():
        first, _, rest = name.partition(".")
        part = {"voxel_encoder": "vfe", "neck": "backbone_2d", "bbox_head": "dense_head"}.get(first)
        official[f"{part}.{rest}" if part else f"backbone_3d.{rest}"] = value + 1
    official["global_step"] = torch.zeros(1)
    renamed = model.own_names(official)
    for name in (n for n in own if not n.startswith("backbone.")):
        assert torch.equal(renamed[name], own[name] + 1)
    assert "global_step" not in renamed
    assert all(n.startswith("backbone.net.") for n in set(renamed) - set(own))
    assert model.own_names(own) is own


def test_what_does_not_fit_is_named(config):
    with pytest.raises(ConfigError, match="whole number of voxels"):
        MODELS.build({**config, "voxel_size": [0.3, 0.4, 1.0]})
    with pytest.raises(ConfigError, match=r"`nms_iou` must have .* 2 classes, got 3"), building("p.py"):
        MODELS.build({**config, "bbox_head": {**config["bbox_head"], "decoding": {"nms_iou": [0.1, 0.2, 0.3]}}})
    with pytest.raises(ConfigError, match="registered with timm"):
        SparseBackbone("scatterfromer")
    with pytest.raises(ConfigError, match="must be a model of voxels"):
        SparseBackbone("resnet10t")


def test_a_failed_model_is_an_error(pillars, config):
    model = MODELS.build(config).eval()
    model.bbox_head.heads_list[0]["dim"][-1].bias.data[0] = torch.nan
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        model.test_step(batch(pillars, (0,)))


def test_bfloat16_autocast(pillars, config):
    torch.manual_seed(0)
    model = MODELS.build(config)
    data = model.data_preprocessor(batch(pillars, (0, 1)), True)
    plain = model(**data, mode="loss")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(**data, mode="loss")
    for name, value in plain.items():
        assert half[name].dtype == torch.float32
        assert float(half[name].detach()) == pytest.approx(float(value.detach()), rel=0.1, abs=0.05)
