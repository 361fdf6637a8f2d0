"""Mask2Former of detectron2: the outputs equal those of transformers' implementation with the same weights."""

import re
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmdet")

from fixtures.published import published_backbone
from mmengine.registry import MODELS, DefaultScope

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.compat import install
from visionattn.engine.config.build import quiet
from visionattn.engine.config.load import load_config
from visionattn.engine.weights import fit
from visionattn.engine.weights.mask2former import class_order
from visionattn.errors import CheckpointError

install()

# Layers of transformers' model, and of detectron2's.
HEAD = (
    (r"model\.pixel_level_module\.decoder\.(adapter|layer)_1\.0\.", r"pixel_decoder.\1_1."),
    (r"model\.pixel_level_module\.decoder\.(adapter|layer)_1\.1\.", r"pixel_decoder.\1_1.norm."),
    (r"model\.pixel_level_module\.decoder\.input_projections\.", "pixel_decoder.input_proj."),
    (r"model\.pixel_level_module\.decoder\.level_embed", "pixel_decoder.transformer.level_embed"),
    (r"model\.pixel_level_module\.decoder\.mask_projection\.", "pixel_decoder.mask_features."),
    (r"model\.pixel_level_module\.decoder\.encoder\.", "pixel_decoder.transformer.encoder."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(encoder\.layers\.\d+)\.fc([12])\.", r"\1.linear\2."),
    (r"model\.transformer_module\.decoder\.layernorm\.", "predictor.decoder_norm."),
    (
        r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.",
        r"predictor.mask_embed.layers.\1.",
    ),
    (r"model\.transformer_module\.queries_embedder\.", "predictor.query_embed."),
    (r"model\.transformer_module\.queries_features\.", "predictor.query_feat."),
    (r"model\.transformer_module\.level_embed\.", "predictor.level_embed."),
    (r"model\.transformer_module\.input_projections\.", "predictor.input_proj."),
    (r"class_predictor\.", "predictor.class_embed."),
)
LAYER = (
    (r"cross_attn\.", "cross_attention_layers.{}.multihead_attn."),
    (r"cross_attn_layer_norm\.", "cross_attention_layers.{}.norm."),
    (r"self_attn\.", "self_attention_layers.{}.self_attn."),
    (r"self_attn_layer_norm\.", "self_attention_layers.{}.norm."),
    (r"fc([12])\.", r"ffn_layers.{}.linear\1."),
    (r"final_layer_norm\.", "ffn_layers.{}.norm."),
)


def detectron2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head of transformers' model as detectron2 saves it."""
    result, packed = {"criterion.empty_weight": torch.ones(3)}, {}
    for name, value in state.items():
        if ".pixel_level_module.encoder." in name or name.startswith("criterion."):
            continue
        if found := re.match(r"model\.transformer_module\.decoder\.layers\.(\d+)\.(.+)", name):
            number, rest = found.groups()
            if part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest):
                packed[number, part[2], part[1]] = value
                continue
            for pattern, target in LAYER:
                if re.match(pattern, rest):
                    rest = re.sub(f"^{pattern}", target.format(number), rest)
                    break
            name = f"predictor.transformer_{rest}"
        else:
            for pattern, target in HEAD:
                name = re.sub(pattern, target, name)
        result[f"sem_seg_head.{name}"] = value
    for number, kind in {key[:2] for key in packed}:
        start = f"sem_seg_head.predictor.transformer_self_attention_layers.{number}.self_attn"
        result[f"{start}.in_proj_{kind}"] = torch.cat([packed[number, kind, part] for part in "qkv"])
    return result


def reference(classes: int, project: bool, seed: int) -> nn.Module:
    """A small Mask2Former of transformers with a Swin and perturbed weights."""
    transformers = pytest.importorskip("transformers")
    swin = transformers.SwinConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, feature_size=64, mask_feature_size=64, hidden_dim=64, encoder_feedforward_dim=96,
        encoder_layers=2, decoder_layers=5, num_attention_heads=4, dropout=0.0, dim_feedforward=128, num_queries=9,
        num_labels=classes, enforce_input_projection=project,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # offsets, norms and biases start at constants
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


def ours(kind: str, channels: list[int], things: int, stuff: int, project: bool, model_name: str = "dinat_pico", **net):
    """The model of a config, reduced to the size of `reference`."""
    file = {
        "instance": "mask2former_dinat-mini_8xb2-lsj-50e_coco-instance.py",
        "panoptic": "mask2former_dinat-mini_8xb2-lsj-50e_coco-panoptic.py",
        "semantic": "mask2former_dinat-mini_8xb2-160k_ade20k-512x512.py",
    }[kind]
    config = load_config(f"configs/segmentation/mask2former/{file}", resolve_data=False)
    model, attention = config.model, {"embed_dims": 64, "num_heads": 4}
    model.backbone = {"type": "visionattn.Backbone", "model_name": model_name, "dilations": None, **net}
    head = model.decode_head if kind == "semantic" else model.panoptic_head
    if kind == "semantic":
        head.num_classes = things + stuff
    else:
        head.num_things_classes = model.panoptic_fusion_head.num_things_classes = things
        head.num_stuff_classes = model.panoptic_fusion_head.num_stuff_classes = stuff
    head.update(
        in_channels=channels, feat_channels=64, out_channels=64, num_queries=9, enforce_decoder_input_project=project
    )
    head.loss_cls.class_weight = [1.0] * (things + stuff) + [0.1]
    for encoding in (head.positional_encoding, head.pixel_decoder.positional_encoding):
        encoding.num_feats = 32
    layer = head.pixel_decoder.encoder.layer_cfg
    head.pixel_decoder.encoder.num_layers = 2
    layer.self_attn_cfg.update(attention)
    layer.ffn_cfg.update(embed_dims=64, feedforward_channels=96)
    head.transformer_decoder.num_layers = 4
    layer = head.transformer_decoder.layer_cfg
    layer.self_attn_cfg.update(attention)
    layer.cross_attn_cfg.update(attention)
    layer.ffn_cfg.update(embed_dims=64, feedforward_channels=128)
    with quiet(), DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(deepcopy(model)).eval(), config


def head_of(model: nn.Module) -> nn.Module:
    return model.decode_head if hasattr(model, "decode_head") else model.panoptic_head


@pytest.mark.parametrize(
    ("kind", "things", "stuff", "project"),
    [("instance", 5, 0, False), ("panoptic", 3, 4, True), ("semantic", 4, 2, False)],
)
def test_outputs_equal_those_of_transformers(kind, things, stuff, project):
    expected = reference(things + stuff, project, seed=len(kind))
    model, _ = ours(kind, [16, 32, 64, 128], things, stuff, project)
    weights = detectron2_names(expected.state_dict())
    backbone = {f"backbone.{published_backbone(n, 'dinat')}": v for n, v in model.backbone.state_dict().items()}
    report = fit(model, {"model": {**backbone, **weights}, "iteration": 3}, "model_final.pth")
    assert set(report.loaded) == set(model.state_dict())
    assert list(report.dropped) == ["criterion.empty_weight"]
    image = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = expected.model.pixel_level_module.encoder(image).feature_maps
        theirs = expected(image)
        classes, masks = head_of(model)(list(maps), None)
    assert theirs.masks_queries_logits.std() > 0.1
    assert theirs.class_queries_logits.std() > 0.1
    torch.testing.assert_close(classes[-1], theirs.class_queries_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masks[-1], theirs.masks_queries_logits, atol=1e-4, rtol=1e-4)


class Encoder(nn.Module):
    """A backbone of this package in transformers' model."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor):
        from transformers.modeling_outputs import BackboneOutput

        return BackboneOutput(feature_maps=self.backbone(image))


def test_whole_model_with_dinat_under_the_names_of_its_authors():
    """Starting from other weights of the backbone, which the file has under the authors' names."""
    size = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4)}
    source, _ = ours("panoptic", [16, 32, 64, 128], 2, 3, False, **size)
    with torch.no_grad():
        for parameter in source.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    expected = reference(5, False, seed=3)
    expected.model.pixel_level_module.encoder = Encoder(source.backbone)
    weights = {f"backbone.{published_backbone(n, 'dinat')}": v for n, v in source.backbone.state_dict().items()}
    weights |= detectron2_names(expected.state_dict())
    model, _ = ours("panoptic", [16, 32, 64, 128], 2, 3, False, **size)
    fit(model, {"model": weights, "__author__": "x"}, "model_final.pth")
    image = torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = expected(image)
        classes, masks = model.panoptic_head(list(model.backbone(image)), None)
    torch.testing.assert_close(classes[-1], theirs.class_queries_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masks[-1], theirs.masks_queries_logits, atol=1e-4, rtol=1e-4)


def test_first_version_of_the_names():
    """``static_query``, and a pixel decoder at the top of the head."""
    expected = reference(5, False, seed=1)
    model, _ = ours("instance", [16, 32, 64, 128], 5, 0, False)
    weights = {f"backbone.{published_backbone(n, 'dinat')}": v for n, v in model.backbone.state_dict().items()}
    new = detectron2_names(expected.state_dict())
    old = {n.replace("query_feat", "static_query").replace("head.pixel_decoder.", "head."): v for n, v in new.items()}
    fit(model, {"model": {**weights, **new}}, "new.pth")
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    other, _ = ours("instance", [16, 32, 64, 128], 5, 0, False)
    fit(other, {"model": {**weights, **old}}, "old.pth")
    assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())


CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


def test_panoptic_classes_follow_the_names():
    """Files for Cityscapes have the order of the dataset, with the things last."""
    config = load_config(
        "configs/segmentation/mask2former/mask2former_dinat-large_8xb2-90k_cityscapes-panoptic-512x1024.py",
        resolve_data=False,
    )
    expected = reference(19, False, seed=1)
    model, _ = ours("panoptic", [16, 32, 64, 128], 8, 11, False)
    weights = {f"backbone.{published_backbone(n, 'dinat')}": v for n, v in model.backbone.state_dict().items()}
    report = fit(model, {"model": {**weights, **detectron2_names(expected.state_dict())}}, "c.pth", config=config)
    assert "panoptic_head.cls_embed is reordered to the classes of the config" in report.lines()[0]
    names = config.test_dataloader.dataset.metainfo.classes
    for label, name in enumerate(names):
        row = expected.class_predictor.weight[CITYSCAPES.index(name)]
        assert torch.equal(model.panoptic_head.cls_embed.weight[label], row), name
    assert torch.equal(model.panoptic_head.cls_embed.bias[-1], expected.class_predictor.bias[-1])


def test_order_of_ade20k():
    """Against the names of mmseg, which have the order of the dataset."""
    from mmdet.datasets.ade20k import ADE20KPanopticDataset
    from mmseg.datasets import ADE20KDataset

    ours = ADE20KPanopticDataset.METAINFO["classes"]
    order = class_order(ours, 100, 50)
    assert sorted(order) == list(range(150))
    theirs = [ADE20KDataset.METAINFO["classes"][row].strip() for row in order]
    same = sum(a.split(",")[0] == b.split(",")[0] for a, b in zip(ours, theirs, strict=True))
    assert same > 110  # the others are spelled differently: "windowpane" and "window"
    assert class_order(ours[:100], 100, 0) is None
    assert class_order(("person", "wall"), 1, 1) is None


def test_names_of_mmdet_2():
    model, _ = ours("panoptic", [16, 32, 64, 128], 2, 3, False)
    state = model.state_dict()
    old = {}
    for name, value in state.items():
        name = re.sub(r"(encoder\.layers\.\d)\.self_attn\.", r"\1.attentions.0.", name)
        name = re.sub(r"(transformer_decoder\.layers\.\d)\.cross_attn\.", r"\1.attentions.0.", name)
        name = re.sub(r"(transformer_decoder\.layers\.\d)\.self_attn\.", r"\1.attentions.1.", name)
        old[re.sub(r"\.ffn\.", ".ffns.0.", name)] = value + 1
    assert len(old.keys() - state.keys()) > 20
    fit(model, {"state_dict": old}, "mmdet2.pth")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_missing_layer_is_an_error():
    expected = reference(5, False, seed=1)
    model, _ = ours("instance", [16, 32, 64, 128], 5, 0, False)
    weights = detectron2_names(expected.state_dict())
    weights |= {f"backbone.{published_backbone(n, 'dinat')}": v for n, v in model.backbone.state_dict().items()}
    name = "sem_seg_head.pixel_decoder.adapter_1.norm.weight"
    weights["sem_seg_head.pixel_decoder.adapter_2.norm.weight"] = weights.pop(name)
    with pytest.raises(CheckpointError) as caught:
        fit(model, {"model": weights}, "a.pth")
    assert "head: 1 of " in str(caught.value)
    assert "panoptic_head.pixel_decoder.lateral_convs.0.gn.weight is missing from the file" in str(caught.value)
    assert "adapter_2.norm.weight is in the file but not in the model" in str(caught.value)
    assert "Mask2Former of detectron2" in str(caught.value)
