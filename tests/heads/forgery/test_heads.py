"""Fusion head, label head, losses."""

import pytest
import torch
import torch.nn.functional as F

from visionattn.heads.forgery.heads import ForgeryHead, ForgeryOutput, FusionHead, forgery_losses, label_decoder


def test_fusion_head_gives_the_recorded_logits(shared_dir, keyed_state):
    fx = torch.load(shared_dir / "parity" / "forgery" / "nfa_fusion_head_keyed.pt", weights_only=True)
    head = FusionHead((64, 128, 320, 512), official=True)
    head.load_state_dict(keyed_state(fx["meta"]["shapes"]))
    assert torch.allclose(head(fx["inputs"]["feats"]), fx["outputs"]["logits"], atol=1e-5)


def test_fusion_head_without_the_unused_weights():
    names = {n for n, _ in FusionHead((4, 8)).named_parameters() if n.startswith("gamma")}
    assert names == {"gamma1", "gamma2"}
    official = FusionHead((4, 8, 8, 8), official=True)
    assert [n for n, p in official.named_parameters() if not p.requires_grad] == ["gamma5", "gamma6"]
    with pytest.raises(ValueError, match="`features` must have 2 maps, got 1"):
        FusionHead((4, 8))([torch.randn(1, 4, 2, 2)])
    with pytest.raises(ValueError, match="`in_channels` must have"):
        FusionHead(())


def test_label_decoder_is_a_linear_map_of_the_mean():
    head = label_decoder(6)
    x = torch.randn(2, 6, 3, 5)
    assert set(head.state_dict()) == {"2.weight", "2.bias"}
    assert torch.allclose(head(x), x.mean((2, 3)) @ head[2].weight.T + head[2].bias, atol=1e-6)


@pytest.mark.parametrize("label_from_mask", [True, False])
def test_head_on_any_pyramid(label_from_mask):
    torch.manual_seed(0)
    head = ForgeryHead((4, 8, 16), 12, label_from_mask)
    features = [torch.randn(1, 4, 10, 14), torch.randn(1, 8, 5, 7), torch.randn(1, 16, 3, 4)]
    out = head(features, (40, 56))
    assert out.mask_logits.shape == (1, 1, 40, 56)
    assert out.label_logits.shape == (1,)
    assert 0 < out.label.item() < 1
    sum(forgery_losses(out, torch.zeros(1, 1, 40, 56)).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_label_compares_the_suspected_region_with_the_picture():
    torch.manual_seed(0)
    head = ForgeryHead((4, 8), 12, label_from_mask=False, compare_regions=True)
    features = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]
    before = head(features, (32, 32)).label_logits
    assert torch.allclose(before, head.cls_decoder(features[-1])[:, 0])  # says nothing until it has learned
    torch.nn.init.normal_(head.regions_to_label[2].weight)
    assert not torch.allclose(head(features, (32, 32)).label_logits, before)
    fused = head.seg_decoder.fuse(features)
    share = head.seg_decoder.conv_last(fused).flatten(2).softmax(2)
    seen = torch.einsum("bcn,bn->bc", fused.flatten(2), share[:, 0])
    added = head.regions_to_label(torch.cat([seen, seen - fused.mean((2, 3))], 1))[:, 0]
    out = head(features, (32, 32))
    assert torch.allclose(out.label_logits, before + added, atol=1e-5)
    sum(forgery_losses(out, torch.zeros(2, 1, 32, 32)).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_losses_are_those_of_the_paper():
    torch.manual_seed(0)
    out = ForgeryOutput(torch.randn(3, 1, 6, 5), torch.randn(3), torch.randn(3, 1, 6, 5))
    mask = (torch.rand(3, 1, 6, 5) > 0.7).float()
    mask[1] = 0
    losses = forgery_losses(out, mask)
    assert torch.allclose(losses["loss_mask"], F.binary_cross_entropy_with_logits(out.mask_logits, mask))
    want = F.binary_cross_entropy_with_logits(out.label_logits, torch.tensor([1.0, 0, 1]))
    assert torch.allclose(losses["loss_label"], 0.5 * want)
    assert torch.allclose(losses["loss_aux"], 0.5 * F.binary_cross_entropy_with_logits(out.aux_logits, mask))
    for label in (torch.tensor([1, 0, 1]), torch.tensor([[1], [0], [1]])):
        assert torch.allclose(forgery_losses(out, mask, label)["loss_label"], 0.5 * want)


def test_pixels_outside_do_not_count():
    torch.manual_seed(0)
    out = ForgeryOutput(torch.randn(2, 1, 6, 6), torch.randn(2))
    mask = (torch.rand(2, 1, 6, 6) > 0.5).float()
    valid = torch.zeros_like(mask)
    valid[..., :4, :3] = 1
    inner = ForgeryOutput(out.mask_logits[..., :4, :3], out.label_logits)
    got = forgery_losses(out, mask, valid=valid, dice_weight=1.0)
    want = forgery_losses(inner, mask[..., :4, :3], dice_weight=1.0)
    assert {k: pytest.approx(float(v), abs=1e-6) for k, v in want.items()} == {k: float(v) for k, v in got.items()}
    with pytest.raises(ValueError, match="`valid` must have the shape"):
        forgery_losses(out, mask, valid=valid[..., :2])


def test_dice_of_a_perfect_mask_is_nothing():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :4] = 1
    out = ForgeryOutput((mask * 2 - 1) * 50, torch.tensor([9.0]))
    assert float(forgery_losses(out, mask, dice_weight=2.0)["loss_dice"]) == pytest.approx(0, abs=1e-6)
    assert float(forgery_losses(out, 1 - mask, dice_weight=2.0)["loss_dice"]) == pytest.approx(2, abs=1e-6)
    weighted = forgery_losses(ForgeryOutput(mask * 0, torch.zeros(1)), mask, pos_weight=3.0)["loss_mask"]
    assert float(weighted) == pytest.approx(0.6931472 * (48 + 3 * 16) / 64, abs=1e-5)
