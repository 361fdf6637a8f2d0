"""NAT and DiNAT against the published models, and their construction."""

import pytest
import timm
import torch

from visionattn.backbones import load_official
from visionattn.backbones.dinat import DiNAT

PARAMETERS = {
    "nat_mini": 19_984_174,
    "nat_tiny": 27_901_582,
    "nat_small": 50_743_297,
    "nat_base": 89_769_652,
    "dinat_pico": 2_831_878,
    "dinat_mini": 19_984_174,
    "dinat_tiny": 27_901_582,
    "dinat_small": 50_719_681,
    "dinat_base": 89_769_652,
    "dinat_large": 200_943_514,
    "dinat_large_11x11": 201_144_250,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["nat_mini", "dinat_mini"])
def test_published_classifier(parity, name):
    fixture = parity.read(f"dinat/dinat_full_{name}.pt")
    model = timm.create_model(name)
    model.load_state_dict(parity.weights(fixture))  # the published names, without conversion
    parity.check(fixture, model)


@pytest.mark.parametrize("case", ["base", "ls", "pad"])
def test_published_small_configuration(parity, case):
    """``ls`` has layer scale; in ``pad`` the maps are smaller than kernel times dilation."""
    fixture = parity.read(f"dinat/dinat_tinycfg_{case}.pt")
    model = DiNAT(**fixture["meta"]["cfg"])
    model.load_state_dict(parity.weights(fixture))
    parity.check(fixture, model)


def test_published_detection_backbone(parity):
    fixture = parity.read("dinat/dinat_dense_detection_mini_256x320.pt")
    model = timm.create_model("dinat_mini", features_only=True, dilations="detection", out_norms=(0, 1, 2, 3))
    published = fixture["meta"]["dilations"]
    for level, pattern in zip(model.model.levels, published, strict=True):
        depth = len(level.blocks)
        assert [block.attn.dilation[0] for block in level.blocks] == (pattern * depth)[:depth]
    report = load_official(model, parity.weights(fixture))
    assert {*report.dropped, *report.missing, *report.interpolated, *report.renamed} == set()
    parity.check(fixture, model, prefix="model.")


def test_the_tag_for_384_brings_its_dilations():
    """Asked for by tag or by the authors' name; another choice of the user wins."""

    def dilations(name, **kwargs):
        model = timm.create_model(name, device="meta", **kwargs)
        return [level.blocks[1].attn.dilation[0] for level in model.levels]

    assert dilations("dinat_large") == [8, 4, 2, 1]
    assert dilations("dinat_large.in22k") == [8, 4, 2, 1]
    assert dilations("dinat_large.in22k_ft_in1k_384") == [13, 6, 3, 1]
    assert dilations("dinat_large.in22k_ft_in1k_384", dilations=None) == [13, 6, 3, 1]
    assert dilations("dinat_large.in22k_ft_in1k_384", dilations="classification") == [8, 4, 2, 1]
    assert dilations("dinat_large_11x11.in22k_ft_in1k_384") == [8, 4, 2, 1]
    assert dilations("nat_mini") == [1, 1, 1, 1]
    with pytest.warns(UserWarning, match="dinat_large_384"):
        assert dilations("dinat_large_384") == [13, 6, 3, 1]


def test_auto_dilations_equal_the_published_ones_at_224():
    published = timm.create_model("dinat_pico").eval()
    auto = timm.create_model("dinat_pico", dilations="auto").eval()
    auto.load_state_dict(published.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(auto(x), published(x))
        assert not torch.equal(auto(x[..., :160]), published(x[..., :160]))


def test_stochastic_depth_grows_linearly():
    model = timm.create_model("dinat_mini", device="meta", drop_path_rate=0.34)
    paths = [block.drop_path1 for level in model.levels for block in level.blocks]
    assert isinstance(paths[0], torch.nn.Identity)
    rates = [path.drop_prob for path in paths[1:]]
    assert rates == pytest.approx([0.02 * (i + 1) for i in range(17)])
    assert not any(block.drop_path1 is block.drop_path2 for level in model.levels for block in level.blocks)


def test_zero_layer_scale_is_a_value():
    """With factors of zero the blocks pass their input on."""
    model = DiNAT(embed_dim=16, depths=(1, 1), num_heads=(1, 2), layer_scale=0, drop_path_rate=0.0)
    x = torch.randn(1, 8, 8, 16)
    assert torch.equal(model.levels[0](x), x)
    assert model.levels[1].blocks[0].gamma2.shape == (32,)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"depths": (2, 2)}, ValueError, "same number of entries"),
        (
            {"dilations": "coco"},
            ValueError,
            "`dilations` must be one of 'auto', 'classification', .*, got 'coco'",
        ),
        ({"dilations": [[1, 8], [1, 4], [1, 2], [1, 1]]}, ValueError, r"`dilations\[2\]` must have 6 values"),
        ({"attn_drop_rate": 0.1}, ValueError, "`attn_drop` must be 0, .*, got 0.1"),
        ({"kernel_size": 6}, ValueError, "`kernel_size` must be odd"),
        ({"out_norms": (4,)}, ValueError, r"`out_norms` must be levels in 0\.\.3, got \(4,\)"),
        ({"window_size": 7}, TypeError, "window_size"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        timm.create_model("dinat_pico", **kwargs)
