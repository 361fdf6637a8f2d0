"""BiFormer-STL: its construction, and checkpoints of both published layouts."""

import re

import pytest
import timm
import torch

from visionattn.backbones import load_official
from visionattn.backbones._weights import describe
from visionattn.layers import BiLevelRoutingAttention

SMALL = {"embed_dim": 16, "depths": (1, 1, 2, 1), "head_dim": 8, "num_classes": 5}


def small(**kwargs):
    torch.manual_seed(0)
    model = timm.create_model("biformer_stl", **{**SMALL, **kwargs}).eval()
    for module in model.modules():  # statistics that are not those of an untrained model
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    return model


def as_nchw(model):
    """The model's weights as the NCHW model names and shapes them."""
    result = {}
    for name, tensor in model.state_dict().items():
        linear = re.search(r"stages.*(qkv|wo|proj|mlp\.[02])\.weight$", name)
        name = name.replace("attn.qkv.qkv", "attn.qkv_linear").replace("attn.wo", "attn.output_linear")
        result[name] = tensor[..., None, None] if linear else tensor
    return result


def settings(model):
    paddings = {m.padding for m in model.modules() if isinstance(m, BiLevelRoutingAttention)}
    return paddings, model.stages[-1].blocks[0].attn.lepe_of


def test_parameter_count():
    model = timm.create_model("biformer_stl", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 28_372_552
    model.reset_classifier(0)
    assert sum(p.numel() for p in model.parameters()) == 27_603_552
    assert len(timm.create_model("biformer_stl", device="meta").state_dict()) == 201


def test_channels_last_checkpoint():
    source, target = small(), small()
    report = load_official(target, {"model": source.state_dict()})
    assert report.renamed == {}
    assert settings(target) == ({"input"}, "input")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("way", ["load_official", "load_state_dict", "checkpoint_path"])
def test_nchw_checkpoint(way, tmp_path):
    """Its padding and its global attention come along, however it is loaded."""
    source = small()
    if way == "checkpoint_path":
        torch.save({"model": as_nchw(source)}, tmp_path / "weights.pth")
        target = small(checkpoint_path=str(tmp_path / "weights.pth"))
    else:
        target = small()
        if way == "load_official":
            report = load_official(target, {"model": as_nchw(source)})
            assert report.renamed["stages.0.blocks.0.attn.qkv_linear.bias"] == "stages.0.blocks.0.attn.qkv.qkv.bias"
            assert report.settings["global_lepe"] == "'value', as the published model"
        else:
            target.load_state_dict(as_nchw(source))
    assert settings(target) == ({"projected"}, "value")
    expected = small(padding="projected", global_lepe="value")
    expected.load_state_dict(source.state_dict())
    with torch.no_grad():
        for size in [(224, 224), (150, 200)]:
            x = torch.randn(1, 3, *size)
            assert torch.equal(target(x), expected(x))
        assert not torch.allclose(target(x), source(x), atol=1e-4)


def test_convolution_beside_the_global_attention():
    """Of its input in the channels-last model, of the values in the NCHW one."""
    attn = small().stages[-1].blocks[0].attn
    torch.nn.init.zeros_(attn.proj.bias)
    torch.nn.init.eye_(attn.proj.weight)
    x = torch.randn(1, 5, 4, 128)
    with torch.no_grad():
        of_input = attn(x)
        attn.lepe_of = "value"
        difference = attn(x) - of_input
        value = attn.qkv(x)[..., 256:]
        lepe = [attn.lepe(t.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for t in (value, x)]
    torch.testing.assert_close(difference, lepe[0] - lepe[1])


def test_descriptions():
    full = timm.create_model("biformer_stl", device="meta")
    assert describe(full.state_dict()) == "biformer_stl"
    assert describe(as_nchw(full)) == "biformer_stl (NCHW layout)"


def test_sizes_that_patches_do_not_divide():
    """Rounded up with masked padding; rounded down, as published, otherwise, but never to nothing."""
    x = torch.randn(1, 3, 70, 100)
    for padding, sizes in [
        ("masked", [(18, 25), (9, 13), (5, 7), (3, 4)]),
        ("input", [(17, 25), (8, 12), (4, 6), (2, 3)]),
    ]:
        maps = small(padding=padding).forward_intermediates(x, intermediates_only=True)
        assert [tuple(m.shape[2:]) for m in maps] == sizes
    assert small(padding="projected")(torch.randn(1, 3, 3, 40)).isfinite().all()
