"""DiNAT with convolutional first levels."""

import pytest
import timm
import torch

from visionattn.backbones.dinat_hybrid import ConvLevel, HybridDiNAT

TINY = {"embed_dim": 8, "depths": (1, 2, 2, 1), "num_heads": (1, 1, 2, 4), "num_classes": 0}


@pytest.mark.parametrize("conv_levels", [0, 1, 4])
def test_levels_are_convolutional_up_to_a_number(conv_levels):
    model = HybridDiNAT(**TINY, conv_levels=conv_levels, dilations="auto")
    assert [isinstance(level, ConvLevel) for level in model.levels] == [i < conv_levels for i in range(4)]
    maps = model.forward_intermediates(torch.randn(2, 3, 75, 66), intermediates_only=True)
    assert [tuple(x.shape) for x in maps] == [(2, 8, 19, 17), (2, 16, 10, 9), (2, 32, 5, 5), (2, 64, 3, 3)]
    assert all(x.isfinite().all() for x in maps)


def test_levels_with_attention_have_the_names_of_dinat():
    model, published = HybridDiNAT(**TINY), timm.create_model("dinat_pico", **TINY)
    own, names = model.state_dict(), published.state_dict()
    deep = [name for name in names if name.startswith(("levels.2.", "levels.3.", "norm."))]
    assert {name: own[name].shape for name in deep} == {name: names[name].shape for name in deep}
    assert model.no_weight_decay() == published.no_weight_decay()


def test_a_block_is_residual():
    block = HybridDiNAT(**TINY).eval().levels[0].blocks[0]
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.rand(1, 8, 5, 6)
    assert torch.equal(block(x), x)


def test_size():
    model = timm.create_model("dinat_nano", num_classes=0)
    assert sum(p.numel() for p in model.parameters()) == 2_664_568


@pytest.mark.parametrize("conv_levels", [-1, 5])
def test_wrong_number_of_levels(conv_levels):
    with pytest.raises(ValueError, match=r"`conv_levels` must be in 0\.\.4"):
        HybridDiNAT(**TINY, conv_levels=conv_levels)
