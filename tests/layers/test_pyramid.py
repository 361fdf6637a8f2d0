"""Agent and InLine attention over the whole maps of timm's PVT v2."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from visionattn.layers import AgentAttention, replace_attention
from visionattn.layers.replace import ATTENTIONS, filter_official

SMALL = {"embed_dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
PLACES = ("stages.0.blocks.0.attn", "stages.1.blocks.0.attn", "stages.2.blocks.0.attn", "stages.2.blocks.1.attn")


def make(name: str = "pvt_v2_b0", **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **{**SMALL, **options})


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_training(attention):
    """Steps lower the loss and use every parameter; gradient checkpointing gives the same gradients."""
    model = make()
    report = replace_attention(model, attention)
    assert report.modules == (*PLACES, "stages.3.blocks.0.attn")
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    for net in (model, twin):
        F.cross_entropy(net(images), labels).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if attention != "sparsifiner" or p.grad is not None:  # whose predictor has losses of its own
            torch.testing.assert_close(p.grad, q.grad, msg=name)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    values = []
    for _ in range(5):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li"])
def test_what_is_kept(name):
    """Queries, keys and values keep their weights; what reduced the map is gone; nothing else changes."""
    model = make(name)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = replace_attention(model, "agent")
    after = model.state_dict()
    for place in report.modules:
        for kind in ("weight", "bias"):
            joint = torch.cat([before[f"{place}.q.{kind}"], before[f"{place}.kv.{kind}"]])
            assert torch.equal(after[f"{place}.qkv.{kind}"], joint)
            assert torch.equal(after[f"{place}.proj.{kind}"], before[f"{place}.proj.{kind}"])
            assert f"{place}.qkv.{kind}" in report.kept
    reducing = {n for n in before if ".attn.sr." in n or ".attn.norm." in n}
    assert set(report.dropped) == reducing
    assert reducing
    rest = {n for n in before if not n.startswith(report.modules)}
    assert all(torch.equal(before[n], after[n]) for n in rest)


def test_agents_and_maps_of_the_published_models():
    model = make()
    replace_attention(model, "agent")
    layers = [m for m in model.modules() if isinstance(m, AgentAttention)]
    assert [m.pool_size[0] ** 2 for m in layers] == [9, 16, 49, 49, 49]
    assert [m.input_size[0] for m in layers] == [56, 28, 14, 14, 7]
    # a model without its last stages has the agents of the same stages of the whole model
    part = make(features_only=True, out_indices=(0, 1))
    replace_attention(part, "agent")
    assert [m.pool_size[0] ** 2 for m in part.modules() if isinstance(m, AgentAttention)] == [9, 16]


@pytest.mark.parametrize("attention", ["agent", "inline"])
def test_the_whole_map_of_any_size(attention):
    """The layer sees all of a map that is not square, and the block is its definition around it."""
    model = make().eval()
    replace_attention(model, attention)
    block = model.stages[0].blocks[0]
    x = torch.randn(2, 6 * 10, 8, requires_grad=True)
    out = block(x, (6, 10))
    middle = x + block.attn(block.norm1(x), size=(6, 10))
    torch.testing.assert_close(out, middle + block.mlp(block.norm2(middle), (6, 10)))
    (gradient,) = torch.autograd.grad(out[0, 0].square().sum(), x)
    assert (gradient[0].abs().sum(-1) > 0).all()
    assert model(torch.randn(2, 3, 70, 110)).shape == (2, 3)


def test_copies_and_export():
    model = make().eval()
    replace_attention(model, "agent")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(images), expected)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)


def test_checkpoint_in_the_authors_names():
    """timm's names of PVT v2 differ from those of its authors; the biases keep theirs."""
    model = make()
    replace_attention(model, "agent")
    published = {}
    for name, value in model.state_dict().items():
        for stage in range(4):
            name = name.replace(f"stages.{stage}.blocks.", f"block{stage + 1}.")
            name = name.replace(f"stages.{stage}.norm.", f"norm{stage + 1}.")
            name = name.replace(f"stages.{stage}.downsample.", f"patch_embed{stage + 1}.")
        name = name.replace("patch_embed.", "patch_embed1.").replace("dwconv.", "dwconv.dwconv.")
        published[name] = value
    assert "block3.1.attn.an_bias" in published
    found = filter_official({"state_dict": published}, make())
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[n], w) for n, w in model.state_dict().items())
