"""Differences between a checkpoint and a model: errors by part, class layers, and partial loading."""

import re
from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

pytest.importorskip("mmdet")

from fixtures.published import published
from mmengine.registry import MODELS, DefaultScope

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.compat import install
from visionattn.engine.compat.pretrained import load_pretrained
from visionattn.engine.config.build import quiet
from visionattn.engine.config.load import load_config
from visionattn.engine.weights import fit
from visionattn.engine.weights.class_layers import class_layers
from visionattn.errors import CheckpointError

install()
SMALL = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4)}


def built(file: str, classes: int | None = None, **backbone):
    config = load_config(f"configs/{file}", resolve_data=False)
    config.model.backbone = {
        "type": "visionattn.Backbone", "model_name": "dinat_mini", "dilations": None, **SMALL, **backbone,
    }  # fmt: skip
    channels = [8, 16, 32, 64]
    if "neck" in config.model:
        config.model.neck.in_channels = channels
    for key in ("decode_head", "panoptic_head"):
        if key in config.model:
            config.model[key].in_channels = channels
    if "auxiliary_head" in config.model:
        config.model.auxiliary_head.in_channels = 32
    if classes:
        set_classes(config.model, classes)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(deepcopy(config.model)), config


def set_classes(part, count: int) -> None:
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("num_classes", "num_things_classes"):
                part[key] = count
            elif key == "num_stuff_classes":
                part[key] = 0
            elif key == "class_weight" and isinstance(value, list):
                part[key] = [1.0] * count + [0.1]
            else:
                set_classes(value, count)
    elif isinstance(part, list):
        for value in part:
            set_classes(value, count)


MASK_RCNN = "detection/mask_rcnn/mask-rcnn_dinat-mini_fpn_ms-3x_coco.py"


@pytest.fixture(scope="module")
def mask_rcnn():
    return built(MASK_RCNN)


@pytest.fixture
def file(mask_rcnn):
    state = {name: value.clone() for name, value in mask_rcnn[0].state_dict().items()}
    return {"meta": {"dataset_meta": {"classes": ["a", "b"]}}, "state_dict": published(state, "dinat")}


def refused(model, content, **options) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        fit(model, content, "file.pth", **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "it is unchanged"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_removed_block(mask_rcnn, file):
    model, config = mask_rcnn
    names = [name for name in file["state_dict"] if name.startswith("backbone.levels.2.blocks.1.")]
    for name in names:
        del file["state_dict"][name]
    for finetune in (False, True):
        text = refused(model, file, config=config, finetune=finetune)
        assert text.startswith("file.pth: does not fit the model: backbone: 13 of ")
        assert "backbone.net.model.levels.2.blocks.1.norm1.weight is missing from the file" in text
        assert "head" not in text.split(". ")[0]
        assert "Mask R-CNN with NAT or DiNAT of unpublished size" in text
        assert "for the 2 classes a, b" in text
        assert ("`partial`" in text) == finetune


def test_deeper_backbone(mask_rcnn, file):
    """As NAT-Tiny, which has the shapes of NAT-Mini and more blocks."""
    block = {n: v for n, v in file["state_dict"].items() if n.startswith("backbone.levels.2.blocks.1.")}
    file["state_dict"] |= {n.replace("blocks.1", "blocks.2"): v for n, v in block.items()}
    text = refused(mask_rcnn[0], file, finetune=True, config=mask_rcnn[1])
    assert "backbone: 13 in the file are unknown (backbone.levels.2.blocks.2.norm1.weight is in the file but" in text


def test_class_layer_of_another_size_in_inference(mask_rcnn, file):
    model, config = built(MASK_RCNN, 3)
    text = refused(model, file, config=config)
    assert "file.pth: does not fit the model: the file has 80 classes, and the model has 3 " in text
    assert "roi_head.bbox_head.fc_cls.weight is [81, 1024] in the file and [4, 1024] in the model" in text
    assert "roi_head.bbox_head.fc_cls, roi_head.bbox_head.fc_reg, roi_head.mask_head.conv_logits" in text
    assert "load_from" in text


def test_fine_tuning_with_other_classes(file):
    model, config = built(MASK_RCNN, 3)
    before = model.roi_head.bbox_head.fc_cls.weight.clone()
    report = fit(model, file, "file.pth", config=config, finetune=True)
    assert {name.rsplit(".", 1)[0] for name in report.new} == {
        "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits",
    }  # fmt: skip
    assert report.classes == (80, 3)
    assert report.lines()[-1].startswith(
        "new class layers (80 classes in the file, 3 in the model): roi_head.bbox_head"
    )
    assert torch.equal(model.roi_head.bbox_head.fc_cls.weight, before)
    assert torch.equal(model.neck.fpn_convs[0].conv.weight, file["state_dict"]["neck.fpn_convs.0.conv.weight"])
    name = "levels.1.blocks.0.attn.rpb"
    assert torch.equal(model.backbone.net.model.get_parameter(name), file["state_dict"][f"backbone.{name}"])


def test_only_the_class_dimension_may_differ(file):
    model, config = built(MASK_RCNN, 3)
    file["state_dict"]["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(81, 512)
    text = refused(model, file, config=config, finetune=True)
    assert "roi_head.bbox_head.fc_cls.weight is [81, 512] in the file and [4, 1024] in the model" in text
    file["state_dict"].pop("roi_head.bbox_head.fc_cls.weight")
    assert "fc_cls.weight is missing" in refused(model, file, config=config, finetune=True)


@pytest.mark.parametrize("family", ["swin", "resnet"])
def test_foreign_family(mask_rcnn, file, family):
    heads = {n: v for n, v in file["state_dict"].items() if not n.startswith("backbone.")}
    if family == "resnet":
        net = timm.create_model("resnet10t", num_classes=0)
        other = {f"backbone.{n}": v for n, v in net.state_dict().items()}
    else:
        other = {
            "backbone.patch_embed.projection.weight": torch.zeros(8, 3, 4, 4),
            "backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table": torch.zeros(169, 3),
            "backbone.stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(49, 49, dtype=torch.long),
            "backbone.norm0.weight": torch.zeros(8),
            "backbone.norm0.bias": torch.zeros(8),
        }
    text = refused(mask_rcnn[0], {"state_dict": {**other, **heads}}, config=mask_rcnn[1], finetune=True)
    assert f"Mask R-CNN with {'Swin' if family == 'swin' else 'ResNet'}" in text
    found = re.search(r"backbone: (\d+) of (\d+) tensors do not match and (\d+) in the file are unknown", text)
    assert found, text
    assert int(found[2]) - int(found[1]) in (0, 2)  # both have an output norm of level 0
    assert "head: " not in text.split(". The file")[0]


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_names_of_torchvision_and_timm(name):
    """Detectors of other projects with a model of timm, such as mmdet's ResNets."""
    size = {"embed_dim": 24, "depths": (1, 1, 1, 1)} if name.startswith("swin") else {"channels": (8, 8, 8, 8)}
    indices = (0, 1, 2, 3) if name.startswith("swin") else (1, 2, 3, 4)
    torch.manual_seed(0)
    source = timm.create_model(name, features_only=True, out_indices=indices, **size)
    state = {re.sub(r"^layers_", "layers.", n): v + 1 for n, v in source.state_dict().items()}
    model = nn.Sequential()
    model.add_module(
        "backbone", MODELS.build(dict(type="visionattn.Backbone", model_name=name, out_indices=indices, **size))
    )
    report = fit(model, {"state_dict": {f"backbone.{n}": v for n, v in state.items()}}, "r.pth")
    assert len(report.renamed) > 40
    for key, value in source.state_dict().items():
        if not key.endswith("relative_position_index"):
            assert torch.equal(model.backbone.net.state_dict()[key], value + 1), key


def test_other_head(mask_rcnn, file):
    model, config = built("detection/retinanet/retinanet_biformer-small_fpn_1x_coco.py")
    text = refused(model, file, config=config, finetune=True)
    assert "neck: 2 of 18 tensors do not match (neck.fpn_convs.4.conv.weight is missing from the file)" in text
    assert "head: 20 of 20 tensors do not match and 26 in the file are unknown" in text
    assert "Mask R-CNN with" in text


def test_classifier_for_a_detector(mask_rcnn):
    state = timm.create_model("dinat_mini", **SMALL, num_classes=4).state_dict()
    text = refused(mask_rcnn[0], {"model": state}, config=mask_rcnn[1], finetune=True)
    assert "It has only a backbone, which model.backbone.pretrained=FILE loads" in text
    report = fit(mask_rcnn[0], {"model": state}, "c.pth", partial=True)
    assert torch.equal(
        mask_rcnn[0].backbone.net.model.levels[0].blocks[0].attn.rpb, state["levels.0.blocks.0.attn.rpb"]
    )
    assert report.dropped["head.weight"] == "the model has no classifier"
    assert any(line.startswith("neck.") for line in report.unmatched)


def test_partial(mask_rcnn, file):
    model, config = mask_rcnn
    kept = model.neck.lateral_convs[0].conv.weight.clone()
    file["state_dict"]["neck.lateral_convs.0.conv.weight"] = torch.zeros(7)
    file["state_dict"] |= {"mask_iou_head.fc.weight": torch.zeros(2)}
    file["state_dict"]["neck.lateral_convs.1.conv.weight"] += 1
    report = fit(model, file, "file.pth", config=config, partial=True)
    assert report.unmatched == (
        "neck.lateral_convs.0.conv.weight is [7] in the file and [256, 8, 1, 1] in the model",
        "mask_iou_head.fc.weight is in the file but not in the model",
    )
    assert "2 tensors of file.pth and the model do not match" in report.lines()[-1]
    assert torch.equal(model.neck.lateral_convs[0].conv.weight, kept)
    assert torch.equal(model.neck.lateral_convs[1].conv.weight, file["state_dict"]["neck.lateral_convs.1.conv.weight"])
    with pytest.raises(CheckpointError, match="does not fit the model"):
        fit(model, {"state_dict": {"other": torch.zeros(1)}}, "a.pth", partial=True)


def test_plain_modules_and_wrappers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for prefix in ("_orig_mod.", "module._orig_mod.", "module."):
        report = fit(model, {"state_dict": {f"{prefix}{k}": v for k, v in model.state_dict().items()}}, "w.pth")
        assert report.lines() == []
        assert len(report.loaded) == 7
    wrong = {**model.state_dict(), "0.weight": torch.zeros(5, 3, 3, 3), "extra": torch.zeros(1)}
    wrong.pop("1.bias")
    text = refused(model, {"state_dict": wrong, "meta": {"config_name": "cells.py", "dataset_meta": {"classes": "ab"}}})
    assert "model: 2 of 7 tensors do not match and 1 in the file are unknown" in text
    assert "0.weight is [5, 3, 3, 3] in the file and [4, 3, 3, 3] in the model" in text
    assert "1.bias is missing" in text
    assert "extra is in the file but not in the model" in text
    assert "by the config cells.py" in text
    assert len(fit(model, {"state_dict": wrong}, "w.pth", partial=True).unmatched) == 3


def test_names_of_mmcvs_averaging_hook(mask_rcnn, file):
    raw = {f"ema_{n.replace('.', '_')}": torch.zeros_like(v) for n, v in file["state_dict"].items()}
    report = fit(mask_rcnn[0], {"state_dict": {**file["state_dict"], **raw}}, "ema.pth")
    assert set(report.dropped) == set(raw)
    assert "EMAHook" in report.lines()[0]


# Layers of each config of a head type; other layers must not depend on the number of classes.
CLASS_LAYERS = {
    MASK_RCNN: {"roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits"},
    "detection/cascade_rcnn/cascade-mask-rcnn_dinat-mini_fpn_ms-3x_coco.py": {
        *(f"roi_head.bbox_head.{n}.fc_cls" for n in range(3)),
        *(f"roi_head.bbox_head.{n}.fc_reg" for n in range(3)),
        *(f"roi_head.mask_head.{n}.conv_logits" for n in range(3)),
    },
    "detection/retinanet/retinanet_biformer-small_fpn_1x_coco.py": {"bbox_head.retina_cls"},
    "detection/atss/atss_dinat-mini_fpn_1x_coco.py": {"bbox_head.atss_cls"},
    "detection/dino/dino-4scale_dinat-mini_8xb2-12e_coco.py": {
        *(f"bbox_head.cls_branches.{n}" for n in range(7)),
        "dn_query_generator.label_embedding",
    },
    "segmentation/mask2former/mask2former_dinat-mini_8xb2-lsj-50e_coco-instance.py": {"panoptic_head.cls_embed"},
    "segmentation/mask2former/mask2former_dinat-mini_8xb2-lsj-50e_coco-panoptic.py": {"panoptic_head.cls_embed"},
    "segmentation/mask2former/mask2former_dinat-mini_8xb2-160k_ade20k-512x512.py": {"decode_head.cls_embed"},
    "segmentation/upernet/upernet_dinat-mini_8xb2-160k_ade20k-512x512.py": {
        "decode_head.conv_seg", "auxiliary_head.conv_seg",
    },
    "segmentation/semantic_fpn/semantic-fpn_biformer-small_8xb4-80k_ade20k-512x512.py": {"decode_head.conv_seg"},
    "segmentation/segformer/segformer-head_dinat-mini_8xb2-160k_ade20k-512x512.py": {"decode_head.conv_seg"},
    "localization/cam_dinat-mini_30e_cub-224.py": {"head.classifier"},
    "localization/sat_deit-small_30e_cub-224.py": {"sat.head"},
    "bev/scatterformer_1xb4-40e_kitti.py": {"bbox_head.heads_list.0.hm.1"},
    "bev/scatterformer_8xb4-20e_nuscenes.py": {
        "bbox_head.class_encoding", "bbox_head.heatmap_head.1", "bbox_head.prediction_head.heatmap.1",
    },
    "pose/ntu/paab_timesformer-base_8xb8-15e_ntu60-224.py": {"head"},
    "forgery/forgery_net/forgery-net_dinat-mini_4xb16-200e_brgen-512x512.py": set(),
}  # fmt: skip


@pytest.mark.parametrize("file", CLASS_LAYERS)
def test_class_layers_of_each_head(file):
    config = load_config(f"configs/{file}", resolve_data=False)
    from visionattn.engine.config.build import drop_initialisation

    drop_initialisation(config["model"])
    scope = config.get("default_scope", "mmengine")
    with torch.device("meta"), quiet(), DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(deepcopy(config.model))
    found = class_layers(model, config)
    assert {name.rsplit(".", 1)[0] for name in found} == CLASS_LAYERS[file]
    for layer in found.values():  # as if the file had two more classes
        more = tuple(size + 2 * step for size, step in zip(layer.shape, layer.step, strict=True))
        assert layer.count(more) == (layer.classes or 0) + 2


@pytest.mark.parametrize("file", ["cam", "forgery"])
def test_a_detectors_backbone_for_another_model(mask_rcnn, file):
    """The backbone of an mmdet 2.x file, loaded in part into models that have theirs elsewhere."""
    name = {
        "cam": "localization/cam_dinat-mini_30e_cub-224.py",
        "forgery": "forgery/forgery_net/forgery-net_dinat-mini_4xb16-200e_brgen-512x512.py",
    }[file]
    config = load_config(f"configs/{name}", resolve_data=False)
    config.model.backbone = {"type": "visionattn.Backbone", "model_name": "dinat_mini", "dilations": None, **SMALL}
    with quiet(), DefaultScope.overwrite_default_scope(config.get("default_scope", "mmengine")):
        model = MODELS.build(deepcopy(config.model))
    source = published({n: v + 1 for n, v in mask_rcnn[0].state_dict().items()}, "dinat")
    fit(model, {"state_dict": source}, "d.pth", partial=True)
    (backbone,) = (m for m in model.modules() if hasattr(m, "convert_published"))
    expected = mask_rcnn[0].backbone.state_dict()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, expected[key] + 1), key


def test_pretrained_for_a_whole_model_and_for_a_part(mask_rcnn, file, tmp_path):
    torch.save(file, tmp_path / "published.pth")
    _, config = mask_rcnn
    changed = {n: v + 1 if v.is_floating_point() else v for n, v in file["state_dict"].items()}
    torch.save({"state_dict": changed}, tmp_path / "published.pth")
    config = deepcopy(config)
    config.model.init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "published.pth")}
    with quiet(), DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(deepcopy(config.model))
        model.init_weights()
    assert torch.equal(model.rpn_head.rpn_cls.weight, changed["rpn_head.rpn_cls.weight"])
    assert torch.equal(model.backbone.norm2.bias, changed["backbone.norm2.bias"])
    with quiet(), DefaultScope.overwrite_default_scope("mmdet"):
        part = MODELS.build(deepcopy(config.model.backbone))
    load_pretrained(part, str(tmp_path / "published.pth"), prefix="backbone.")
    assert torch.equal(part.norm2.bias, changed["backbone.norm2.bias"])
    del changed["neck.fpn_convs.0.conv.weight"]
    torch.save({"state_dict": changed}, tmp_path / "published.pth")
    with quiet(), DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(deepcopy(config.model))
        with pytest.raises(CheckpointError, match=r"does not fit the model: neck: 1 of \d+ tensors do not match"):
            model.init_weights()
        config.model.init_cfg["partial"] = True
        model = MODELS.build(deepcopy(config.model))
        model.init_weights()
    assert torch.equal(model.rpn_head.rpn_cls.weight, changed["rpn_head.rpn_cls.weight"])


def test_mmengines_own_loader_converts_the_backbone(file):
    """Runners of other projects load with `load_state_dict`."""
    from mmengine.runner.checkpoint import load_state_dict

    model, _ = built(MASK_RCNN)
    load_state_dict(model, deepcopy(file["state_dict"]), strict=True)
    assert torch.equal(model.backbone.norm3.weight, file["state_dict"]["backbone.norm3.weight"])
    name = "levels.3.blocks.0.attn.rpb"
    assert torch.equal(model.backbone.net.model.get_parameter(name), file["state_dict"][f"backbone.{name}"])
    model.load_state_dict(deepcopy(file["state_dict"]))
    broken = {n: v for n, v in file["state_dict"].items() if not n.endswith("levels.3.blocks.0.attn.rpb")}
    with pytest.raises(RuntimeError, match=re.escape("net.model.levels.3.blocks.0.attn.rpb")):
        model.load_state_dict(broken)
