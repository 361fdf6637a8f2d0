"""Whole checkpoints under the authors' names: the same outputs through every way of loading them."""

import json
import re
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import nn

pytest.importorskip("mmdet")

from fixtures.published import detectron2, published, published_backbone
from mmengine.registry import MODELS, DefaultScope

import visionattn.openmmlab
from visionattn.cli import main
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.compat import install
from visionattn.engine.config.build import drop_initialisation, quiet
from visionattn.engine.config.load import load_config
from visionattn.engine.model import load_model
from visionattn.engine.train.train import train
from visionattn.engine.weights import fit
from visionattn.errors import CheckpointError
from visionattn.inference import Predictor

install()
NAMES = Path(__file__).resolve().parents[2] / "parity" / "names"
BACKBONES = {
    "nat": ("dinat", "nat_mini", dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 4), layer_scale=0.5)),
    "dinat": (
        "dinat", "dinat_mini",
        dict(embed_dim=16, depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 4), dilations=[[2], [1, 2], [1], [1]]),
    ),
    "dinat_s": ("dinat", "dinat_s_tiny", dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 4))),
    "biformer": ("biformer", "biformer_tiny", dict(embed_dim=16, depths=(1, 1, 1, 1), head_dim=16, layer_scale=0.5)),
    "davit": (
        "davit", "davit_tiny",
        dict(embed_dims=(16, 32, 64, 128), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)),
    ),
}  # fmt: skip
HEADS = {
    "mask_rcnn": "detection/mask_rcnn/mask-rcnn_dinat-mini_fpn_ms-3x_coco.py",
    "cascade": "detection/cascade_rcnn/cascade-mask-rcnn_dinat-mini_fpn_ms-3x_coco.py",
    "retinanet": "detection/retinanet/retinanet_davit-tiny_fpn_ms-1x_coco.py",
    "upernet": "segmentation/upernet/upernet_dinat-mini_8xb2-160k_ade20k-512x512.py",
    "semantic_fpn": "segmentation/semantic_fpn/semantic-fpn_biformer-small_8xb4-80k_ade20k-512x512.py",
}
CASES = [
    ("nat", "mask_rcnn"), ("dinat", "cascade"), ("dinat_s", "upernet"), ("biformer", "semantic_fpn"),
    ("davit", "retinanet"),
]  # fmt: skip


@pytest.mark.parametrize("family", ["dinat", "biformer", "davit"])
def test_the_tables_agree_with_recorded_names(family):
    """`fixtures.published` against names and shapes recorded from the authors' detection backbones."""
    recorded = json.loads((NAMES / f"{'dinat_mini' if family == 'dinat' else family}_detection.json").read_text())
    size = {
        "dinat": ("dinat_mini", {}),
        "biformer": ("biformer_tiny", dict(embed_dim=32, depths=(1, 1, 1, 1), head_dim=32)),
        "davit": ("davit_tiny", dict(embed_dims=(16, 32, 64, 96), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 3))),
    }[family]
    blocks = [re.match(r"(?:main_blocks|stages)\.2\.(\d)\.", name) for name in recorded]
    if family != "dinat":
        size[1]["depths"] = (1, 1, len({m[1] for m in blocks if m}), 1)
    with torch.device("meta"):
        backbone = visionattn.openmmlab.Backbone(size[0], **size[1])
    found = {published_backbone(n, family): list(v.shape) for n, v in backbone.state_dict().items()}
    assert {n: s for n, s in found.items() if not n.endswith("num_batches_tracked")} == recorded


def small_config(head: str, family: str, folder: Path):
    config = load_config(f"configs/{HEADS[head]}", resolve_data=False)
    _, name, size = BACKBONES[family]
    out = tuple(config.model.backbone.get("out_indices", (0, 1, 2, 3)))
    config.model.backbone = {"type": "visionattn.Backbone", "model_name": name, "out_indices": out, **size}
    with torch.device("meta"), DefaultScope.overwrite_default_scope(config.default_scope):
        channels = MODELS.build(deepcopy(config.model.backbone)).num_features
    if "neck" in config.model:
        config.model.neck.in_channels = channels
        config.model.neck.out_channels = config.model.neck.out_channels
    if "decode_head" in config.model and "neck" not in config.model:
        config.model.decode_head.in_channels = channels
    if "auxiliary_head" in config.model:
        config.model.auxiliary_head.in_channels = channels[2]
    config.test_dataloader.dataset.pipeline[1] = {"type": "Resize", "scale": (96, 64), "keep_ratio": True}
    if head in ("mask_rcnn", "cascade"):
        config.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
        config.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    path = folder / "small.py"
    config.dump(str(path))
    return path, config


def perturbed(config) -> nn.Module:
    """The model with all parameters and statistics changed, so that each of them matters."""
    torch.manual_seed(1)
    model_config = deepcopy(config.model)
    drop_initialisation(model_config)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(model_config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.02 * torch.rand_like(tensor) if name.endswith("var") else 0.02 * torch.randn_like(tensor))
    return model


def meta(config) -> dict:
    return {"epoch": 36, "mmdet_version": "2.18.1", "config": "model = dict()"}


IMAGE = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)


def same(a, b) -> None:
    for name in ("boxes", "scores", "labels", "masks", "semantic"):
        first, second = getattr(a, name), getattr(b, name)
        if first is None:
            assert second is None
        elif name == "masks":
            assert len(first) == len(second)
            for one, other in zip(first, second, strict=True):
                np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        else:
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("family", "head"), CASES)
def test_predictions_are_bit_equal(family, head, tmp_path):
    path, config = small_config(head, family, tmp_path)
    model = perturbed(config)
    if family == "biformer":
        # what `load_official` adopts from checkpoints of the authors' channels-last model
        model.backbone.net.model.apply_settings({"padding": "input", "global_lepe": "input"})
    state = {n: v.clone() for n, v in model.state_dict().items()}
    file = published(state, BACKBONES[family][0])
    if head == "retinanet":  # the authors' backbone has an output norm that RetinaNet does not use
        assert "backbone.norm0.weight" not in file
        file |= {"backbone.norm0.weight": torch.ones(16), "backbone.norm0.bias": torch.zeros(16)}
    assert len(file.keys() - state.keys()) > 50
    torch.save({"meta": meta(config), "state_dict": file}, tmp_path / "published.pth")
    checkpoints.write({"meta": meta(config), "state_dict": state}, tmp_path / "ours.pth")
    loaded = load_model(path, tmp_path / "published.pth")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    report = loaded.weights
    assert len(report.renamed) >= len(state) // 3
    assert len(report.lines()) == 1
    assert "renamed, such as backbone." in report.lines()[0]
    assert ("backbone.norm0.weight" in report.dropped) == (head == "retinanet")
    if family == "biformer":
        reference = load_model(path, tmp_path / "ours.pth")
        for name, module in reference.model.named_modules():
            other = loaded.model.get_submodule(name)
            if hasattr(module, "set_padding"):
                module.set_padding(other.padding)
            for setting in ("lepe_of", "pad_partial"):
                if hasattr(module, setting):
                    setattr(module, setting, getattr(other, setting))
        expected = Predictor.from_model(reference, score_thr=0.0)(IMAGE)
    else:
        expected = Predictor(path, tmp_path / "ours.pth", score_thr=0.0)(IMAGE)
    found = Predictor(path, tmp_path / "published.pth", score_thr=0.0)(IMAGE)
    same(found, expected)
    assert (found.semantic is not None) or len(found.boxes) > 0


def test_infer(tmp_path, capsys):
    path, config = small_config("upernet", "dinat", tmp_path)
    model = perturbed(config)
    torch.save({"meta": meta(config), "state_dict": published(model.state_dict(), "dinat")}, tmp_path / "published.pth")
    cv2.imwrite(str(tmp_path / "image.png"), IMAGE)
    arguments = ["--config", str(path), "--checkpoint", str(tmp_path / "published.pth")]
    assert main(["infer", str(tmp_path / "image.png"), *arguments, "--out", str(tmp_path / "out")]) == 0
    assert re.search(
        r"published\.pth: loaded \d+ tensors; \d+ renamed, such as backbone\.patch_embed", capsys.readouterr().out
    )
    written = cv2.imread(str(next((tmp_path / "out" / "maps").iterdir())), cv2.IMREAD_UNCHANGED)
    checkpoints.write({"state_dict": model.state_dict()}, tmp_path / "ours.pth")
    np.testing.assert_array_equal(written, Predictor(path, tmp_path / "ours.pth")(IMAGE).semantic)


def test_auxiliary_head_that_the_config_removes(tmp_path):
    path, config = small_config("upernet", "dinat", tmp_path)
    torch.save({"state_dict": published(perturbed(config).state_dict(), "dinat")}, tmp_path / "published.pth")
    del config.model["auxiliary_head"]
    config.dump(str(path))
    report = load_model(path, tmp_path / "published.pth").weights
    assert set(report.dropped.values()) == {"an auxiliary head is only used in training"}
    assert all(name.startswith("auxiliary_head.") for name in report.dropped)


def test_interpolated_biases(tmp_path):
    """A file with kernel 7 for a model with kernel 11, which `load_official` interpolates."""
    path, config = small_config("upernet", "dinat", tmp_path)
    file = published(perturbed(config).state_dict(), "dinat")
    config.model.backbone.kernel_size = 11
    config.dump(str(path))
    torch.save({"state_dict": file}, tmp_path / "published.pth")
    loaded = load_model(path, tmp_path / "published.pth")
    assert len(loaded.weights.interpolated) == 5
    assert "5 interpolated (bicubic, 13x13 to 21x21)" in loaded.weights.lines()[0]
    net = timm.create_model("dinat_mini", num_classes=0, **{**BACKBONES["dinat"][2], "kernel_size": 11})
    visionattn.backbones.load_official(net, file)
    rpb = loaded.model.backbone.net.model.levels[1].blocks[1].attn.rpb
    assert torch.equal(rpb, net.levels[1].blocks[1].attn.rpb)


def test_training_from_a_published_file(config_file, tmp_path, capsys):
    """``load_from`` with a file of the same detector for other classes, and one that fits in part only."""
    options = {
        "train_cfg.max_iters": 1, "val_dataloader": None, "val_cfg": None, "val_evaluator": None,
        "model.backbone": dict(type="visionattn.Backbone", model_name="dinat_mini", out_indices=(1, 2, 3),
                               **BACKBONES["dinat"][2]),
        "model.neck.in_channels": [32, 64, 128], "optim_wrapper.optimizer.lr": 0.0,
        "optim_wrapper.optimizer.weight_decay": 0.0,
    }  # fmt: skip
    config = load_config(config_file, options)
    other = deepcopy(config)
    other.model.bbox_head.num_classes = 7
    state = {n: v.clone() for n, v in perturbed(other).state_dict().items()}
    file = published(state, "dinat") | {"backbone.norm0.weight": torch.ones(16), "backbone.norm0.bias": torch.ones(16)}
    torch.save({"state_dict": file}, tmp_path / "published.pth")
    config.load_from = str(tmp_path / "published.pth")
    result = train(deepcopy(config), work_dir=tmp_path / "run", ema=0.4)
    shown = " ".join(capsys.readouterr().out.split())
    assert "new class layers (7 classes in the file, 2 in the model): bbox_head.atss_cls" in shown
    assert "renamed, such as backbone.patch_embed.proj.0.weight to backbone.net." in shown
    trained = checkpoints.read(result.checkpoint)["state_dict"]
    for name, value in trained.items():
        if "atss_cls" not in name and "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, state[name], msg=name)
    assert trained["bbox_head.atss_cls.weight"].shape[0] == 2

    del file["backbone.levels.1.blocks.1.mlp.fc1.weight"]
    file["neck.lateral_convs.0.conv.weight"] = torch.zeros(3)
    torch.save({"state_dict": file}, tmp_path / "published.pth")
    with pytest.raises(CheckpointError) as caught:
        train(deepcopy(config), work_dir=tmp_path / "part")
    text = str(caught.value)
    assert re.search(r"backbone: 1 of \d+ tensors do not match \(backbone\.net\..*fc1\.weight is missing", text)
    assert re.search(r"neck: 1 of \d+ tensors do not match", text)
    assert "bbox_head.atss_cls" not in text
    result = train(deepcopy(config), work_dir=tmp_path / "part", partial=True)
    assert "2 tensors of" in " ".join(capsys.readouterr().out.split())
    trained = checkpoints.read(result.checkpoint)["state_dict"]
    torch.testing.assert_close(trained["backbone.norm2.weight"], state["backbone.norm2.weight"])


def test_evaluation_of_a_published_file(config_file, tmp_path, capsys):
    options = {
        "model.backbone": dict(type="visionattn.Backbone", model_name="davit_tiny", out_indices=(1, 2, 3),
                               **BACKBONES["davit"][2]),
        "model.neck.in_channels": [32, 64, 128],
    }  # fmt: skip
    config = load_config(config_file, options)
    state = published(perturbed(config).state_dict(), "davit")
    torch.save({"meta": {"CLASSES": ("red", "blue")}, "state_dict": state}, tmp_path / "published.pth")
    config.dump(str(tmp_path / "davit.py"))
    assert main(["test", str(tmp_path / "davit.py"), str(tmp_path / "published.pth")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "renamed, such as backbone.patch_embeds.0.proj.weight to backbone.net.stem.conv.weight" in shown
    assert load_model(tmp_path / "davit.py", tmp_path / "published.pth").classes == ("red", "blue")


FULL = [
    "detection/mask_rcnn/mask-rcnn_nat-small_fpn_ms-3x_coco.py",
    "detection/mask_rcnn/mask-rcnn_davit-base_fpn_ms-3x_coco.py",
    "detection/mask_rcnn/mask-rcnn_biformer-base_fpn_1x_coco.py",
    "detection/cascade_rcnn/cascade-mask-rcnn_dinat-base_fpn_ms-3x_coco.py",
    "detection/cascade_rcnn/cascade-mask-rcnn_dinat-s-large_fpn_ms-3x_coco.py",
    "detection/retinanet/retinanet_davit-small_fpn_ms-3x_coco.py",
    "segmentation/upernet/upernet_dinat-large_8xb2-160k_ade20k-640x640.py",
    "segmentation/upernet/upernet_dinat-s-tiny_8xb2-160k_ade20k-512x512.py",
    "segmentation/semantic_fpn/semantic-fpn_biformer-small_8xb4-80k_ade20k-512x512.py",
    "segmentation/mask2former/mask2former_dinat-large_8xb2-lsj-100e_coco-instance.py",
    "segmentation/mask2former/mask2former_dinat-large_8xb2-90k_cityscapes-panoptic-512x1024.py",
    "segmentation/mask2former/mask2former_dinat-large_8xb2-160k_ade20k-640x640.py",
]


@pytest.mark.parametrize("file", FULL)
def test_names_and_shapes_of_full_size_models(file):
    config = load_config(f"configs/{file}", resolve_data=False)
    drop_initialisation(config["model"])
    with torch.device("meta"), quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(deepcopy(config.model))
    state = model.state_dict()
    if "mask2former" in file:
        prefix = "panoptic_head." if hasattr(model, "panoptic_head") else "decode_head."
        content = {"model": detectron2(state, prefix)}
    else:
        family = next(name for name in ("davit", "biformer", "dinat") if name in file or name == "dinat")
        content = {"state_dict": published(state, family)}
    given = content.get("model") or content["state_dict"]
    assert not any(".net." in name for name in given)
    report = fit(model, content, "published.pth", config=config)
    assert set(report.loaded) == set(state)
    assert not report.unmatched
    assert not report.new
