"""TimeSformer, PAAB and PAAT: the authors' recordings, the order of tokens and masks, loading, timm's interface."""

import pytest
import timm
import torch
import torch.nn.functional as F

from visionattn.backbones import load_official
from visionattn.backbones.timesformer import TimeSformer
from visionattn.errors import CheckpointError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 3, "num_frames": 4}


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


def recordings(shared_dir, pattern: str) -> list[dict]:
    files = sorted((shared_dir / "parity/pose").glob(pattern))
    assert files
    return [torch.load(file, weights_only=True) for file in files]


def build(record: dict, **options) -> TimeSformer:
    given = record["meta"]["kwargs"]
    keep = ("img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
            "num_frames")  # fmt: skip
    model = TimeSformer(**{k: given[k] for k in keep if k in given}, **options)
    report = load_official(model, {f"model.{name}": value for name, value in record["state_dict"].items()})
    assert len(report.loaded) == len(record["state_dict"])
    assert not report.missing
    assert not report.dropped
    return model.eval()


def test_published_paab_models(shared_dir):
    for record in recordings(shared_dir, "paab_model_*.pt"):
        given = record["meta"]["kwargs"]
        attention = {"joint_st": "joint", "space_time": "spatiotemporal"}.get(
            given["pose_block_attention"][0], given["pose_block_attention"][0]
        )
        number = given.get("num_pose_blocks", 1)
        model = build(
            record, paab=given["pose_block_pos"], paab_attention=attention, mask_layout="legacy", num_pose_blocks=number
        )
        video, mask = record["inputs"]["video"], record["inputs"]["kpt_mask"]
        masks = {"logits": mask, "logits_mask0": torch.zeros_like(mask), "logits_mask1": torch.ones_like(mask)}
        with torch.no_grad():
            for name, given_mask in masks.items():
                torch.testing.assert_close(model(video, given_mask), record["outputs"][name], rtol=1e-4, atol=1e-5)
            found = model.forward_head(model.forward_features(video, mask), pre_logits=True)
            torch.testing.assert_close(found, record["outputs"]["cls"], rtol=1e-4, atol=1e-5)
            B, T = video.shape[0], video.shape[2]
            rows = mask.view(B, T, 4, 4).transpose(2, 3)  # published order: frame, column, row
            torch.testing.assert_close(model(video, rows), record["outputs"]["logits"], rtol=1e-4, atol=1e-5)


def test_corrected_block(shared_dir):
    for record in recordings(shared_dir, "paab_block_corrected_*.pt"):
        given = record["meta"]["kwargs"]
        B, T, H, W = record["meta"]["BTHW"]
        model = TimeSformer(
            H * 4, 4, embed_dim=given["dim"], depth=1, num_heads=given["num_heads"], num_frames=T, paab=(1,),
            paab_attention=given["pose_block_attention"], num_pose_blocks=given["num_pose_blocks"],
        )  # fmt: skip
        block = model.blocks[0].eval()
        block.load_state_dict(record["state_dict"])
        x, mask = record["inputs"]["x"], record["inputs"]["mask_btyx"]
        plain = block(x[:, :1], x[:, 1:].view(B, H * W, T, -1))
        joined = torch.cat([plain[0], plain[1].flatten(1, 2)], 1)
        torch.testing.assert_close(joined, record["outputs"]["without_pose"], rtol=1e-5, atol=1e-5)
        posed = block.pose_blocks(*plain, mask.flatten(2).transpose(1, 2))
        joined = torch.cat([posed[0], posed[1].flatten(1, 2)], 1)
        torch.testing.assert_close(joined, record["outputs"]["y"], rtol=1e-5, atol=1e-5)


def test_published_paat_models(shared_dir):
    """Logits, joints, the loss of both, and the gradients that it gives."""
    for record in recordings(shared_dir, "paat_model*.pt"):
        given = record["meta"]["kwargs"]
        model = build(record, paat=given["pose_block_pos"], num_joints=given["num_joints"])
        logits, joints = model.forward_joints(record["inputs"]["video"])
        torch.testing.assert_close(logits, record["outputs"]["logits"], rtol=1e-4, atol=1e-5)
        in_order = [j.permute(0, 2, 3, 1, 4).flatten(1, 3) for j in joints]
        torch.testing.assert_close([j.sigmoid() for j in in_order], record["outputs"]["pred_joints"])
        target = record["inputs"]["joints"]
        side = torch.stack([F.binary_cross_entropy_with_logits(j, target) for j in in_order]).mean()
        loss = F.cross_entropy(logits, record["inputs"]["label"]) + side
        torch.testing.assert_close(loss, record["outputs"]["loss"], rtol=1e-4, atol=1e-5)
        loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        for name, gradient in record["grads"].items():
            torch.testing.assert_close(found[name.removeprefix("param:")], gradient, rtol=1e-4, atol=1e-5)


def pose_aware(**options) -> TimeSformer:
    model = TimeSformer(**{**SMALL, "paab": (3,), **options}).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.temporal_fc.weight.normal_(std=0.1)
    return model


@pytest.mark.parametrize("attention", ["spatial", "joint", "spatiotemporal"])
def test_a_mask_changes_its_patches_and_no_others(attention):
    model = pose_aware(paab_attention=attention)
    x = torch.randn(1, 3, 4, 24, 40)
    mask = torch.zeros(1, 4, 3, 5)
    mask[0, 1, 2, 0] = mask[0, 3, 0, 4] = 1
    with torch.no_grad():
        plain = model.forward_intermediates(x, [2], intermediates_only=True)[0]
        posed = model.forward_intermediates(x, [2], intermediates_only=True, pose=mask)[0]
    changed = (plain != posed).any(1)
    assert torch.equal(changed, mask.bool())


def test_token_order():
    """A token is 1 + (row * columns + column) * T + frame."""
    model = pose_aware()
    x = torch.randn(1, 3, 4, 24, 40)
    mask = torch.zeros(1, 4, 3, 5)
    mask[0, 2, 1, 3] = 1
    with torch.no_grad():
        changed = (model.forward_features(x, mask) != model.forward_features(x)).any(2)[0].nonzero().flatten()
    assert changed.tolist() == [0, 1 + (1 * 5 + 3) * 4 + 2]


def test_without_pose_it_is_a_plain_timesformer():
    model = pose_aware()
    plain = TimeSformer(**SMALL).eval()
    report = load_official(plain, model.state_dict())
    assert any("pose_blocks" in name for name in report.dropped)
    x = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
        assert not torch.equal(model(x), model(x, torch.zeros(2, 4, 4, 4)))


def test_legacy_layout_puts_a_mask_on_other_tokens():
    corrected, legacy = pose_aware(), pose_aware(mask_layout="legacy")
    legacy.load_state_dict(corrected.state_dict())
    x, mask = torch.randn(1, 3, 4, 32, 32), torch.zeros(1, 4, 4, 4)
    mask[0, :, 1, 0] = 1
    with torch.no_grad():
        tokens = [(m.forward_features(x, mask) != m.forward_features(x)).any(2)[0, 1:] for m in (corrected, legacy)]
    assert tokens[0].nonzero().flatten().tolist() == [16, 17, 18, 19]
    assert tokens[1].nonzero().flatten().tolist() == [1, 17, 33, 49]


def test_shapes_that_do_not_fit():
    model = pose_aware()
    x = torch.randn(1, 3, 4, 32, 32)
    with pytest.raises(ValueError, match=r"`pose` must have shape \(1, 4, 4, 4\) for this clip, got \(1, 4, 4\)"):
        model(x, torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="`pose` must have shape"):
        model(x, torch.zeros(1, 64))
    with pytest.raises(ValueError, match=r"must be \[B, channels, T, H, W\]"):
        model(x[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paab": (0,)}, r"`paab` must be block numbers in 1\.\.3, got \(0,\)"),
        ({"paab": (1, 1)}, "must not contain a block twice"),
        ({"paab": (1,), "paat": (1,)}, "`paab` and `paat` must not share a block"),
        ({"paab_attention": "time"}, "`paab_attention` must be one of .*, got 'time'"),
        ({"mask_layout": "txy"}, "`mask_layout` must be one of .*, got 'txy'"),
        ({"num_joints": 0}, "`num_joints` must be at least 1, got 0"),
        ({"num_heads": 5}, "`embed_dim` must be a multiple of `num_heads`=5, got 12"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        TimeSformer(**{**SMALL, **options})


@pytest.mark.parametrize("frames", [1, 3, 9])
def test_other_sizes_and_lengths(frames):
    model = pose_aware(num_classes=5)
    x = torch.randn(2, 3, frames, 33, 17)
    assert model(x, torch.ones(2, frames, 5, 3)).shape == (2, 5)
    assert model(x).isfinite().all()
    maps = model.forward_intermediates(x, [0, 2], intermediates_only=True)
    assert [m.shape for m in maps] == [(2, 12, frames, 5, 3)] * 2


def test_timm_interface():
    model = timm.create_model("paab_timesformer_base_patch16_224", **SMALL).eval()
    assert model.paab == (3,)
    x, mask = torch.randn(2, 3, 4, 32, 32), torch.rand(2, 4, 4, 4).round()
    out = model(x, mask)
    assert out.shape == (2, 31)
    torch.testing.assert_close(out, model.get_classifier()(model.forward_head(model.forward_features(x, mask), True)))
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x, mask), out)
    gradients = []
    for enable in (True, False):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x, mask).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)
    final, maps = model.forward_intermediates(x, indices=2, norm=True, pose=mask)
    assert len(maps) == 2
    torch.testing.assert_close(final, model.forward_features(x, mask))
    torch.testing.assert_close(final[:, 1:].unflatten(1, (4, 4, 4)).permute(0, 4, 3, 1, 2), maps[1])
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}


def test_features_only_of_pictures_and_clips():
    model = timm.create_model("timesformer_tiny_patch16_224", features_only=True, out_indices=(0, 2), **SMALL).eval()
    assert [m.shape for m in model(torch.randn(1, 3, 40, 24))] == [(1, 12, 5, 3)] * 2
    assert [m.shape for m in model(torch.randn(1, 3, 2, 40, 24))] == [(1, 12, 2, 5, 3)] * 2


def test_size_of_the_published_model():
    model = timm.create_model("timesformer_base_patch16_224", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 121_566_352


def test_positions_and_times_are_interpolated():
    source, target = TimeSformer(**SMALL), TimeSformer(**{**SMALL, "img_size": (48, 16), "num_frames": 8})
    report = load_official(target, {"model_state": 1, **source.state_dict()})
    assert report.interpolated == {"pos_embed": "17 to 13", "time_embed": "4 to 8"}
    torch.testing.assert_close(target.time_embed[:, ::2], source.time_embed)
    torch.testing.assert_close(target.pos_embed[:, 0], source.pos_embed[:, 0])
    x = torch.randn(1, 3, 8, 48, 16)
    torch.testing.assert_close(target.eval()(x), source.eval()(x))


def test_starts_as_the_image_model_it_is_loaded_from():
    """Temporal paths start at zero, and times: then each frame is a picture of its own."""
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=12, depth=3, num_heads=3, num_classes=9
    ).eval()
    model = TimeSformer(**SMALL, num_classes=9, paab=(3,)).eval()
    report = load_official(model, vit.state_dict())
    assert "time_embed" in report.missing
    assert any("pose_blocks" in name for name in report.missing)
    assert torch.equal(model.blocks[1].temporal_attn.qkv.weight, vit.blocks[1].attn.qkv.weight)
    picture = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(picture), vit(picture), rtol=1e-4, atol=1e-5)


def test_wrong_checkpoint():
    with pytest.raises(CheckpointError, match="it seems to be a checkpoint of TimeSformer"):
        load_official(TimeSformer(**SMALL), TimeSformer(**{**SMALL, "depth": 4}).state_dict())


def test_pretrained_through_timm():
    source = TimeSformer(**SMALL, num_classes=31)
    model = timm.create_model(
        "paab_timesformer_base_patch16_224", pretrained=True,
        pretrained_cfg_overlay={"state_dict": source.state_dict()}, **SMALL,
    )  # fmt: skip
    assert torch.equal(model.blocks[2].mlp.fc1.weight, source.blocks[2].mlp.fc1.weight)


def test_exports():
    model = pose_aware()
    x, mask = torch.randn(1, 3, 4, 32, 32), torch.rand(1, 4, 4, 4).round()
    program = torch.export.export(model, (x, mask)).module()
    torch.testing.assert_close(program(x, mask), model(x, mask))


def test_weights_at_the_start():
    """Time is switched off; joint heads are not zero, or no gradient would reach the blocks."""
    model = TimeSformer(
        **{**SMALL, "embed_dim": 96}, init_std=0.1, paat=(1,), paab=(2,), paab_attention="spatiotemporal"
    )
    assert not any(block.temporal_fc.weight.any() for block in model.blocks)
    assert model.blocks[1].pose_blocks[0].temporal_fc.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert model.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.1, rel=0.1)
    for layer in model.blocks[0].pose_blocks[0].children():
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
