"""CATANet on a CPU against the design of the published code: time of forward and of a training step, and memory.

    python benchmarks/super_resolution.py [--threads 1] [--rounds 5] [--only 160x90] [--out super_resolution.csv]

The peer has the same weights and the published design, written anew: queries, keys and values are projected and then
gathered in the order of the centers, keys and values are unfolded so that each group has a copy of its own and the
next group, the centers are copied for each group, and the windows of the local attention are cut out one by one before
the projections. Its fused attention has 9 channels for queries and keys and 10 for values, for which PyTorch has no
fused kernel on a CPU. Outputs and gradients are compared first. Timing alternates. Memory is the most that the forward
pass holds at once, from PyTorch's record of allocations.
"""

import argparse
import copy
import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RESULTS, alternate, machine, peak_memory, summary, write_csv
from torch import Tensor, nn

from visionattn import __version__
from visionattn.heads.super_resolution.catanet import CATANet
from visionattn.layers.token_aggregation import LocalRegionAttention, TokenAggregationBlock

CASES = [("forward", 4, 1, 90, 160), ("forward", 4, 1, 180, 320), ("forward+backward", 2, 4, 64, 64)]


class GatheredAggregation(TokenAggregationBlock):
    """Token aggregation with copies of keys and values for each group."""

    def _attention(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        centers = self._centers(tokens)
        label = (F.normalize(tokens, dim=-1) @ F.normalize(centers, dim=-1).T).argmax(-1)
        order = label.argsort(dim=1, stable=True)[..., None]
        size = min(count, self.group_size)
        groups = -(-count // size)
        pad = groups * size - count
        layers = self.iasa_attn
        q, k, v = (
            layer(tokens).gather(1, order.expand(-1, -1, layer.out_features))
            for layer in (layers.to_q, layers.to_k, layers.to_v)
        )
        q = torch.cat([q, q[:, count - pad :].flip(1)], 1).unflatten(1, (groups, size)).unflatten(-1, (self.heads, -1))
        k, v = (
            torch.cat([x, x[:, count - pad - size :].flip(1)], 1)
            .unfold(1, 2 * size, size)
            .transpose(2, 3)
            .unflatten(-1, (self.heads, -1))
            .transpose(2, 3)
            for x in (k, v)
        )
        q = q.transpose(2, 3)
        out = F.scaled_dot_product_attention(q, k, v)
        k, v = (
            layer(centers).unflatten(-1, (self.heads, -1)).transpose(0, 1).expand(batch, groups, -1, -1, -1)
            for layer in (self.irca_attn.to_k, self.irca_attn.to_v)
        )
        out = out + F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(2, 3).flatten(3).flatten(1, 2)[:, :count]
        out = torch.zeros_like(out).scatter(1, order.expand_as(out), out)
        out = layers.proj(out).transpose(1, 2).unsqueeze(-1)
        return self.conv1x1(out)[..., 0].transpose(1, 2)


class CutWindows(LocalRegionAttention):
    """Local attention whose windows are cut out and put back one by one."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        batch, height, width, dim = x.shape
        side = self.window
        starts = [self._axis(length, x.device)[0][::side].tolist() for length in (height, width)]
        windows = [x[:, top : top + side, left : left + side] for top in starts[0] for left in starts[1]]
        tokens = torch.stack(windows, 1).view(batch * len(windows), side**2, dim)
        attention, norm = self.layer[0].fn, self.layer[0].norm
        q, k, v = (
            layer(norm(tokens)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (attention.to_q, attention.to_k, attention.to_v)
        )
        out = tokens + attention.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        parts = iter(out.view(batch, len(windows), side, side, dim).unbind(1))
        merged = torch.zeros_like(x)
        for top in starts[0]:
            for left in starts[1]:
                merged[:, top : top + side, left : left + side] += next(parts)
        (_, rows, _), (_, columns, _) = self._axis(height, x.device), self._axis(width, x.device)
        x = merged * (rows[:, None] * columns)[..., None]
        return (x + self.layer[1].fn(self.layer[1].norm(x))).permute(0, 3, 1, 2)


def peer_of(model: nn.Module) -> nn.Module:
    """The same weights in the published design."""
    peer = copy.deepcopy(model)
    for module in peer.modules():
        if isinstance(module, TokenAggregationBlock):
            module.__class__ = GatheredAggregation
        elif isinstance(module, LocalRegionAttention):
            module.__class__ = CutWindows
    return peer


def step(model: nn.Module, image: Tensor) -> list[Tensor]:
    """One forward and backward; the centers are those of the batch."""
    model.zero_grad()
    out = model(image)
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in model.parameters())]


def check(models: dict[str, nn.Module], image: Tensor, direction: str) -> None:
    """Compare the peer with ours on a part of the image, in float64: rounding assigns some tokens to other centers."""
    run = step if direction != "forward" else lambda model, image: [model(image)]
    part = image[..., :47, :40].double()
    ours, peer = (run(copy.deepcopy(model).double(), part) for model in models.values())
    for one, other in zip(ours, peer, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="width and height of cases, such as 160x90")
    parser.add_argument("--out", type=Path, default=RESULTS / "super_resolution.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    described = dict(machine=machine(), torch=torch.__version__, visionattn=__version__)
    rows = []
    for direction, scale, batch, height, width in CASES:
        if args.only and f"{width}x{height}" not in args.only:
            continue
        torch.manual_seed(0)
        training = direction != "forward"
        ours = CATANet(scale).train(training)
        for block in ours.blocks:
            block[0].initted.fill_(True)
        models = {"visionattn": ours, "published design": peer_of(ours)}
        image = torch.rand(batch, 3, height, width)
        with torch.set_grad_enabled(training):
            check(models, image, direction)
            calls = {
                name: functools.partial(step if training else type(m).__call__, m, image) for name, m in models.items()
            }
            memory = {name: peak_memory(call) for name, call in calls.items()}
            times = {name: summary(found) for name, found in alternate(calls, args.rounds).items()}
        megapixels = batch * height * width / 1e6
        base = times["visionattn"]["median_ms"]
        for name, found in times.items():
            ratio, seconds = found["median_ms"] / base, found["median_ms"] / 1e3 / megapixels
            print(
                f"x{scale} {batch}x{width}x{height} {direction:<16} {name:<16} {found['median_ms']:8.0f} ms "
                f"({ratio:.2f}x), {seconds:.1f} s per megapixel, {memory[name]:.0f} MB"
            )
            rows.append(
                dict(
                    model=f"catanet x{scale}", input=f"{batch}x3x{height}x{width}", dtype="float32", direction=direction
                )
                | dict(contestant=name)
                | found
                | dict(times_ours=round(ratio, 3), seconds_per_megapixel=round(seconds, 2), peak_mb=round(memory[name]))
                | described
            )
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
