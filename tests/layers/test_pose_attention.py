"""Pose-aware attention: recordings of the authors' blocks, and gathering against the dense definition."""

import pytest
import torch
from torch import nn

from visionattn.layers.pose_attention import ATTENTIONS, JointHead, PoseBlock, PoseBlocks, select_tokens

NAMES = {"PoseBlockSpatial": "spatial", "PoseBlockJointST": "joint", "PoseBlockSpatialTemporal": "spatiotemporal"}


def recordings(shared_dir, pattern: str) -> list[dict]:
    files = sorted((shared_dir / "parity/pose").glob(pattern))
    assert files
    return [torch.load(file, weights_only=True) for file in files]


def kind_of(record: dict) -> str:
    name = record["meta"]["cls"].rsplit(":", 1)[-1].lower()
    if "joint" in name:
        return "joint"
    return "spatiotemporal" if "temporal" in name else "spatial"


def test_published_blocks(shared_dir):
    """Every token, those outside of the mask too, and the gradient of the input."""
    for record in recordings(shared_dir, "paab_unit_*.pt"):
        options = record["meta"]["kwargs"]
        block = PoseBlock(
            options["embed_dim"], options["num_heads"], kind_of(record), norm_layer=lambda d, **k: nn.LayerNorm(d, 1e-6)
        )
        block.load_state_dict(record["state_dict"])
        B, T, H, W = record["meta"]["BTHW"]
        x = record["inputs"]["x"].clone().requires_grad_()
        allowed = record["inputs"]["human_mask"][:, 1:, 0] == 0
        mask = allowed.view(B, H * W, T) if block.attention == "joint" else allowed.view(B, T, H * W).transpose(1, 2)
        prefix, patches = block(x[:, :1], x[:, 1:].view(B, H * W, T, -1), mask.float(), published=True)
        y = torch.cat([prefix, patches.flatten(1, 2)], 1)
        torch.testing.assert_close(y, record["outputs"]["y"], rtol=1e-5, atol=1e-5)
        y.backward(record["inputs"]["grad_out"])
        torch.testing.assert_close(x.grad, record["grads"]["x"], rtol=1e-4, atol=1e-5)


def published(blocks: PoseBlocks, prefix: torch.Tensor, patches: torch.Tensor, mask: torch.Tensor):
    """The published computation with every pair of tokens in one matrix, a row at a time; float64."""
    B, N, T, C = patches.shape
    P = prefix.shape[1]
    plain = patches
    for block in blocks:
        if block.attention == "spatiotemporal":
            patches = block.over_time(patches)
        rows = (
            [(b, None) for b in range(B)]
            if block.attention == "joint"
            else [(b, t) for b in range(B) for t in range(T)]
        )
        out_prefix, out = torch.zeros_like(prefix), torch.zeros_like(patches)
        for b, t in rows:
            tokens = patches[b].flatten(0, 1) if t is None else patches[b, :, t]
            m = mask[b].flatten() if t is None else mask[b, :, t]
            x = block.norm1(torch.cat([prefix[b], tokens]))
            weight = torch.cat([torch.ones(P, dtype=m.dtype), m])
            q, k, v = block.attn.qkv(x).view(len(x), 3, block.attn.num_heads, -1).permute(1, 2, 0, 3)
            logits = (q @ k.mT) * (C // block.attn.num_heads) ** -0.5 + weight.log()
            r = block.attn.proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
            out_prefix[b] += r[:P] / (1 if t is None else T)
            if t is None:
                out[b] = r[P:].view(N, T, C)
            else:
                out[b, :, t] = r[P:]
        prefix, patches = prefix + out_prefix, patches + out
        prefix = prefix + block.mlp(block.norm2(prefix))
        patches = patches + block.mlp(block.norm2(patches))
    return prefix, patches * mask[..., None] + plain * (1 - mask[..., None])


def make(attention: str, count: int = 1, dim: int = 12, **options) -> PoseBlocks:
    torch.manual_seed(1)
    return PoseBlocks(PoseBlock(dim, 3, attention, **options) for _ in range(count)).double()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("prefixes", [0, 1, 3])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gathered_is_the_definition(attention, prefixes, soft):
    """Uneven numbers of tokens, a frame without any; values and all gradients."""
    generator = torch.Generator().manual_seed(0)
    blocks = make(attention, 1 if attention == "spatiotemporal" else 2)
    B, N, T, C = 2, 6, 3, 12
    prefix = torch.randn(B, prefixes, C, generator=generator, dtype=torch.double, requires_grad=True)
    patches = torch.randn(B, N, T, C, generator=generator, dtype=torch.double, requires_grad=True)
    mask = (torch.rand(B, N, T, generator=generator) < 0.4).double()
    mask[0, :, 1] = 0
    if prefixes == 0:
        mask[:, 0] = 1  # the definition has no value for a row without any key
    if soft:
        mask = mask * (0.1 + 0.9 * torch.rand(B, N, T, generator=generator, dtype=torch.double))
    weights = [torch.randn(v.shape, generator=generator, dtype=torch.double) for v in (prefix, patches)]
    inputs = (prefix, patches, *blocks.parameters())

    def gradients(out):
        loss = sum((o * w).sum() for o, w in zip(out, weights, strict=True))
        return torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)

    expected = published(blocks, prefix, patches, mask)
    dense = blocks._dense(prefix, patches, mask, None, False)
    gathered = blocks(prefix, patches, mask)
    for found in (dense, gathered):
        torch.testing.assert_close(found, expected)
        for a, b in zip(gradients(found), gradients(expected), strict=True):
            if a is not None and b is not None:
                torch.testing.assert_close(a, b)


def test_a_mask_that_learns():
    blocks = make("spatial")
    patches = torch.randn(1, 3, 1, 12, dtype=torch.double)
    mask = (torch.rand(1, 3, 1, dtype=torch.double) * 0.8 + 0.1).requires_grad_()
    cls = torch.randn(1, 1, 12, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda m: blocks(cls, patches, m), mask)


def test_nothing_and_everything_under_the_mask():
    blocks = make("spatial")
    cls, patches = torch.randn(1, 1, 12, dtype=torch.double), torch.randn(1, 4, 2, 12, dtype=torch.double)
    changed, same = blocks(cls, patches, torch.zeros(1, 4, 2))
    assert torch.equal(same, patches)
    assert not torch.equal(changed, cls)  # it attends to itself
    empty = cls[:, :0]
    assert torch.equal(blocks(empty, patches, torch.zeros(1, 4, 2))[1], patches)
    ones = blocks(cls, patches, torch.ones(1, 4, 2))
    torch.testing.assert_close(ones, blocks[0](cls, patches, torch.ones(1, 4, 2)))


def test_several_spatiotemporal_blocks_see_all_tokens():
    """The second block's attention over time has what the first made of the tokens outside of the mask."""
    blocks = make("spatiotemporal", 2)
    cls, patches = torch.randn(1, 1, 12, dtype=torch.double), torch.randn(1, 4, 3, 12, dtype=torch.double)
    mask = torch.zeros(1, 4, 3)
    mask[0, 1, 0] = mask[0, 2, 1] = 1
    one = blocks[0](cls, patches, mask, published=True)
    two = blocks[1](*one, mask, published=True)
    found = blocks(cls, patches, mask)
    torch.testing.assert_close(found[0], two[0])
    torch.testing.assert_close(found[1][0, 1, 0], two[1][0, 1, 0])
    assert torch.equal(found[1][0, 0], patches[0, 0])


def test_only_the_mask_is_computed():
    """Projections and MLP see the chosen tokens and the prefix, no others."""
    blocks = make("spatial")
    rows = []
    blocks[0].mlp.register_forward_hook(lambda module, inputs, out: rows.append(inputs[0].numel() // 12))
    mask = torch.zeros(2, 50, 4)
    mask[:, :3] = 1
    blocks(torch.randn(2, 1, 12).double(), torch.randn(2, 50, 4, 12).double(), mask)
    assert rows == [2, 2 * 3 * 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """-1e9 is beyond float16; nothing may overflow."""
    blocks = make("spatial").to(dtype)
    cls, patches = torch.randn(2, 1, 12, dtype=dtype), torch.randn(2, 8, 3, 12, dtype=dtype)
    mask = (torch.arange(8)[None, :, None] < torch.arange(3)).expand(2, 8, 3)
    wide = make("spatial").float()
    expected = wide(cls.float(), patches.float(), mask)
    for found in (blocks(cls, patches, mask), blocks._dense(cls, patches, mask, mask, True)):
        for a, b in zip(found, expected, strict=True):
            assert a.isfinite().all()
            assert (a.float() - b).abs().max() < 0.1


def test_autocast():
    blocks = make("joint").float()
    cls, patches = torch.randn(2, 1, 12), torch.randn(2, 8, 3, 12)
    mask = torch.rand(2, 8, 3)
    mask[mask < 0.5] = 0
    with torch.autocast("cpu", torch.bfloat16):
        found = blocks(cls, patches, mask)
    for a, b in zip(found, blocks(cls, patches, mask), strict=True):
        assert (a - b).abs().max() < 0.1


def test_drop_path_keeps_the_mean():
    """Whole frames and clips are dropped, the prefix with them, and what is left is scaled."""
    blocks = make("spatial", drop_path=0.5).train()
    B = 2000
    cls, patches = (
        torch.randn(1, 1, 12).double().expand(B, 1, 12),
        torch.randn(1, 2, 2, 12).double().expand(B, 2, 2, 12),
    )
    mask = torch.ones(B, 2, 2)
    with torch.no_grad():
        blocks[0].mlp.fc2.weight.zero_(), blocks[0].mlp.fc2.bias.zero_()
        _, rows = blocks(cls, patches, mask)
        expected = blocks.eval()(cls, patches, mask)[1]
    moved = (rows - patches).norm(dim=3) > 0
    assert torch.equal(moved[:, 0], moved[:, 1])  # both patches of a frame
    assert not torch.equal(moved[:, :, 0], moved[:, :, 1])
    assert 0.45 < moved.double().mean() < 0.55
    torch.testing.assert_close(rows.mean(0), expected[0], rtol=0, atol=0.1)


def test_compiles_to_one_graph():
    blocks = make("spatial").float()
    cls, patches = torch.randn(1, 1, 12), torch.randn(1, 4, 2, 12)
    mask = torch.tensor([[[1, 0], [1, 1], [0, 0], [0, 1]]]).bool()
    program = torch.export.export(blocks, (cls, patches, mask)).module()
    torch.testing.assert_close(program(cls, patches, mask), blocks(cls, patches, mask))


def test_select_tokens():
    chosen = select_tokens(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]))
    assert chosen.group.tolist() == [0, 0, 2]
    assert chosen.token.tolist() == [1, 3, 0]
    assert chosen.slot.tolist() == [0, 1, 0]
    assert (chosen.groups, chosen.width) == (3, 2)


def test_bad_attention():
    with pytest.raises(ValueError, match=r"`attention` must be one of .*, got 'temporal'"):
        PoseBlock(12, 3, "temporal")


def test_joint_head_is_linear():
    head = JointHead(8, 5)
    a, b = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    zero = head(torch.zeros(2, 3, 8))
    torch.testing.assert_close(head(a + b) - zero, head(a) - zero + head(b) - zero, rtol=1e-4, atol=1e-5)
