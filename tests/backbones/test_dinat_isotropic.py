"""Isotropic NAT and DiNAT, and ViT-rpb, against the published models."""

import pytest
import timm
import torch

from visionattn.backbones import load_official
from visionattn.backbones.dinat_isotropic import DiNATIsotropic, ViTRpb

PARAMETERS = {
    "nat_isotropic_small": 21_999_736,
    "nat_isotropic_base": 86_465_800,
    "dinat_isotropic_small": 21_999_736,
    "dinat_isotropic_base": 86_465_800,
    "vitrpb_small": 22_080_376,
    "vitrpb_base": 86_627_080,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_published_classifier(parity):
    fixture = parity.read("dinat/dinat_full_dinat_isotropic_small.pt")
    model = timm.create_model("dinat_isotropic_small")
    model.load_state_dict(parity.weights(fixture))
    parity.check(fixture, model)


def _small(fixture, *extra):
    names = (
        "img_size",
        "patch_size",
        "embed_dim",
        "depth",
        "num_heads",
        "num_classes",
        "drop_path_rate",
        *extra,
    )
    return {name: fixture["meta"]["cfg"][name] for name in names}


def test_published_small_dinat(parity):
    fixture = parity.read("dinat/iso_tinycfg_dinat.pt")
    kwargs = _small(fixture, "kernel_size")
    del kwargs["img_size"]  # ours takes any
    model = DiNATIsotropic(dilations="classification", **kwargs)
    model.load_state_dict(parity.weights(fixture))
    parity.check(fixture, model)


def test_published_small_vit(parity):
    fixture = parity.read("dinat/iso_tinycfg_vitrpb.pt")
    model = ViTRpb(**_small(fixture))
    report = load_official(model, parity.weights(fixture))
    assert set(report.missing) == set(fixture["int_buffers_not_in_manifest"])
    parity.check(fixture, model)


def test_vit_keeps_its_size():
    model = ViTRpb(img_size=(64, 32), embed_dim=32, depth=1, num_heads=2)
    assert model(torch.zeros(1, 3, 64, 32)).shape == (1, 1000)
    with pytest.raises(AssertionError, match="doesn't match model"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="multiple of `patch_size`=16, got 100"):
        ViTRpb(img_size=100)


@pytest.mark.parametrize(
    ("dilations", "message"),
    [
        ("detection", "must be 'classification', 'auto' or a sequence of integers, got 'detection'"),
        ([1, 2], "must have 12 values"),
        ([0] * 12, "integers >= 1"),
    ],
)
def test_bad_dilations(dilations, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("dinat_isotropic_small", dilations=dilations)


def test_auto_dilations_equal_the_published_ones_at_224():
    torch.manual_seed(0)
    small = {"embed_dim": 32, "depth": 2, "num_heads": 1}
    published = timm.create_model("dinat_isotropic_small", **small).eval()
    auto = timm.create_model("dinat_isotropic_small", dilations="auto", **small).eval()
    auto.load_state_dict(published.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(auto(x), published(x))
