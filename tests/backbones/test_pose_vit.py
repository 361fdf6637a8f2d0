"""Pose-aware blocks on vision transformers of timm: the base unchanged without a mask, timm's interface, dense maps."""

import pytest
import timm
import torch

from visionattn.backbones import load_official
from visionattn.backbones.pose_vit import PoseFeatures, PoseVisionTransformer

TINY = {"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 3}
BASES = [
    "vit_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",  # registers, layer scale
    "vit_base_patch16_siglip_224",  # no class token, attention pooling
    "deit_small_patch16_224",
]


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


def make(base: str = BASES[0], **options) -> torch.nn.Module:
    return timm.create_model("pose_vit", base=base, **{**TINY, **options}).eval()


@pytest.mark.parametrize("base", BASES)
def test_without_a_mask_it_is_its_base(base):
    model = make(base, paab=(2, 4))
    plain = timm.create_model(base, **TINY, dynamic_img_size=True, dynamic_img_pad=True).eval()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if ".pose_blocks." not in n})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
        final, maps = model.forward_intermediates(x, [1, 3], norm=True)
        expected_final, expected = plain.forward_intermediates(x, [1, 3], norm=True)
    torch.testing.assert_close(final, expected_final)
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("base", BASES)
def test_a_mask_changes_its_patches_and_no_others(base):
    model = make(base, paab=(4,))
    patch = model.patch_embed.patch_size[0]
    x, mask = torch.randn(2, 3, 3 * patch - 5, 4 * patch), torch.zeros(2, 3, 4)
    mask[0, 2, 1] = mask[0, 0, 3] = mask[1, 1, 1] = 1
    with torch.no_grad():
        plain = model.forward_intermediates(x, [3], intermediates_only=True)[0]
        posed = model.forward_intermediates(x, [3], intermediates_only=True, pose=mask)[0]
    assert torch.equal((plain != posed).any(1), mask.bool())


def test_soft_masks_are_between():
    model = make(paab=(4,))
    x, mask = torch.randn(1, 3, 64, 64), torch.zeros(1, 4, 4)
    maps = []
    for value in (0.0, 0.5, 1.0):
        mask[0, 1, 1] = value
        maps.append(model.forward_intermediates(x, [3], intermediates_only=True, pose=mask)[0][0, :, 1, 1])
    assert (maps[0] - maps[1]).norm() < (maps[0] - maps[2]).norm()
    assert not torch.equal(maps[0], maps[1])


def test_predicted_masks_without_any_given():
    model = make(paab=(3,), pose_joints=5, joints_after=2)
    x = torch.randn(2, 3, 64, 64)
    logits, joints = model.forward_joints(x)
    assert joints.shape == (2, 4, 4, 5)
    torch.testing.assert_close(logits, model(x))
    torch.testing.assert_close(model(x, joints.sigmoid().amax(3)), logits)
    assert not torch.equal(model(x, torch.zeros(2, 4, 4)), logits)
    joints.sum().backward()
    assert model.joint_head.learned_joint_proj2.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="`pose_joints` must be at least 1 for joint logits"):
        make().forward_joints(x)


def test_timm_interface():
    model = timm.create_model("pose_vit_tiny_patch16_224", **TINY, num_classes=7).eval()
    assert type(model) is PoseVisionTransformer
    assert model.paab == (4,)
    x, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 4, 4).round()
    out = model(x, mask)
    assert out.shape == (2, 7)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.testing.assert_close(model(x, mask), out)
        model(x, mask).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    model.reset_classifier(0)
    assert model(x, mask).shape == (2, 24)


def test_features_only():
    model = timm.create_model(
        "pose_vit_small_patch16_224", **TINY, features_only=True, out_indices=(0, 2), paab=(2, 4)
    ).eval()
    assert isinstance(model, PoseFeatures)
    assert model.model.paab == (2,)  # what stands after the last map was cut
    assert model.feature_info.channels() == [24, 24]
    assert model.feature_info.reduction() == [16, 16]
    x = torch.randn(1, 3, 50, 70)
    assert [m.shape for m in model(x)] == [(1, 24, 4, 5)] * 2
    plain, posed = model(x), model(x, pose=torch.ones(1, 4, 5))
    assert torch.equal(plain[0], posed[0])
    assert not torch.equal(plain[1], posed[1])
    sum(m.mean() for m in posed).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_loading_a_base_and_itself():
    vit = timm.create_model("vit_small_patch16_224", **{**TINY, "img_size": 32}).eval()
    model = make()
    report = load_official(model, vit.state_dict())
    assert report.interpolated == {"pos_embed": "5 to 17"}
    assert all(".pose_blocks." in name for name in report.missing)
    x, mask = torch.randn(1, 3, 64, 64), torch.ones(1, 4, 4)
    other = make()
    assert not load_official(other, model.state_dict()).missing
    torch.testing.assert_close(other(x, mask), model(x, mask))
    through_timm = timm.create_model(
        "pose_vit", pretrained=True, pretrained_cfg_overlay={"state_dict": model.state_dict()}, **TINY
    ).eval()
    torch.testing.assert_close(through_timm(x, mask), model(x, mask))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paab": (5,)}, r"`paab` must be block numbers in 1\.\.4, got \(5,\)"),
        ({"paab": (2, 2)}, "must not contain a block twice"),
        ({"num_pose_blocks": 0}, "`num_pose_blocks` must be at least 1, got 0"),
        ({"paab": (2,), "pose_joints": 3, "joints_after": 3}, r"`joints_after` must be in 1\.\.2, got 3"),
        ({"base": "resnet18"}, "`base` must be a VisionTransformer of timm, got 'resnet18'"),
        ({"base": "no_such_model"}, "must be the name of a timm model"),
        ({"patch_drop_rate": 0.5}, "`patch_drop_rate` must be 0"),
    ],
)
def test_bad_arguments(options, message):
    if options.get("base") == "resnet18":
        with pytest.raises(ValueError, match=message):
            timm.create_model("pose_vit", base="resnet18")
        return
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_mask_that_does_not_fit():
    with pytest.raises(ValueError, match=r"`pose` must have shape \(1, 4, 4\) for this image, got \(1, 3, 4\)"):
        make()(torch.randn(1, 3, 64, 64), torch.zeros(1, 3, 4))


def test_as_a_backbone_of_openmmlab():
    pytest.importorskip("mmengine")
    from visionattn.openmmlab import Backbone

    backbone = Backbone("pose_vit", base="vit_tiny_patch16_224", out_indices=(1, 3), paab=(2,), **TINY).eval()
    x = torch.randn(1, 3, 64, 64)
    assert backbone.num_features == [24, 24]
    plain, posed = backbone(x), backbone(x, pose=torch.ones(1, 4, 4))
    assert [m.shape for m in posed] == [(1, 24, 4, 4)] * 2
    assert not torch.equal(plain[0], posed[0])
