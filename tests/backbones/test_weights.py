"""Checkpoints in the shapes in which people publish them."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from visionattn.backbones import load_official
from visionattn.backbones._weights import describe
from visionattn.backbones.dinat import DiNAT
from visionattn.errors import CheckpointError

SMALL = {"embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "num_classes": 5}


def small(**kwargs):
    return DiNAT(**{**SMALL, **kwargs})


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def source():
    torch.manual_seed(0)
    return small()


def test_a_classifier_as_published(source):
    target = small()
    report = load_official(target, source.state_dict())
    assert set(report.loaded) == set(source.state_dict())
    assert (report.renamed, report.interpolated, report.dropped, report.missing) == ({}, {}, {}, {})
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])
    assert str(report) == f"loaded {len(report.loaded)} tensors"


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_containers_and_prefixes(source, wrapper):
    checkpoint = {wrapper: {f"module.{k}": v for k, v in source.state_dict().items()}, "epoch": 3}
    target = small()
    report = load_official(target, checkpoint)
    assert torch.equal(target.head.weight, source.head.weight)
    assert report.renamed["module.head.weight"] == "head.weight"


def test_a_detector(source):
    """Norms per output, no classifier, other modules beside the backbone."""
    dense = small(out_norms=(0, 1), num_classes=0)
    torch.nn.init.normal_(dense.norm0.weight)
    checkpoint = {f"backbone.{k}": v for k, v in dense.state_dict().items() if not k.startswith("norm.")}
    checkpoint |= {"neck.conv.weight": torch.ones(1), "bbox_head.cls.weight": torch.ones(1)}

    features = timm.create_model("dinat_pico", features_only=True, out_norms=(0, 1), **FEATURES)
    report = load_official(features, {"state_dict": checkpoint})
    assert torch.equal(features.model.norm0.weight, dense.norm0.weight)
    assert set(report.dropped) == {"neck.conv.weight", "bbox_head.cls.weight"}
    assert report.missing == {}

    classifier = small()
    before = values(classifier)
    report = load_official(classifier, {"state_dict": checkpoint})
    assert set(report.missing) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert "backbone.norm0.weight" in report.dropped
    assert "dropped (not part of the backbone): neck.conv.weight, bbox_head.cls.weight" in str(report)
    assert torch.equal(classifier.head.weight, before["head.weight"])
    assert torch.equal(classifier.levels[0].blocks[0].attn.rpb, dense.levels[0].blocks[0].attn.rpb)


FEATURES = {
    "embed_dim": 16,
    "depths": (1, 2),
    "num_heads": (1, 2),
    "dilations": [[1], [1, 1]],
    "mlp_ratio": 3.0,
}
FEATURES |= {"out_indices": (0, 1)}


def test_a_classifier_into_a_dense_backbone(source):
    target = timm.create_model("dinat_pico", features_only=True, out_norms=(0, 1), **FEATURES)
    report = load_official(target, source.state_dict())
    assert set(report.dropped) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert set(report.missing) == {"norm0.weight", "norm0.bias", "norm1.weight", "norm1.bias"}
    assert torch.equal(target.model.patch_embed.norm.weight, source.patch_embed.norm.weight)
    assert torch.equal(target.model.norm1.weight, torch.ones(32))


def test_a_saved_feature_model_loads_again():
    first = timm.create_model("dinat_pico", features_only=True, **FEATURES)
    second = timm.create_model("dinat_pico", features_only=True, **FEATURES)
    report = load_official(second, first.state_dict())
    assert len(report.loaded) == len(first.state_dict())
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(first.eval()(x), second.eval()(x), strict=True):
        assert torch.equal(a, b)


def test_another_kernel_size(source):
    """7x7 to 11x11 keeps the middle of the table and its symmetry."""
    with torch.no_grad():
        rpb = source.levels[0].blocks[0].attn.rpb
        rpb.copy_(rpb + rpb.flip(-1, -2))
    target = small(kernel_size=11)
    report = load_official(target, source.state_dict())
    assert set(report.interpolated) == {k for k in source.state_dict() if k.endswith("rpb")}
    assert set(report.interpolated.values()) == {"bicubic, 13x13 to 21x21"}
    table = target.levels[0].blocks[0].attn.rpb
    torch.testing.assert_close(table, table.flip(-1, -2))
    expected = F.interpolate(rpb[None], size=(21, 21), mode="bicubic")[0]
    torch.testing.assert_close(table, expected)
    torch.testing.assert_close(table[0, 10, 10], rpb[0, 6, 6])


def test_another_number_of_classes(source):
    target = small(num_classes=7)
    before = values(target)
    report = load_official(target, source.state_dict())
    assert set(report.dropped) == set(report.missing) == {"head.weight", "head.bias"}
    assert "5 classes" in report.missing["head.weight"]
    assert torch.equal(target.head.weight, before["head.weight"])


def test_a_model_without_classifier_takes_a_classifier(source):
    report = load_official(small(num_classes=0), source.state_dict())
    assert set(report.dropped) == {"head.weight", "head.bias"}


def _error(model, checkpoint):
    before = values(model)
    with pytest.raises(CheckpointError) as caught:
        load_official(model, checkpoint)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "a refused checkpoint must leave the model alone"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "looks_like"),
    [
        ("nat_mini", "nat_mini or dinat_mini"),
        ("dinat_tiny", "nat_tiny or dinat_tiny"),
        ("nat_small", "nat_small;"),
        ("dinat_small", "dinat_small;"),
        ("dinat_large_11x11", "dinat_large_11x11;"),
        ("dinat_s_base", "dinat_s_base;"),
        ("dinat_isotropic_small", "nat_isotropic_small or dinat_isotropic_small;"),
        ("vitrpb_base", "vitrpb_base;"),
        ("swin_tiny_patch4_window7_224", "Swin;"),
        ("davit_tiny", "davit_tiny;"),
        ("davit_large", "davit_large or davit_large_window12_384;"),
        ("biformer_tiny", "biformer_tiny;"),
        ("biformer_base", "biformer_base;"),
        ("biformer_stl", "biformer_stl;"),
        ("resnet18", "ResNet;"),
    ],
)
def test_a_wrong_checkpoint_is_recognised(name, looks_like):
    checkpoint = timm.create_model(name, device="meta").state_dict()
    assert f"it seems to be a checkpoint of {looks_like}" in _error(small(), checkpoint) + ";"


def test_unpublished_sizes_are_described(source):
    text = describe(source.state_dict())
    assert text.startswith("NAT or DiNAT of unpublished size (embed_dim=16, depths=(1, 2)")


def test_incomplete_and_foreign_entries(source):
    checkpoint = dict(source.state_dict())
    del checkpoint["levels.0.blocks.0.attn.rpb"]
    assert "levels.0.blocks.0.attn.rpb is missing" in _error(small(), checkpoint)
    assert "extra.weight is unknown" in _error(small(), {**source.state_dict(), "extra.weight": torch.ones(1)})
    half = {k: v for k, v in source.state_dict().items() if k != "head.bias"}
    assert "head.bias is missing" in _error(small(), half)
    assert "(8, 3, 3, 3) instead of (16, 3, 3, 3)" in _error(small(embed_dim=32, num_heads=(1, 2)), source.state_dict())


def test_what_is_no_checkpoint():
    assert "no backbone tensors" in _error(small(), {"epoch": 3})
    assert "got a list" in _error(small(), [torch.ones(1)])
    with pytest.raises(TypeError, match=r"`model` must be a backbone of visionattn or a DaViT of timm, got .*Linear"):
        load_official(torch.nn.Linear(2, 2), {})


def test_timm_uses_the_same_conversion(source, tmp_path):
    """``pretrained=True`` with a file: wrapped, prefixed, another kernel size, one input channel."""
    checkpoint = {"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    kwargs = {k: v for k, v in FEATURES.items() if k != "out_indices"}
    model = timm.create_model(
        "dinat_pico",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "checkpoint.pth"), "num_classes": 5},
        kernel_size=9,
        in_chans=1,
        num_classes=3,
        **kwargs,
    )
    assert model.levels[0].blocks[0].attn.rpb.shape == (1, 17, 17)
    assert torch.equal(model.levels[1].blocks[1].mlp.fc1.weight, source.levels[1].blocks[1].mlp.fc1.weight)
    expected = source.patch_embed.proj[0].weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.patch_embed.proj[0].weight, expected)


def test_safetensors_round_trip(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    target = small()
    load_official(target, load_file(tmp_path / "model.safetensors"))
    x = torch.randn(1, 3, 40, 50)
    assert torch.equal(target.eval()(x), source.eval()(x))


def test_the_checkpoint_is_not_changed(source):
    checkpoint = {"state_dict": dict(source.state_dict())}
    before = copy.copy(checkpoint["state_dict"])
    load_official(small(num_classes=9, kernel_size=9), checkpoint)
    assert checkpoint["state_dict"].keys() == before.keys()
    assert all(checkpoint["state_dict"][k] is v for k, v in before.items())


@pytest.mark.parametrize(
    ("name", "kwargs", "indices"),
    [
        ("nat_mini", {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}, (0, 1)),
        ("dinat_s_tiny", {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}, (1, 2)),
        ("dinat_isotropic_small", {"embed_dim": 8, "depth": 5, "num_heads": 1}, (1, 2)),
    ],
)
def test_a_whole_checkpoint_into_a_model_cut_by_out_indices(name, kwargs, indices):
    """The stages after the last one in use are dropped, and the step to them; nothing else may be left over."""
    torch.manual_seed(0)
    source = timm.create_model(name, **kwargs).eval()
    cut = timm.create_model(name, features_only=True, out_indices=indices, **kwargs).eval()
    report = load_official(cut, source.state_dict())
    assert report.missing == {}
    reasons = {"after the last stage of the model", "the model has no classifier", "the model has no final norm"}
    assert set(report.dropped.values()) == reasons
    x = torch.randn(1, 3, 64, 80)
    expected = source.forward_intermediates(x, list(indices))[1]
    for ours, out in zip(cut(x), expected, strict=True):
        assert torch.equal(ours, out)
    # A whole model does not lose stages in silence.
    deeper = {**source.state_dict(), f"{source.STAGES}.7.blocks.0.norm1.weight": torch.ones(8)}
    assert "7.blocks.0.norm1.weight is unknown" in _error(source, deeper)


def test_a_mask2former_checkpoint():
    """detectron2's container, kernel 11, other modules beside the backbone, which has four norms of its own."""
    dense = small(out_norms=(0, 1), num_classes=0, kernel_size=11)
    weights = {f"backbone.{k}": v for k, v in dense.state_dict().items() if not k.startswith("norm.")}
    checkpoint = {"model": {**weights, "sem_seg_head.predictor.query_feat.weight": torch.ones(2, 2)}, "iteration": 9}
    target = timm.create_model("dinat_pico", features_only=True, out_norms=(0, 1), kernel_size=11, **FEATURES)
    report = load_official(target, checkpoint)
    assert report.dropped == {"sem_seg_head.predictor.query_feat.weight": "not part of the backbone"}
    assert (report.missing, report.interpolated) == ({}, {})
    assert torch.equal(target.model.levels[1].blocks[1].attn.rpb, dense.levels[1].blocks[1].attn.rpb)


@pytest.mark.parametrize(
    "target", ["dinat_pico", "dinat_s_tiny", "dinat_isotropic_small", "vitrpb_small", "davit_tiny"]
)
@pytest.mark.parametrize(
    ("source", "looks_like"),
    [
        ("nat_base", "nat_base or dinat_base"),
        ("dinat_s_large", "dinat_s_large"),
        ("nat_isotropic_base", "nat_isotropic_base or dinat_isotropic_base"),
        ("davit_base", "davit_base"),
    ],
)
def test_a_wrong_file_is_named_across_families(source, target, looks_like):
    checkpoint = timm.create_model(source, device="meta").state_dict()
    model = timm.create_model(target, device="meta")
    with pytest.raises(CheckpointError, match=f"it seems to be a checkpoint of {looks_like}$"):
        load_official(model, checkpoint)


def test_a_bias_table_for_another_image_size():
    """ViT-rpb at another size: its tables are interpolated, its index is its own."""
    kwargs = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    source = timm.create_model("vitrpb_small", img_size=64, **kwargs)
    report = load_official(target := timm.create_model("vitrpb_small", img_size=96, **kwargs), source.state_dict())
    assert report.interpolated == {"layers.0.attn.rpb": "bicubic, 7x7 to 11x11"}
    index = "layers.0.attn.relative_position_index"
    assert report.dropped[index] == "an index table, computed by the model"
    assert target(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
