"""DaViT: timm's models under the authors' checkpoints, and what this package adds to them."""

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models.davit import DaVit

from visionattn.backbones import load_official
from visionattn.backbones.davit import DaViT, restore_drop_path

PARAMETERS = {
    "davit_tiny": 28_360_168,
    "davit_small": 49_745_896,
    "davit_base": 87_954_408,
    "davit_large": 196_811_752,
    "davit_large_window12_384": 196_811_752,
    "davit_huge": 348_922_856,
    "davit_giant": 1_406_470_120,
}
SMALL = {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 64, 96), "num_heads": (1, 2, 4, 6), "num_classes": 11}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_timms_names_stay_timms():
    assert type(timm.create_model("davit_tiny", device="meta")) is DaVit
    assert timm.models.model_entrypoint("davit_large").__module__ == "timm.models.davit"
    large = timm.create_model("davit_large_window12_384", device="meta")
    assert type(large) is DaViT
    assert large.stages[0].blocks[0][0].window_size == (12, 12)


class OfficialNames:
    """The parity fixtures record gradients under the authors' names; this view of a model has those names."""

    def __init__(self, model, report):
        self.model = model
        self.names = {new: old.removeprefix("backbone.") for old, new in report.renamed.items()}

    def named_parameters(self):
        inner = getattr(self.model, "model", self.model)
        return [(self.names.get(name, name), parameter) for name, parameter in inner.named_parameters()]

    def parameters(self):
        return self.model.parameters()

    def eval(self):
        self.model.eval()

    def __call__(self, x):
        return self.model(x)


def test_published_classifier_in_timms_model(parity):
    fixture = parity.read("davit/davit_full_DaViT_tiny.pt")
    model = timm.create_model("davit_tiny")
    report = load_official(model, parity.weights(fixture))
    assert len(report.loaded) == 212
    assert {*report.dropped, *report.missing, *report.interpolated} == set()
    assert report.renamed["main_blocks.2.1.1.cpe.1.proj.weight"] == "stages.2.blocks.1.1.cpe2.proj.weight"
    parity.check(fixture, OfficialNames(model, report))


@pytest.mark.parametrize("model_class", [DaVit, DaViT])
@pytest.mark.parametrize("case", ["base", "nondiv", "nonffn"])
def test_published_small_configuration(parity, case, model_class):
    """``nondiv`` pads in the stem, the downsampling and the windows; ``nonffn`` has no MLPs."""
    fixture = parity.read(f"davit/davit_tinycfg_{case}.pt")
    model = model_class(**fixture["meta"]["cfg"])
    report = load_official(model, parity.weights(fixture))
    assert {*report.dropped, *report.missing} == set()
    parity.check(fixture, OfficialNames(model, report))


def test_published_dense_backbone(parity):
    fixture = parity.read("davit/davit_dense_tinycfg.pt")
    weights = {f"backbone.{name}": value for name, value in parity.weights(fixture).items()}
    weights |= {"neck.convs.0.weight": torch.ones(1), "bbox_head.norms.0.weight": torch.ones(1)}
    cfg = {name: value for name, value in fixture["meta"]["cfg"].items() if name != "num_classes"}
    model = timm.create_model("davit_large_window12_384", features_only=True, out_norms=(0, 1, 2, 3), **cfg)
    report = load_official(model, {"state_dict": weights})
    assert set(report.dropped.values()) == {"not part of the backbone"}
    assert report.missing == {}
    parity.check(fixture, OfficialNames(model, report))


def test_timms_feature_wrapper(parity):
    fixture = parity.read("davit/timm_davit_tiny_features_160x224.pt")
    model = timm.create_model("davit_tiny", features_only=True)
    report = load_official(model, parity.weights(fixture))
    assert {*report.dropped, *report.missing, *report.renamed} == set()
    with torch.no_grad():
        parity.check(fixture, model)


def test_a_whole_classifier_in_a_cut_feature_wrapper():
    """Later stages are dropped with a reason, the classifier too; what is kept computes the same."""
    torch.manual_seed(0)
    source = timm.create_model("davit_tiny", **SMALL).eval()
    x = torch.randn(1, 3, 50, 60)
    expected = source.forward_intermediates(x, intermediates_only=True)[:2]
    kwargs = {k: v for k, v in SMALL.items() if k != "num_classes"}
    large = timm.create_model(
        "davit_large_window12_384", features_only=True, out_indices=(0, 1), window_size=7, **kwargs
    )
    for model in (timm.create_model("davit_tiny", features_only=True, out_indices=(0, 1), **kwargs), large):
        report = load_official(model, source.state_dict())
        assert set(report.dropped.values()) == {
            "after the last stage of the model",
            "the model has no classifier",
            "the model has no final norm",
        }
        assert report.missing == {}
        for out, ours in zip(expected, model.eval()(x), strict=True):
            assert torch.equal(ours, out)


def test_timms_model_without_mlps_is_mended():
    """Its own drop path rates come back: those of the channel blocks beside."""
    model = DaVit(ffn=False, drop_path_rate=0.3, **SMALL)
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(TypeError):
        model.eval()(x)
    assert restore_drop_path(model) is model
    assert model(x).shape == (1, 11)
    spatial, channel = model.stages[3].blocks[0]
    assert spatial.drop_path1.drop_prob == channel.drop_path1.drop_prob == pytest.approx(0.3)
    assert isinstance(model.stages[0].blocks[0][0].drop_path1, torch.nn.Identity)


def test_drop_path_schedules():
    def rates(**kwargs):
        model = DaViT(drop_path_rate=0.18, **SMALL, **kwargs)
        blocks = [block for stage in model.stages for pair in stage.blocks for block in pair]
        paths = [[b.drop_path1, b.drop_path2] if b.ffn else [b.drop_path1] for b in blocks]
        assert all(len({getattr(p, "drop_prob", 0.0) for p in pair}) == 1 for pair in paths)
        return [getattr(pair[0], "drop_prob", 0.0) for pair in paths]

    per_block = [0.02 * i for i in range(10)]
    assert rates() == pytest.approx(per_block)
    assert rates(ffn=False) == pytest.approx(per_block)
    timms = DaVit(drop_path_rate=0.18, **SMALL)
    pairs = [pair for stage in timms.stages for pair in stage.blocks]
    expected = [b.drop_path1.drop_prob if isinstance(b.drop_path1, DropPath) else 0.0 for p in pairs for b in p]
    assert rates(drop_path_schedule="pair") == pytest.approx(expected)
    assert expected[0] == expected[1] < expected[2] == expected[3]


def test_overlapped_patches_keep_sizes_and_match_padding_to_even():
    """The authors pad to even sizes first; that column of zeros is the convolution's own padding."""
    torch.manual_seed(0)
    model = DaViT(overlapped_patch=True, **SMALL).eval()
    down = model.stages[1].downsample
    assert down.conv.kernel_size == (3, 3)
    x = torch.randn(1, 16, 25, 33)
    padded = torch.nn.functional.pad(down.norm(x), (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, down.conv.weight, down.conv.bias, stride=2, padding=1)
    torch.testing.assert_close(down(x), expected)
    shapes = [tuple(out.shape[2:]) for out in model.forward_intermediates(torch.randn(1, 3, 101, 75))[1]]
    assert shapes == [(26, 19), (13, 10), (7, 5), (4, 3)]


def test_options_reach_timms_blocks():
    model = DaViT(attn_types=("channel", "spatial"), cpe_act=True, **SMALL)
    names = [type(block).__name__ for block in model.stages[0].blocks[0]]
    assert names == ["ChannelBlock", "SpatialBlock"]
    block = model.stages[0].blocks[0][0]
    assert isinstance(block.cpe1.act, torch.nn.GELU)
    x = torch.randn(1, 16, 9, 9)
    torch.testing.assert_close(block.cpe1(x), x + torch.nn.functional.gelu(block.cpe1.proj(x)))
    assert model.no_weight_decay() == set()


def test_out_norms_follow_the_chosen_levels():
    torch.manual_seed(0)
    kwargs = {k: v for k, v in SMALL.items() if k != "num_classes"}
    model = timm.create_model(
        "davit_large_window12_384", features_only=True, out_indices=(1, 3), out_norms=(0, 1, 2, 3), **kwargs
    ).eval()
    assert {n for n, _ in model.model.named_children() if n.startswith("norm") and n != "norm_pre"} == {
        "norm1",
        "norm3",
    }
    plain = timm.create_model("davit_large_window12_384", features_only=True, out_indices=(1, 3), **kwargs).eval()
    report = load_official(plain, model.state_dict())
    assert {n.rsplit(".", 2)[-2] for n in report.dropped} == {"norm1", "norm3"}
    x = torch.randn(1, 3, 75, 101)
    for normed, raw in zip(model(x), plain(x), strict=True):
        expected = torch.nn.functional.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"out_norms": (4,)}, ValueError, r"`out_norms` must be levels in 0\.\.3, got \(4,\)"),
        (
            {"attn_types": ("spatial", "global")},
            ValueError,
            "`attn_types` must be a sequence of 'spatial' and 'channel'",
        ),
        ({"attn_types": ()}, ValueError, "`attn_types` must be"),
        ({"drop_path_schedule": "linear"}, ValueError, "`drop_path_schedule` must be 'block' or 'pair', got 'linear'"),
        (
            {"overlapped_patch": True, "down_kernel_size": 2},
            ValueError,
            "`down_kernel_size` must be 3 with `overlapped_patch`, got 2",
        ),
        ({"img_size": 224}, TypeError, "img_size"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        timm.create_model("davit_large_window12_384", device="meta", **kwargs)
