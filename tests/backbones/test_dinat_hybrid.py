"""Residual convolutional networks with neighborhood attention in the later levels."""

import pytest
import timm
import torch

from visionattn.backbones.dinat_hybrid import AttentionBlock, HybridDiNAT

TINY = {"embed_dim": 8, "depths": (1, 2, 2, 1), "num_heads": (1, 1, 2, 4), "num_classes": 0}


@pytest.mark.parametrize("conv_levels", [0, 1, 4])
def test_levels_have_attention_from_a_number_on(conv_levels):
    model = HybridDiNAT(**TINY, conv_levels=conv_levels, dilations="auto")
    with_attention = [all(isinstance(block, AttentionBlock) for block in level.blocks) for level in model.levels]
    assert with_attention == [index >= conv_levels for index in range(4)]
    maps = model.forward_intermediates(torch.randn(2, 3, 75, 66), intermediates_only=True)
    assert [tuple(x.shape) for x in maps] == [(2, 8, 19, 17), (2, 16, 10, 9), (2, 32, 5, 5), (2, 64, 3, 3)]
    assert all(x.isfinite().all() for x in maps)


def test_position_biases_have_no_weight_decay():
    assert HybridDiNAT(**TINY).no_weight_decay() == {"*.rpb"}


@pytest.mark.parametrize("level", [0, 2])
def test_blocks_start_without_effect_and_learn(level):
    block = HybridDiNAT(**TINY).train().levels[level].blocks[0]
    x = torch.rand(1, 9, 10, 8 * 2**level)
    out = block(x)
    assert torch.equal(out, x)
    (out * torch.randn_like(out)).sum().backward()
    last = [block.norm2.weight] if level == 0 else [block.convs.norm2.weight, block.attn.proj.weight]
    assert all(p.grad.abs().sum() > 0 for p in last)


def test_attention_reaches_as_far_as_its_window():
    torch.manual_seed(0)
    block = HybridDiNAT(**TINY).eval().levels[2].blocks[0]
    torch.nn.init.normal_(block.attn.proj.weight)
    x = torch.rand(1, 15, 15, 32, requires_grad=True)
    block(x)[0, 7, 7].sum().backward()
    reached = (x.grad[0].abs().sum(-1) > 0).nonzero()
    assert (reached.amin(0).tolist(), reached.amax(0).tolist()) == ([4, 4], [10, 10])


def test_all_convolutions_have_channels_last_maps():
    model = HybridDiNAT(**TINY)
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda module, inputs, output: seen.append(
                    inputs[0].is_contiguous(memory_format=torch.channels_last)
                    and output.is_contiguous(memory_format=torch.channels_last)
                )
            )
    model(torch.randn(2, 3, 64, 96))
    assert len(seen) == 17
    assert all(seen)


def test_size():
    model = timm.create_model("dinat_nano", num_classes=0)
    assert sum(p.numel() for p in model.parameters()) == 2_294_268


@pytest.mark.parametrize("conv_levels", [-1, 5])
def test_wrong_number_of_levels(conv_levels):
    with pytest.raises(ValueError, match=r"`conv_levels` must be in 0\.\.4"):
        HybridDiNAT(**TINY, conv_levels=conv_levels)
