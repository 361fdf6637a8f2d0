"""The branches of NFA-ViT against recorded outputs of the official code."""

import pytest
import torch

from visionattn.heads.forgery.branches import ImageBranch, NFABlock, NoiseBranch, NoiseExtractor
from visionattn.layers.spatial_reduction import fixed_sparse_mask

SMALL = dict(dims=(8, 16, 24, 32), depths=(2, 1, 1, 1), num_heads=(1, 2, 3, 4))


def load(shared_dir, name):
    return torch.load(shared_dir / "parity" / "forgery" / name, weights_only=True)


def test_extractor(shared_dir):
    fx = load(shared_dir, "nfa_dncnn.pt")
    model = NoiseExtractor().eval()
    model.load_state_dict(fx["state_dict"])
    assert torch.allclose(model(fx["inputs"]["x"]), fx["outputs"]["noise"], atol=1e-5)


def test_noise_block(shared_dir):
    fx = load(shared_dir, "nfa_noise_block.pt")
    block = NFABlock(32, 2, 4, "noise", block="published").eval()
    block.load_state_dict(fx["state_dict"])
    x = fx["inputs"]["x"]
    y, mask = block.forward_with_mask(x, (16, 16))
    assert torch.allclose(y, fx["outputs"]["y"], atol=1e-5)
    assert torch.allclose(block(x, (16, 16)), fx["outputs"]["y"], atol=1e-5)
    assert (mask.float() == fx["outputs"]["mask"]).float().mean() > 0.999


def test_image_block_with_gradients(shared_dir):
    fx = load(shared_dir, "nfa_image_block_fixed.pt")
    block = NFABlock(32, 2, 4, "fixed").eval()
    block.load_state_dict(fx["state_dict"])
    x = fx["inputs"]["x"].clone().requires_grad_()
    y = block(x, (16, 16))
    assert torch.allclose(y, fx["outputs"]["y"], atol=1e-5)
    assert torch.equal(fixed_sparse_mask((16, 16), 4).float(), fx["outputs"]["attn_mask"])
    y.backward(fx["inputs"]["grad_out"])
    found = {"x": x.grad, **{name: p.grad for name, p in block.named_parameters()}}
    for name, want in fx["grads"].items():
        assert torch.allclose(found[name], want, atol=1e-4 * max(1, float(want.abs().max()))), name


def test_prenorm_noise_block_is_the_usual_one():
    torch.manual_seed(0)
    block = NFABlock(8, 2, 2, "noise").eval()
    x = torch.randn(1, 16, 8)
    y = x + block.attn(block.norm1(x), (4, 4))
    y = y + block.mlp(block.norm2(y), (4, 4))
    assert torch.allclose(block(x, (4, 4)), y, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (50, 75), (33, 160), (20, 20)])
def test_branches_at_any_size(size):
    torch.manual_seed(0)
    noise, image = NoiseBranch(**SMALL).eval(), ImageBranch(**SMALL).eval()
    with torch.no_grad():
        features, masks = noise(torch.randn(1, 1, *size))
        out = image(torch.randn(1, 3, *size), masks)
        free = image(torch.randn(1, 3, *size))
    for stride, dim, heads, n, m, y in zip(
        (4, 8, 16, 32), SMALL["dims"], (1, 2, 3, 4), features, masks, out, strict=True
    ):
        expected = (1, dim, -(-size[0] // stride), -(-size[1] // stride))
        assert n.shape == y.shape == expected
        assert m.shape[:3] == (1, heads, expected[2] * expected[3])
        assert (m.sum(-1) == max(1, m.shape[-1] // 4)).all()
        assert n.isfinite().all()
        assert y.isfinite().all()
    assert len(free) == 4


def test_masks_matter():
    torch.manual_seed(0)
    image = ImageBranch(**SMALL).eval()
    x = torch.randn(1, 3, 128, 128)
    masks = [torch.ones(1, h, n, m) for h, n, m in ((1, 1024, 16), (2, 256, 16), (3, 64, 16), (4, 16, 16))]
    with torch.no_grad():
        whole = image(x, masks)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, image(x), strict=True))
        masks[0][..., 1:] = 0
        assert not torch.allclose(image(x, masks)[0], whole[0], atol=1e-3)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`pattern` must be .* got 'x'"):
        NFABlock(8, 2, pattern="x")
    with pytest.raises(ValueError, match=r"`block` must be .* got 'post'"):
        NFABlock(8, 2, pattern="noise", block="post")
    with pytest.raises(ValueError, match=r"`keep_ratio` must be .* got 0"):
        NFABlock(8, 2, pattern="noise", keep_ratio=0)
    with pytest.raises(ValueError, match="`depths` must be"):
        NoiseBranch(depths=(1, 1))
    with pytest.raises(ValueError, match=r"`noise_masks` must have .* got 2"):
        ImageBranch(**SMALL)(torch.randn(1, 3, 64, 64), [torch.ones(1), torch.ones(1)])
