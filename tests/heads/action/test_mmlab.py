"""Action recognition with pose in mmengine: modes of the model, official checkpoints, and the commands end to end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fixtures.paths import REPO

pytest.importorskip("mmengine")
pytest.importorskip("cv2")

from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement

from visionattn.cli import main
from visionattn.engine.weights import fit
from visionattn.errors import ConfigError
from visionattn.heads.action.heads import joint_loss
from visionattn.heads.action.samples import LIMBS, build_moving_figures

CONFIGS = REPO / "configs/pose/moving_figures"
BACKBONE = {
    "type": "visionattn.VideoTransformer", "model_name": "timesformer_tiny_patch16_224", "img_size": 32,
    "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_frames": 2,
}  # fmt: skip


def build(backbone=None, **options):
    torch.manual_seed(0)
    config = {"type": "visionattn.PoseRecognizer", "num_classes": 5, "backbone": {**BACKBONE, **(backbone or {})}}
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build({**config, **options}).eval()


def sample(label=1, views=1, masks=True, joints=3):
    data = BaseDataElement(metainfo={"sample_idx": 0})
    data.set_field(torch.tensor(label), "gt_label")
    if masks:
        data.set_field(torch.rand(views, 2, 4, 4) > 0.5, "pose_mask")
        data.set_field(torch.rand(views, 2, 4, 4, joints) > 0.5, "joint_targets")
    return data


def test_views_are_joined():
    model = build({"paab": (2,)})
    clips, samples = torch.randn(2, 3, 3, 2, 32, 32), [sample(1, 3), sample(4, 3)]
    logits = model(clips, samples)
    assert logits.shape == (2, 3, 5)
    expected = logits.softmax(2).mean(1)
    found = model(clips, samples, mode="predict")
    torch.testing.assert_close(torch.stack([f.pred_scores for f in found]), expected)
    model.views = "max"
    highest = logits.softmax(2).amax(1)
    found = model(clips, samples, mode="predict")
    torch.testing.assert_close(found[1].pred_scores, highest[1] / highest[1].sum())


def test_losses():
    model = build({"paat": (1, 2), "num_joints": 3}, joint_weight=2.0)
    clips, samples = torch.randn(2, 1, 3, 2, 32, 32), [sample(1), sample(4)]
    losses = model(clips, samples, mode="loss")
    logits = model(clips, samples)[:, 0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 4]))
    torch.testing.assert_close(losses["loss_cls"], expected)
    _, joints = model.backbone(clips[:, 0])
    targets = torch.cat([s.joint_targets for s in samples])
    torch.testing.assert_close(losses["loss_joint"], 2 * joint_loss(joints, targets))
    assert "loss_joint" not in build()(clips, samples, mode="loss")
    sum(v for k, v in losses.items() if k.startswith("loss")).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_masks_reach_the_backbone_and_may_be_absent_in_testing_alone():
    model = build({"paab": (2,)})
    clips = torch.randn(1, 1, 3, 2, 32, 32)
    with_pose, without = model(clips, [sample()]), model(clips, [sample(masks=False)])
    assert not torch.equal(with_pose, without)
    plain = build()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if ".pose_blocks." not in n})
    torch.testing.assert_close(without, plain(clips))
    with pytest.raises(ConfigError, match="PAAB: samples must have a pose_mask"):
        model(torch.cat([clips, clips]), [sample(), sample(masks=False)])
    with pytest.raises(ConfigError, match="PAAB: samples must have a pose_mask"):
        model.train()(clips, [sample(masks=False)], mode="loss")


def test_wrong_configs():
    with pytest.raises(ConfigError, match=r"`num_joints` of the backbone must be .* 3, got 17"):
        build({"paat": (1,)})(torch.randn(1, 1, 3, 2, 32, 32), [sample()], mode="loss")
    with pytest.raises(ConfigError, match=r"`model_name` must be one of .* got 'resnet18'"):
        build({"model_name": "resnet18"})
    with pytest.raises(ConfigError, match=r"`paab` must be block numbers .* got \(7,\)"):
        build({"paab": (7,)})
    with pytest.raises(ConfigError, match="`views` must be 'mean' or 'max', got 'sum'"):
        build(views="sum")


def test_preprocessor():
    preprocessor = build().data_preprocessor
    clips = [torch.randint(0, 255, (1, 3, 2, 8, 8), dtype=torch.uint8) for _ in range(2)]
    found = preprocessor({"inputs": clips, "data_samples": []})["inputs"]
    torch.testing.assert_close(found, (torch.stack(clips) / 255 - 0.45) / 0.225)
    clips[1] = clips[1][..., :4]
    with pytest.raises(ConfigError, match="clips of a batch must have one shape"):
        preprocessor({"inputs": clips, "data_samples": []})


def test_checkpoint_of_the_authors():
    """Under the names of PoseAwareVT, its classifier too."""
    names = {k: v for k, v in BACKBONE.items() if k not in ("type", "model_name")}
    source = timm.create_model("timesformer_tiny_patch16_224", **names, paab=(2,), num_classes=5).eval()
    weights = {f"model.{name}": value for name, value in source.state_dict().items()}
    model = build({"paab": (2,)})
    assert fit(model, {"model_state": 1, "state_dict": weights}, "paab.pyth").unmatched == ()
    clip, data = torch.randn(1, 1, 3, 2, 32, 32), sample()
    torch.testing.assert_close(model(clip, [data])[:, 0], source(clip[:, 0], data.pose_mask))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with data and a run of the PAAB config on it, cut to a few iterations."""
    home = tmp_path_factory.mktemp("home")
    build_moving_figures(home / "data/moving-figures", train=16, val=4, test=8, figures=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = f"{home}/data/moving-figures/"
    data = [f"{loader}_dataloader.dataset.data_root={root}" for loader in ("train", "val", "test")]
    options = ["train_cfg.max_iters=6", "train_cfg.val_interval=6", "train_dataloader.batch_size=4",
               "model.backbone.embed_dim=16", "default_hooks.checkpoint.interval=6"]  # fmt: skip
    config = CONFIGS / "paab-timesformer_figures.py"
    assert main(["train", str(config), "--work-dir", str(home / "run"), "--cfg-options", *data, *options]) == 0
    torch.set_num_threads(threads)
    return home


def test_test_command(run, capsys):
    assert main(["test", str(run / "run"), "--out", str(run / "test")]) == 0
    metrics = json.loads((run / "test/results.json").read_text())["metrics"]
    assert {"Top1", "MeanClass"} | {f"recall_{name}" for name in LIMBS} == set(metrics)
    assert metrics["MeanClass"] == pytest.approx(np.mean([metrics[f"recall_{name}"] for name in LIMBS]))
    assert "Top1" in capsys.readouterr().out


def test_infer_command(run, tmp_path, capsys):
    """With keypoints by the videos' names, without them, and with inputs that cannot be read."""
    videos, poses = run / "data/moving-figures/videos/test", run / "data/moving-figures/poses/test"
    arguments = ["infer", str(videos / "00000.avi"), str(videos / "00001.avi"), "--run", str(run / "run")]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--points", str(poses)]) == 0
    records = json.loads((tmp_path / "a/predictions.json").read_text())["images"]
    assert [set(r["class_scores"]) for r in records] == [set(LIMBS)] * 2
    for record in records:
        assert record["with_pose"]
        assert sum(record["class_scores"].values()) == pytest.approx(1, abs=1e-3)
        assert record["action"] == max(record["class_scores"], key=record["class_scores"].get)
        assert (tmp_path / "a" / record["overlay"]).stat().st_size > 500
    assert "actions:" in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    without = json.loads((tmp_path / "b/predictions.json").read_text())["images"]
    assert not without[0]["with_pose"]
    assert without[0]["class_scores"] != records[0]["class_scores"]
    shutil.copy(videos / "00000.avi", tmp_path / "nopose.avi")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "picture.png").write_bytes(b"no picture")
    inputs = [str(tmp_path / name) for name in ("nopose.avi", "broken.mp4", "picture.png")]
    command = ["infer", *inputs, "--run", str(run / "run"), "--out", str(tmp_path / "c"), "--points", str(poses)]
    assert main(command) == 1
    errors = [r["error"] for r in json.loads((tmp_path / "c/predictions.json").read_text())["images"]]
    for part in ("has no keypoints for it", "broken.mp4", "is not a video"):
        assert any(part in error for error in errors)


def test_infer_refuses_what_does_not_apply(run, capsys):
    video = str(run / "data/moving-figures/videos/test/00000.avi")
    assert main(["infer", video, "--run", str(run / "run"), "--tta"]) != 0
    assert "--tta is not supported for action models" in capsys.readouterr().err


def test_labels_beyond_the_classes_stop_training(run, tmp_path, capsys):
    root = run / "data/moving-figures"
    (tmp_path / "train.csv").write_text("test/00000.avi,test/00000.npy,9\n")
    options = [f"train_dataloader.dataset.data_root={root}", f"val_dataloader.dataset.data_root={root}",
               f"train_dataloader.dataset.ann_file={tmp_path / 'train.csv'}"]  # fmt: skip
    config = CONFIGS / "timesformer_figures.py"
    assert main(["train", str(config), "--work-dir", str(tmp_path / "w"), "--cfg-options", *options]) != 0
    assert "label must be below the number of classes 4, got 9" in capsys.readouterr().err
