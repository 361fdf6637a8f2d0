import json

import numpy as np
import pytest
import torch
from fixtures.paths import REPO

pytest.importorskip("mmengine")
pytest.importorskip("sklearn")

from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement

from visionattn.cli import main
from visionattn.engine.weights import fit
from visionattn.errors import ConfigError, DataError
from visionattn.heads.localization.mmlab import _of_picture
from visionattn.heads.localization.mmlab_data import PackLocalizationInputs, TenCrop
from visionattn.heads.localization.samples import build_single_digits
from visionattn.heads.localization.sat import create_sat

SAT = {
    "type": "visionattn.SAT",
    "backbone": {"type": "visionattn.VisionTransformer", "model_name": "vit_tiny_patch16_224", "img_size": 64,
                 "embed_dim": 24, "depth": 3, "num_heads": 3},
    "num_classes": 5,
}  # fmt: skip
DCAL = {**SAT, "type": "visionattn.DCAL", "share": 0.3}
CAM = {
    "type": "visionattn.CAM",
    "backbone": {"type": "visionattn.Backbone", "model_name": "resnet10t", "channels": (8, 8, 8, 8), "stem_width": 4,
                 "out_indices": (2, 3)},
    "num_classes": 5,
}  # fmt: skip


def build(config, **changes):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build({**config, **changes}).eval()


def sample(label=None, size=(64, 64), original=(100, 120)):
    data = BaseDataElement(metainfo={"img_shape": size, "ori_shape": original})
    if label is not None:
        data.set_field(torch.tensor(label), "gt_label")
    return data


@pytest.mark.parametrize("config", [SAT, CAM, DCAL], ids=["SAT", "CAM", "DCAL"])
def test_modes(config):
    model = build(config)
    x = torch.randn(2, 3, 64, 64)
    losses = model(x, [sample(1), sample(4)], mode="loss")
    assert losses["loss_sa" if config is DCAL else "loss_cls"].requires_grad
    output = model(x)
    first, _ = model(x, [sample(1), sample(4)], mode="predict")
    assert torch.allclose(first.pred_scores, output.logits.softmax(1)[0])
    assert first.pred_instances.labels.item() == output.logits[0].argmax()
    x0, y0, x1, y1 = first.pred_instances.bboxes[0].tolist()
    assert 0 <= x0 < x1 <= 120
    assert 0 <= y0 < y1 <= 100
    without_label = model(x, [sample(), sample()], mode="predict")[0]
    assert "true_map" not in without_label
    with pytest.raises(ValueError, match=r"`mode` must be .* got 'other'"):
        model(x, [sample(1), sample(4)], mode="other")


def test_scores_and_map_of_dual_cross_attention():
    model = build(DCAL)
    x = torch.randn(1, 3, 64, 48)
    (found,) = model(x, [sample(size=(64, 48))], mode="predict")
    output = model.dcal(x)
    mean = (output.logits.softmax(1) + output.local_logits.softmax(1)) / 2
    torch.testing.assert_close(found.pred_scores, mean[0])
    torch.testing.assert_close(found.pred_map, output.rollout.reshape(4, 3))
    losses = model.train()(torch.randn(2, 3, 64, 64), [sample(1), sample(4)], mode="loss")
    assert {"loss_sa", "loss_glca", "loss_pwca", "accuracy"} == set(losses)


def test_map_of_the_true_class_is_not_that_of_the_best_one():
    model = build(CAM)
    x = torch.randn(1, 3, 64, 64)
    best = model(x)[0].argmax().item()
    (found,) = model(x, [sample((best + 1) % 5)], mode="predict")
    assert not torch.allclose(found.pred_map, found.true_map)
    (found,) = model(x, [sample(best)], mode="predict")
    assert torch.allclose(found.pred_map, found.true_map)


def test_grad_cam_works_in_inference_mode_and_is_finer_at_an_earlier_level():
    model = build(CAM, method="grad_cam", level=0)
    with torch.inference_mode():
        (found,) = model(torch.randn(1, 3, 64, 64), [sample(2)], mode="predict")
    assert found.pred_map.shape == (8, 8)
    assert found.pred_map.min() >= 0
    last = build(CAM, method="grad_cam")
    x = torch.randn(1, 3, 64, 64)
    (ours,) = last(x, [sample(2)], mode="predict")
    (plain,) = build(CAM)(x, [sample(2)], mode="predict")
    assert torch.allclose(ours.true_map, plain.true_map.relu() / plain.true_map.numel(), atol=1e-6)


@pytest.mark.parametrize(
    ("model_name", "options"),
    [
        ("dinat_pico", {"depths": (1, 1, 1, 1)}),
        ("biformer_tiny", {"depths": (1, 1, 1, 1), "num_regions": 4}),
        ("davit_tiny", {"depths": (1, 1, 1, 1)}),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}),
    ],
)
def test_cam_on_hierarchical_backbones(model_name, options):
    backbone = {"type": "visionattn.Backbone", "model_name": model_name, "out_indices": (3,), **options}
    model = build(CAM, backbone=backbone)
    (found,) = model(torch.randn(1, 3, 64, 96), [sample(1, (64, 96))], mode="predict")
    assert found.pred_map.shape == (2, 3)
    assert torch.isfinite(found.pred_map).all()


def test_padding_is_cut_off_a_map():
    score_map = torch.arange(6.0).reshape(1, 2, 3)
    whole = _of_picture(score_map, (32, 48), sample(size=(32, 48)))
    assert torch.equal(whole, score_map[0])
    part = _of_picture(score_map, (32, 48), sample(size=(32, 32)))
    assert part.shape == (32, 32)
    assert part[0, 0] == 0
    assert part.max() < 5, "the last column of patches is padding"


def test_ten_crops_give_the_class_and_the_middle_the_map():
    picture = np.random.default_rng(0).integers(0, 255, (80, 72, 3), dtype=np.uint8)
    results = TenCrop(64).transform({"img": picture, "ori_shape": (160, 216), "gt_label": 2})
    assert np.array_equal(results["img"], picture[8:72, 4:68])
    packed = PackLocalizationInputs().transform(results)
    model = build({**SAT, "data_preprocessor": {"type": "ImgDataPreprocessor", "mean": [99.0] * 3, "std": [50.0] * 3}})
    data = model.data_preprocessor({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})
    (found,) = model(**data, mode="predict")

    corners = [picture[y : y + 64, x : x + 64] for y, x in ((0, 0), (0, 8), (16, 0), (16, 8), (8, 4))]
    crops = np.stack([*corners, *(crop[:, ::-1] for crop in corners)]).transpose(0, 3, 1, 2)
    output = model((torch.from_numpy(crops.copy()).float() - 99) / 50)
    assert torch.allclose(found.pred_scores, output.logits.softmax(1).mean(0), atol=1e-6)
    assert not torch.allclose(found.pred_scores, output.logits.softmax(1)[4], atol=1e-4)
    assert torch.allclose(found.true_map, output.maps[4, 0], atol=1e-6), "measured in the middle"
    # what is shown covers the picture: nothing is known beyond the crop
    assert found.pred_map.shape == (80, 72)
    assert (found.pred_map[:8] == found.pred_map.min()).all()
    assert (found.pred_map[:, 68:] == found.pred_map.min()).all()
    x0, y0, x1, y1 = found.pred_instances.bboxes[0].tolist()
    assert 11 <= x0 < x1 <= 205, "4 of 72 pixels on each side, in a picture of 216"
    assert 15 <= y0 < y1 <= 145


def test_ten_crops_need_room():
    with pytest.raises(DataError, match="must be at least 64 x 64, got 72 x 60"):
        TenCrop(64).transform({"img": np.zeros((60, 72, 3), np.uint8), "ori_shape": (60, 72)})
    with pytest.raises(ConfigError, match="TenCrop: `size` must be at least 1, got 0"):
        TenCrop(0)


def test_checkpoint_of_the_authors_loads_by_its_own_names():
    source = create_sat("vit_tiny_patch16_224", 5, img_size=64, embed_dim=24, depth=3, num_heads=3)
    names = {n: n.removeprefix("vit.").replace("smoothing", "weight") for n in source.state_dict()}
    weights = {f"module.{names[n]}": v for n, v in source.state_dict().items()}
    model = build(SAT)
    assert fit(model, {"model": weights, "epoch": 3}, "best.pth").unmatched == ()
    assert torch.equal(model.sat.loc_token, source.loc_token)
    assert torch.equal(model.sat.vit.blocks[1].mlp.fc1.weight, source.vit.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (CAM, {"method": "cams"}, "`method` must be .* got 'cams'"),
        (CAM, {"level": 0}, "`level` must be -1 .* got 0"),
        (CAM, {"box_threshold": 1.5}, "`box_threshold` must be .* got 1.5"),
        (DCAL, {"share": 0.0}, r"`share` must be in \(0, 1\], got 0"),
        (DCAL, {"backbone": {**SAT["backbone"], "class_token": False, "global_pool": "avg"}}, "with a class token"),
        (SAT, {"aware_blocks": 9}, "`aware_blocks` must be .* got 9"),
        (SAT, {"backbone": CAM["backbone"]}, r"`backbone` must be a visionattn\.VisionTransformer"),
        (SAT, {"backbone": {**SAT["backbone"], "model_name": "vit_tyni"}}, "vit_tyni"),
        (SAT, {"backbone": {"type": "visionattn.VisionTransformer", "model_name": "resnet10t"}}, "resnet10t"),
    ],
)
def test_wrong_configs_are_named(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(config, **changes)


def test_train_test_and_infer_from_the_command_line(tmp_path, monkeypatch, capsys):
    from pathlib import Path

    config = REPO / "configs/localization/cam_resnet10t_digits.py"
    build_single_digits(tmp_path / "data/single-digits", train=8, val=4, test=4)
    monkeypatch.chdir(tmp_path)
    options = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=4"]
    assert main(["train", str(config), "--work-dir", "run", "--cfg-options", *options]) == 0, capsys.readouterr().err
    assert main(["test", "run", "--out", "measured", "--report"]) == 0, capsys.readouterr().err
    metrics = json.loads(Path("measured/results.json").read_text())["metrics"]
    assert {"MaxBoxAccV2", "CentreBoxV2", "GTKnownLoc", "Top1"} <= set(metrics)
    confusion = np.array(json.loads(Path("measured/analysis.json").read_text())["confusion"])
    assert 100 * np.trace(confusion) / confusion.sum() == pytest.approx(metrics["Top1"])
    masks = ["test_dataloader.dataset.ann_file=metadata/test-masks"]
    assert main(["test", "run", "--out", "pixels", "--cfg-options", *masks]) == 0, capsys.readouterr().err
    assert 0 < json.loads(Path("pixels/results.json").read_text())["metrics"]["PxAP"] <= 100
    images = ["data/single-digits/images/test"]
    assert main(["infer", *images, "--run", "run", "--out", "out", "--score-thr", "0"]) == 0, capsys.readouterr().err
    record = json.loads(Path("out/predictions.json").read_text())["images"][0]
    assert len(record["detections"]) == 1
    assert sum(record["image_scores"].values()) == pytest.approx(1, abs=1e-3)
    assert (Path("out") / record["heatmap"]).is_file()
    assert main(["infer", *images, "--run", "run", "--tta"]) == 1
    assert "--tta" in capsys.readouterr().err


def test_the_protocol_of_sat_from_the_command_line(tmp_path, monkeypatch, capsys):
    from pathlib import Path

    folder = REPO / "configs/localization"
    build_single_digits(tmp_path / "data/single-digits", train=8, val=4, test=4)
    monkeypatch.chdir(tmp_path)
    Path("protocol.py").write_text(
        f"""_base_ = "{folder / "sat_vit-pico_digits.py"}"
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(112, 112)),
    dict(type="visionattn.TenCrop", size=96),
    dict(type="visionattn.PackLocalizationInputs"),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_evaluator = [dict(type="visionattn.SATLocalizationMetric", resize=112, crop=96)]
"""
    )
    options = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=4"]
    assert main(["train", "protocol.py", "--work-dir", "run", "--cfg-options", *options]) == 0, capsys.readouterr().err
    assert main(["test", "run", "--out", "measured"]) == 0, capsys.readouterr().err
    metrics = json.loads(Path("measured/results.json").read_text())["metrics"]
    assert {"SAT_GTKnown", "SAT_Top1Loc", "SAT_Top5Loc"} <= set(metrics)
    images = ["data/single-digits/images/test"]
    assert main(["infer", *images, "--run", "run", "--out", "out", "--score-thr", "0"]) == 0, capsys.readouterr().err
    assert len(json.loads(Path("out/predictions.json").read_text())["images"]) == 4
