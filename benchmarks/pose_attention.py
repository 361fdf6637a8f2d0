"""A pose-aware attention block on gathered tokens against masks over all tokens, on CPU.

    python benchmarks/pose_attention.py [--threads 2] [--rounds 9] [--out pose_attention.csv]

Peers: logits of all pairs with -1e9 where a pair is not allowed (as published), and PyTorch's fused attention under a
boolean mask. All of them are the whole block: norms, projections, attention, MLP, and the replacement of the patches
under the pose. Every peer is first compared with ours, gradients of the patches too. Timing alternates between them.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RESULTS, alternate, machine, summary, write_csv
from torch import Tensor, nn

from visionattn import __version__
from visionattn.layers.pose_attention import PoseBlock, PoseBlocks

SHAPES = {"spatial": (1, 196, 8, 384), "joint": (1, 100, 8, 384)}  # clips, patches, frames, channels
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)


def masked(block: PoseBlock, attention, cls: Tensor, patches: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The block over all tokens, with some attention under a mask ``[G, tokens]``, then the replacement."""
    B, N, T, C = patches.shape
    grouped = block.to_groups(patches)
    copies = grouped.shape[0] // B
    x = torch.cat([cls.repeat_interleave(copies, 0), grouped], 1)
    allowed = F.pad(block.to_groups(mask[..., None])[..., 0], (1, 0), value=True)
    qkv = block.attn.qkv(block.norm1(x)).unflatten(2, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    out = block.attn.proj(attention(*qkv, allowed).transpose(1, 2).flatten(2))
    cls = cls + out[:, :1].view(B, copies, 1, C).mean(1)
    rest = out[:, 1:]
    rest = rest.view(B, N, T, C) if block.attention == "joint" else rest.view(B, T, N, C).transpose(1, 2)
    x = torch.cat([cls, (patches + rest).flatten(1, 2)], 1)
    x = x + block.mlp(block.norm2(x))
    return x[:, :1], torch.where(mask[..., None], x[:, 1:].view(B, N, T, C), patches)


def additive(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    pairs = allowed[:, :, None] & allowed[:, None]
    logits = (q * q.shape[-1] ** -0.5) @ k.mT + torch.where(pairs, 0.0, -1e9)[:, None]
    return logits.softmax(-1) @ v


def boolean(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None, None].expand(-1, 1, q.shape[2], -1))


def contestants(blocks: PoseBlocks) -> dict:
    return {
        "visionattn": blocks,
        "all pairs, -1e9": lambda *inputs: masked(blocks[0], additive, *inputs),
        "all pairs, fused": lambda *inputs: masked(blocks[0], boolean, *inputs),
    }


def person(shape: tuple[int, ...], share: float) -> Tensor:
    """A mask of a share of the patches of every frame, in one run of numbers that drifts from frame to frame."""
    B, N, T, _ = shape
    count = max(1, round(share * N))
    start = torch.linspace(0, N - count, T).long()
    place = torch.arange(N)[:, None]
    return ((place >= start) & (place < start + count)).expand(B, N, T)


def check(functions: dict, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """All give the same, to 1e-5 of the largest, and the same gradients of the patches."""
    found = {}
    for name, function in functions.items():
        leaf = inputs[1].clone().requires_grad_()
        out = function(inputs[0], leaf, inputs[2])
        (gradient,) = torch.autograd.grad(sum((o * o).sum() for o in out), leaf)
        found[name] = (*out, gradient)
    ours = found.pop("visionattn")
    for name, values in found.items():
        for a, b in zip(ours, values, strict=True):
            if (a - b).abs().max() > 1e-5 * b.abs().max().clamp(min=1):
                raise SystemExit(f"{name} differs by {(a - b).abs().max():.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "pose_attention.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for attention, shape in SHAPES.items():
        dim = shape[3]
        blocks = PoseBlocks([PoseBlock(dim, dim // 64, attention)]).eval()
        for parameter in blocks.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
        functions = contestants(blocks)
        for share in SHARES:
            inputs = (torch.randn(shape[0], 1, dim), torch.randn(shape), person(shape, share))
            check(functions, inputs)
            for direction in ("forward", "forward+backward"):
                calls = {name: step(function, inputs, direction) for name, function in functions.items()}
                with torch.set_grad_enabled(direction != "forward"):
                    times = {name: summary(t) for name, t in alternate(calls, args.rounds).items()}
                ours = times["visionattn"]["median_ms"]
                text = ", ".join(f"{n} {t['median_ms']:.2f} ({t['median_ms'] / ours:.2f}x)" for n, t in times.items())
                print(f"{attention:<8} {share:>4.0%} {direction:<16} ms: {text}", flush=True)
                rows += [
                    dict(
                        attention=attention, clips=shape[0], patches=shape[1], frames=shape[2], dim=dim, share=share,
                        direction=direction, contestant=name, **t, times_ours=round(t["median_ms"] / ours, 3),
                        machine=machine(), torch=torch.__version__, visionattn=__version__,
                    )
                    for name, t in times.items()
                ]  # fmt: skip
    write_csv(args.out, rows)


def step(function, inputs: tuple[Tensor, Tensor, Tensor], direction: str):
    """A call to time: the forward pass, or with the gradients of the patches."""
    if direction == "forward":
        return lambda: function(*inputs)
    leaf = inputs[1].clone().requires_grad_()

    def both():
        cls, out = function(inputs[0], leaf, inputs[2])
        return torch.autograd.grad(cls.sum() + out.sum(), leaf)

    return both


if __name__ == "__main__":
    main()
