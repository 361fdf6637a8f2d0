"""One switch for the attention of timm's models: what is kept, that it trains, compiles, exports and can be copied."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import visionattn  # noqa: F401  (registers davit_* of this package)
from visionattn.layers import AgentAttention, InLineAttention, SparsifinerAttention, record_reconstruction
from visionattn.layers.replace import ATTENTIONS, replace_attention

MODELS = {
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 24},
    "vit_tiny_patch16_224": {"img_size": (64, 32), "depth": 2, "embed_dim": 24, "reg_tokens": 2, "init_values": 0.1},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 24},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "embed_dim": 12,
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 3, 4),
    },
    "davit_tiny": {"embed_dims": (12, 24, 48, 96), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)},
}
every_model = pytest.mark.parametrize("name", MODELS)


def make(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **{**MODELS[name], **options})


def size_of(name: str) -> tuple[int, int]:
    size = MODELS[name].get("img_size", 64)
    return (size, size) if isinstance(size, int) else size


@every_model
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_training(name, attention):
    """Steps on four images lower the loss, and use every parameter, as data parallelism needs it."""
    model = make(name)
    report = replace_attention(model, attention)
    assert all(isinstance(model.get_submodule(place), ATTENTIONS[attention]) for place in report.modules)
    images, labels = torch.randn(4, 3, *size_of(name)), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    values = []
    for _ in range(6):
        with record_reconstruction(model) as losses:
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        (loss + 0.01 * sum(losses)).backward()
        assert [key for key, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]


@every_model
def test_what_is_kept(name):
    """Names and values of everything else, projections too; the report says the rest."""
    model = make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = replace_attention(model, "agent")
    after = model.state_dict()
    assert set(before) - set(after) - {
        k for k in before if k.endswith(("attn_mask", "relative_position_index"))
    } == set(report.dropped)
    assert set(after) - set(before) == set(report.new)
    for key in set(before) & set(after):
        assert torch.equal(before[key], after[key]), key
    assert {k for k in report.kept if k.endswith("qkv.weight")} == {f"{m}.qkv.weight" for m in report.modules}
    assert set(report.kept) <= set(before)
    assert all(k.endswith("relative_position_bias_table") for k in report.dropped)
    lines = str(report).splitlines()
    assert lines[0].startswith(f"{len(report.modules)} modules: {report.modules[0]}")
    # weights of the plain model still fit, but for what is new
    found = model.load_state_dict(before, strict=False)
    assert set(found.missing_keys) == set(report.new)


@every_model
@pytest.mark.parametrize("attention", ["agent", "sparsifiner"])
def test_copies(name, attention):
    """Deep copies and pickles, also after another size; the copy has its own state."""
    model = make(name).eval()
    replace_attention(model, attention)
    images = torch.randn(1, 3, *size_of(name))
    with torch.no_grad():
        expected = model(images)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(images), expected)
            next(twin.parameters()).zero_()
        torch.testing.assert_close(model(images), expected)
        fresh = make(name).eval()
        replace_attention(fresh, attention)
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(fresh(images), expected)


def test_a_copy_has_its_own_size():
    model = make("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    replace_attention(model, "inline")
    twin = copy.deepcopy(model)
    wide, tall = torch.randn(1, 3, 32, 64), torch.randn(1, 3, 64, 32)
    expected = model(tall)
    grids = {id(block.attn.grid) for block in twin.blocks}
    assert len(grids) == 1
    assert grids.isdisjoint(id(block.attn.grid) for block in model.blocks)
    twin(wide)
    assert model.blocks[0].attn.grid.size == (4, 2)
    assert twin.blocks[0].attn.grid.size == (2, 4)
    torch.testing.assert_close(twin(tall), expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_sizes_of_a_vision_transformer(attention):
    """The height and width are those of the image, not a guess: the same as giving them to each layer."""
    model = make("deit_tiny_patch16_224", dynamic_img_size=True).eval()
    replace_attention(model, attention)
    images = torch.randn(1, 3, 32, 96)
    x = model._pos_embed(model.patch_embed(images))
    first = model.blocks[0]
    expected = first.attn(first.norm1(x), size=(2, 6))
    seen = []
    first.attn.register_forward_hook(lambda module, inputs, out: seen.append(out))
    model(images)
    torch.testing.assert_close(seen[0], expected)
    assert (first.attn(first.norm1(x), size=(3, 4)) - expected).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "davit_tiny"])
def test_sizes_of_window_models(name):
    """Maps that no window divides; the attention sees all of the map."""
    options = {"strict_img_size": False} if name.startswith("swin") else {}
    model = make(name, **options).eval()
    replace_attention(model, "agent")
    assert model(torch.randn(2, 3, 96, 160)).shape == (2, 3)
    images = torch.randn(1, 3, 64, 96)
    first = next(m for m in model.modules() if isinstance(m, AgentAttention))
    maps = []
    first.register_forward_hook(lambda module, inputs, out: maps.append((inputs[0], out)))
    model(images)
    tokens, out = maps[0]
    torch.testing.assert_close(out, first(tokens, size=(16, 24)))
    (gradient,) = torch.autograd.grad(out[0, 0].square().sum(), tokens)
    assert (gradient[0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("attention", ["agent", "inline"])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "davit_tiny"])
def test_features_only(name, attention):
    more = {"out_indices": (0, 1)} if name.startswith("deit") else {}
    model = make(name, features_only=True, **more).eval()
    shapes = [f.shape for f in model(torch.randn(1, 3, 64, 64))]
    report = replace_attention(model, attention)
    features = model(torch.randn(1, 3, 64, 64))
    assert [f.shape for f in features] == shapes
    assert all(isinstance(model.get_submodule(place), ATTENTIONS[attention]) for place in report.modules)
    sum(f.square().mean() for f in features).backward()


def test_features_only_counts_the_stages_that_are_left_out():
    """Numbers of agents are those of the same blocks of the whole model, so that its weights fit."""
    for name, levels, expected in (
        ("deit_tiny_patch16_224", (0, 1), [9, 16]),
        ("swin_tiny_patch4_window7_224", (0, 1), [9, 16]),
        ("davit_tiny", (0, 2), [9, 16, 49]),
    ):
        model = make(name, features_only=True, out_indices=levels, **({"depth": 6} if name.startswith("deit") else {}))
        replace_attention(model, "agent")
        assert [m.pool_size[0] ** 2 for m in model.modules() if isinstance(m, AgentAttention)] == expected


def test_compile_and_export_a_model():
    model = make("deit_tiny_patch16_224").eval()
    replace_attention(model, "agent")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), expected)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)


def test_export_a_window_model():
    for name in ("swin_tiny_patch4_window7_224", "davit_tiny"):
        model = make(name).eval()
        replace_attention(model, "inline")
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), model(images))


def test_our_davit():
    """Registered by this package, over timm's blocks."""
    model = timm.create_model("davit_large_window12_384", **MODELS["davit_tiny"])
    assert type(model).__module__.startswith("visionattn.")
    report = replace_attention(model, "agent")
    assert report.modules == tuple(f"stages.{i}.blocks.0.0.attn" for i in range(4))
    model(torch.randn(2, 3, 64, 96)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_where_and_again():
    """Some blocks by a pattern, others by a function, and another attention in the place of one put in before."""
    model = make("deit_tiny_patch16_224", depth=3)
    assert replace_attention(model, "agent", "blocks.[01].attn").modules == ("blocks.0.attn", "blocks.1.attn")
    assert type(model.blocks[2].attn) is timm.layers.Attention
    replace_attention(model, "inline", lambda name: name == "blocks.2.attn")
    weights = model.blocks[0].attn.qkv.weight.clone()
    report = replace_attention(model, "sparsifiner", "blocks.0.attn")
    assert torch.equal(model.blocks[0].attn.qkv.weight, weights)
    assert "blocks.0.attn.an_bias" in report.dropped
    kinds = [type(block.attn) for block in model.blocks]
    assert kinds == [SparsifinerAttention, AgentAttention, InLineAttention]
    assert len({id(block.attn.grid) for block in model.blocks}) == 1
    assert len(model.patch_embed._forward_hooks) == 1
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_separate_projections_are_kept():
    """GPSA has queries and keys apart from values: the same numbers, split and joined."""
    model = make("deit_tiny_patch16_224")
    before = model.blocks[1].attn.qkv.weight.clone()
    report = replace_attention(model, "gpsa")
    assert torch.equal(torch.cat([model.blocks[1].attn.qk.weight, model.blocks[1].attn.v.weight]), before)
    assert "blocks.1.attn.qk.bias" in report.kept
    replace_attention(model, "inline")
    assert torch.equal(model.blocks[1].attn.qkv.weight, before)


def test_options():
    model = make("deit_tiny_patch16_224", depth=6, attn_drop_rate=0.1, proj_drop_rate=0.2)
    replace_attention(model, "agent")
    assert [block.attn.pool_size[0] ** 2 for block in model.blocks] == [9, 16, 49, 49, 49, 49]
    assert {(b.attn.attn_drop, b.attn.proj_drop.p, b.attn.num_prefix_tokens) for b in model.blocks} == {(0.1, 0.2, 1)}
    replace_attention(model, "agent", agent_num=[1, 4, 9, 16])
    assert [block.attn.pool_size[0] ** 2 for block in model.blocks] == [1, 4, 9, 9, 9, 16]
    replace_attention(model, "agent", agent_num=[1, 4, 9, 16, 25, 36])
    assert [block.attn.pool_size[0] ** 2 for block in model.blocks] == [1, 4, 9, 16, 25, 36]
    replace_attention(model, "agent", num_heads=2, agent_num=4)
    assert {(b.attn.num_heads, b.attn.an_bias.shape) for b in model.blocks} == {(2, (2, 4, 7, 7))}
    swin = make("swin_tiny_patch4_window7_224")
    replace_attention(swin, "sparsifiner", keep_rate=[0.1, 0.2, 0.3, 0.4])
    rates = [m.keep_rate for m in swin.modules() if isinstance(m, SparsifinerAttention)]
    assert rates == [0.1, 0.2, 0.3, 0.3, 0.4]
    assert [m.input_size for m in swin.modules() if isinstance(m, SparsifinerAttention)] == [
        (16, 16),
        (8, 8),
        (4, 4),
        (4, 4),
        (2, 2),
    ]


def test_device_type_mode_and_frozen_weights():
    model = make("deit_tiny_patch16_224").bfloat16().eval()
    model.blocks[0].attn.qkv.requires_grad_(False)
    replace_attention(model, "agent")
    attn = model.blocks[0].attn
    assert not attn.training
    assert {p.dtype for p in attn.parameters()} == {torch.bfloat16}
    assert not attn.qkv.weight.requires_grad
    assert attn.proj.weight.requires_grad
    assert attn.an_bias.requires_grad


def test_part_of_something_larger():
    names = {"vit": "deit_tiny_patch16_224", "davit": "davit_tiny", "swin": "swin_tiny_patch4_window7_224"}
    holder = nn.ModuleDict({part: make(name) for part, name in names.items()})
    report = replace_attention(holder, "agent")
    assert report.modules[0] == "vit.blocks.0.attn"
    assert "swin.layers.2.blocks.1.attn" in report.modules
    agents = [m.pool_size[0] ** 2 for m in holder["swin"].modules() if isinstance(m, AgentAttention)]
    assert agents == [9, 16, 49, 49, 49], "stages are counted in each model"
    for part in holder.values():
        assert part(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_swin_still_changes_its_input_size():
    model = make("swin_tiny_patch4_window7_224").eval()
    replace_attention(model, "agent")
    model.set_input_size((96, 160))
    assert model(torch.randn(1, 3, 96, 160)).shape == (1, 3)


def test_errors_leave_the_model():
    model = make("deit_tiny_patch16_224")
    for arguments, options, message in (
        (("none",), {}, "`attention` must be one of .*, got 'none'"),
        (("agent", "layers.*"), {}, r"`where` must match one of blocks.0.attn, blocks.1.attn, got 'layers.\*'"),
        (("agent",), {"agents": 9}, "`agents` is not an argument of AgentAttention"),
        (("agent",), {"dim": 9}, "`dim` is not an argument of AgentAttention"),
        (
            ("agent",),
            {"agent_num": [9, 7, 9]},
            r"`agent_num` must have 4 values, or one for each of 2 blocks, got \[9, 7, 9\]",
        ),
        (("agent",), {"agent_num": [9, 7]}, "`agent_num` must be a square number or .*, got 7"),
    ):
        with pytest.raises(ValueError, match=message):
            replace_attention(model, *arguments, **options)
    assert all(type(block.attn) is timm.layers.Attention for block in model.blocks)
    assert not model.patch_embed._forward_hooks
    with pytest.raises(ValueError, match=r"`model` must be or contain a VisionTransformer, .*, got a ResNet"):
        replace_attention(timm.create_model("resnet18"), "agent")
    with pytest.raises(ValueError, match=r"`keep_rate` must have one value for each of 4 stages, got \[0.1, 0.2\]"):
        replace_attention(make("swin_tiny_patch4_window7_224"), "sparsifiner", keep_rate=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"`attn_drop` must be 0, .*, got 0\.1"):
        replace_attention(make("deit_tiny_patch16_224", attn_drop_rate=0.1), "inline")
