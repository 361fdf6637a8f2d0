"""NFA-ViT whole: published set, mended set, loading."""

import pytest
import torch

from visionattn.errors import CheckpointError
from visionattn.heads.forgery.nfa_vit import NFA_ViT, NFAViT

TINY = dict(
    noise_dims=(8, 16, 24, 32), noise_depths=(2, 1, 1, 1), image_dims=(8, 16, 24, 32), image_depths=(2, 2, 2, 2),
    num_heads=(1, 2, 3, 4), embed_dim=16,
)  # fmt: skip


def small(**arguments):
    torch.manual_seed(0)
    return NFAViT(**{**TINY, "drop_path_rate": 0.0, **arguments})


def step(model, size=(96, 128), batch=2):
    image = torch.randn(batch, 3, *size)
    mask = torch.zeros(batch, 1, *size)
    mask[0, :, : size[0] // 2] = 1
    output = model(image)
    sum(model.losses(output, mask).values()).backward()
    return output


def test_published_size_and_names():
    with torch.device("meta"):
        model = NFAViT(official=True)
    assert sum(p.numel() for p in model.parameters()) == 28_601_251
    names = set(model.state_dict())
    for name in (
        "noise_extractor.layers.0.bias", "noise_extractor.layers.47.weight", "noise_extractor.layers.45.running_var",
        "noise_backbone.block1.0.attn.sr.weight", "noise_backbone.block4.1.mlp.dwconv.dwconv.bias",
        "image_backbone.block3.5.attn.norm.weight", "image_backbone.patch_embed4.proj.weight",
        "image_backbone.norm2.weight", "seg_decoder.gamma6", "seg_decoder.conv_last.bias", "cls_decoder.2.weight",
    ):  # fmt: skip
        assert name in names
    assert not [n for n in names if n.startswith("image_backbone.block4") and ".sr." in n]
    assert NFA_ViT is NFAViT


@pytest.mark.parametrize(
    "arguments",
    [{}, {"freeze_extractor": False}, {"noise_block": "published"}, {"train_noise": "straight_through"},
     {"train_noise": "straight_through", "noise_block": "published"}, {"official": True}],
    ids=str,
)  # fmt: skip
def test_every_trainable_parameter_receives_a_gradient(arguments):
    model = small(**arguments).train()
    step(model, (128, 160))
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    noise = [p for p in model.noise_backbone.parameters() if p.requires_grad]
    assert bool(noise) != bool(arguments.get("official"))


def test_published_noise_branch_learns_nothing():
    model = small(official=True, train_noise="none").train()
    model.noise_backbone.requires_grad_(True)
    step(model)
    assert all(p.grad is None for p in model.noise_backbone.parameters())


@pytest.mark.parametrize("size", [(64, 64), (70, 101), (32, 96)])
def test_any_size_and_a_batch_of_one(size):
    model = small().train()
    output = step(model, size, batch=1)
    assert output.mask.shape == (1, 1, *size)
    assert output.label.shape == (1,)
    assert output.aux_logits.shape == (1, 1, *size)
    assert model.eval()(torch.randn(1, 3, *size)).aux_logits is None


def test_batches_do_not_mix():
    model = small().eval()
    image = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        whole, alone = model(image), model(image[1:2])
    assert torch.allclose(whole.mask_logits[1:2], alone.mask_logits, atol=1e-5)
    assert torch.allclose(whole.label_logits[1:2], alone.label_logits, atol=1e-5)


def test_statistics_of_the_frozen_extractor_stay():
    for official in (False, True):
        model = small(official=official).train()
        before = model.noise_extractor.layers[3].running_mean.clone()
        model(torch.randn(2, 3, 64, 64))
        assert torch.equal(before, model.noise_extractor.layers[3].running_mean) != official


def test_given_masks_take_the_place_of_the_noise_branch():
    model = small().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        _, masks = model.noise_backbone(model.noise_extractor(image))
        want = model(image)
        model.noise_extractor.layers[0].weight.zero_()
        got = model(image, noise_masks=[m.float() for m in masks])
    assert torch.equal(want.mask_logits, got.mask_logits)
    assert torch.equal(want.label_logits, got.label_logits)


def test_names_of_the_framework():
    model = small()
    out = model.framework_step(torch.randn(1, 3, 64, 64), torch.zeros(1, 1, 64, 64), torch.zeros(1))
    assert set(out) == {"backward_loss", "pred_mask", "pred_label", "visual_loss", "visual_image"}
    assert out["pred_label"].shape == (1,)
    assert torch.allclose(out["backward_loss"], out["visual_loss"]["predict_loss"])


def test_official_checkpoint_selects_the_published_set():
    source = small(official=True).eval()
    with torch.no_grad():
        for p in source.parameters():
            p.add_(0.02 * torch.randn_like(p))
    checkpoint = {"model": {f"module.{k}": v for k, v in source.state_dict().items()}, "epoch": 3}
    model, report = NFAViT.from_official(checkpoint, num_heads=TINY["num_heads"])
    assert model.official
    assert not model.training
    assert report.settings["noise_block"] == "published"
    assert report.settings["noise_eval"] == "False"
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(image).mask_logits, source(image).mask_logits)
    mended = small()
    mended.eval()
    report = mended.load_official(checkpoint)
    assert "noise_block is published" in str(report)
    assert set(report.dropped) == {"seg_decoder.gamma5", "seg_decoder.gamma6"}
    with torch.no_grad():
        assert torch.equal(mended(image).mask_logits, source(image).mask_logits)
    step(mended.train())
    assert not [n for n, p in mended.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


def test_a_checkpoint_that_does_not_fit_changes_nothing():
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"noise_extractor.*is missing.*more"):
        model.load_official({"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="not of an NFA-ViT"):
        NFAViT.from_official({"a": torch.zeros(1)})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_branches_start_from_published_parts():
    model = small()
    b0 = {k: torch.randn_like(v) for k, v in model.noise_backbone.state_dict().items()}
    b0["patch_embed1.proj.weight"] = torch.randn(8, 3, 7, 7)
    b0["head.weight"] = torch.randn(3, 3)
    report = model.load_branches(noise=b0)
    first = model.noise_backbone.patch_embed1.proj.weight
    assert torch.allclose(first, b0["patch_embed1.proj.weight"].mean(1, keepdim=True))
    assert list(report.dropped) == ["noise_backbone: head.weight"]
    with pytest.raises(CheckpointError, match="image_backbone do not match"):
        model.load_branches(image=b0)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`train_noise` must be .* got 'yes'"):
        small(train_noise="yes")
    with pytest.raises(ValueError, match=r"`block` must be .* got 'x'"):
        small(noise_block="x")
