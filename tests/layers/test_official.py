"""Published checkpoints, by their names, in timm's models with their attention replaced."""

import pytest
import timm
import torch
from torch import nn

from visionattn.errors import CheckpointError
from visionattn.layers import filter_official, replace_attention

SWIN = {"img_size": 64, "embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4), "num_classes": 3}
DEIT = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_classes": 3}


def make(name: str, attention: str, where=None, **options) -> nn.Module:
    torch.manual_seed(1)
    model = timm.create_model(name, **{**(SWIN if "swin" in name else DEIT), **options}).eval()
    replace_attention(model, attention, where)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def as_published(model: nn.Module) -> dict[str, torch.Tensor]:
    """The names of the authors' Swin: downsampling belongs to the stage before; the head is ``head``."""
    out = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        out[".".join(parts).replace("head.fc.", "head.")] = tensor.clone()
    return out


@pytest.mark.parametrize("attention", ["agent", "inline"])
def test_swin(attention):
    """Loaded strictly: the same logits; buffers that upstream stores are dropped."""
    model = make("swin_tiny_patch4_window7_224", attention)
    published = as_published(model)
    assert "layers.0.downsample.reduction.weight" in published
    published["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.long)
    published["layers.0.blocks.0.attn_mask"] = torch.zeros(1, 4, 4)
    fresh = make("swin_tiny_patch4_window7_224", attention)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    for container in (published, {"model": published, "epoch": 3}, {"state_dict": published}):
        fresh.load_state_dict(filter_official(container, fresh))
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(fresh(images), model(images))


@pytest.mark.parametrize("attention", ["agent", "inline"])
def test_deit(attention):
    model = make("deit_tiny_patch16_224", attention)
    published = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    fresh = make("deit_tiny_patch16_224", attention)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(filter_official({"model": published}, fresh))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(fresh(images), model(images))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"])
def test_another_size(name):
    """Tables are those that the model of the checkpoint would interpolate to, for a map of that size."""
    model = make(name, "agent")
    options = {"img_size": (96, 128)}
    larger = make(name, "agent", **options)
    state = as_published(model) if "swin" in name else model.state_dict()
    larger.load_state_dict(filter_official(state, larger))
    small = next(m for m in model.modules() if hasattr(m, "an_bias"))
    large = next(m for m in larger.modules() if hasattr(m, "an_bias"))
    assert large.input_size == ((24, 32) if "swin" in name else (6, 8))
    for ours, theirs in zip(large.biases(*large.input_size), small.biases(*large.input_size), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert larger(torch.randn(1, 3, 96, 128)).shape == (1, 3)


def test_through_timm(tmp_path):
    """As a filter of timm's own loader, from a file."""
    model = make("deit_tiny_patch16_224", "inline")
    torch.save({"model": model.state_dict()}, tmp_path / "inline.pth")
    fresh = make("deit_tiny_patch16_224", "inline")
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    timm.models.load_checkpoint(fresh, str(tmp_path / "inline.pth"), filter_fn=filter_official, weights_only=True)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(fresh(images), model(images))


def test_window_attention_of_a_checkpoint_is_not_thrown_away():
    """Published Swin models have agents in the first stages only: the model must have them there, too."""
    partly = make("swin_tiny_patch4_window7_224", "agent", "layers.[01].*")
    published = as_published(partly)
    fully = make("swin_tiny_patch4_window7_224", "agent")
    with pytest.raises(CheckpointError, match=r"window attention in layers.2.blocks.0.attn, .* set `where`"):
        filter_official(published, fully)
    fresh = make("swin_tiny_patch4_window7_224", "agent", "layers.[01].*")
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(filter_official(published, fresh))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(fresh(images), partly(images))


def test_errors():
    model = make("deit_tiny_patch16_224", "agent")
    for state in ({}, {"model": {}}, {"epoch": 3}):
        with pytest.raises(CheckpointError, match="has no tensors"):
            filter_official(state, model)
    with pytest.raises(CheckpointError, match=r"`model` must be .*, got a ResNet"):
        filter_official({}, timm.create_model("resnet18"))
