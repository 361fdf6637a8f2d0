"""Attention modules in timm's models against the attention they replace, on CPU: time, parameters, MACs.

    python benchmarks/modules.py [--threads 2] [--rounds 9] [--part models,networks,sparsity]
        [--only deit_tiny_patch16_224] [--size 224,384] [--out benchmarks/results/modules_cpu.csv]

Three parts: `models` replaces the attention of DeiT-T and Swin-T, `networks` puts ELA and ULSAM into convolutional
networks, `sparsity` takes Sparsifiner's attention apart: all pairs fused, the layer as it is (a mask over all pairs),
and a gather of the chosen keys, each with the choice made in the call and with the choice given. Every layer is first
compared with its definition over all pairs. Timing alternates between the contestants of a case. A run replaces the
rows of its cases in the file and keeps the others.

MACs are half of what `torch.utils.flop_counter` counts: products of matrices, convolutions and attention, here also
InLine's convolution of each sample with its own kernels. Attention under a mask counts all pairs.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from common import RESULTS, alternate, machine, summary, write_csv
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from visionattn import __version__
from visionattn.layers import (
    AgentAttention,
    GatedPositionalAttention,
    InLineAttention,
    SparsifinerAttention,
    insert_after,
    replace_attention,
)

ATTENTIONS = ("agent", "inline", "gpsa", "sparsifiner")
SIZES = {"deit_tiny_patch16_224": (224, 384, 512), "swin_tiny_patch4_window7_224": (224, 448)}
NETWORKS = ("resnet18", "mobilenetv3_large_100", "convnext_atto")
FEWER = {  # 3136 tokens are too many for a mask of all pairs, 12544 for all pairs
    ("swin_tiny_patch4_window7_224", 224): ("agent", "inline", "gpsa"),
    ("swin_tiny_patch4_window7_224", 448): ("agent", "inline"),
}
TOKENS = (14, 24, 32, 56)  # rows and columns; 192 channels in 3 heads and a class token, as in DeiT-T
GATHERED = 1100  # of more tokens, the copies of the chosen keys and values take gigabytes
KEPT = (0.25, 0.1, 0.05)


def over_all_pairs(layer: nn.Module, x: Tensor, height: int, width: int) -> Tensor:
    """What a layer computes, from matrices of weights written out."""
    scale = layer.scale
    if isinstance(layer, GatedPositionalAttention):
        weights, value = layer.attention(x, (height, width)), layer.v(x)
    else:
        q, k, value = layer.qkv(x).chunk(3, -1)
        if isinstance(layer, AgentAttention):
            grid = q.transpose(1, 2).unflatten(2, (height, width))
            agents = layer.heads(F.adaptive_avg_pool2d(grid, layer.pool_size).flatten(2).transpose(1, 2))
            to_tokens, to_agents = layer.biases(height, width)
            gather = (agents @ layer.heads(k).mT * scale + to_tokens).softmax(-1)
            weights = (layer.heads(q) @ agents.mT * scale + to_agents).softmax(-1) @ gather
        else:
            weights = layer.heads(q) @ layer.heads(k).mT * scale
            if isinstance(layer, InLineAttention):
                weights = (weights + 1 - weights.mean(-1, keepdim=True)) / weights.shape[-1]
            else:
                mask = layer.forward_forecast(x, (height, width))[1].mask
                weights = weights.masked_fill(~mask, -torch.inf).softmax(-1)
    out = (weights @ layer.heads(value)).transpose(1, 2).flatten(2)
    grid = value.transpose(1, 2).unflatten(2, (height, width))
    if isinstance(layer, AgentAttention):
        out = out + layer.dwc(grid).flatten(2).transpose(1, 2)
    elif isinstance(layer, InLineAttention):
        kernels = layer.residual(x.mean(1)[..., None]).view(-1, 1, 3, 3)
        local = F.conv2d(grid.flatten(0, 1)[None], kernels, padding=1, groups=len(kernels))
        out = out + local.view_as(grid).flatten(2).transpose(1, 2)
    return layer.proj(out)


def check_layers() -> None:
    """Each is its definition, to 1e-5 of the largest number, at a size that is not that of its tables."""
    for cls in (AgentAttention, InLineAttention, GatedPositionalAttention, SparsifinerAttention):
        layer, x = cls(48, 3, 14), torch.randn(2, 12 * 17, 48)
        with torch.no_grad():
            ours, expected = layer(x, size=(12, 17)), over_all_pairs(layer, x, 12, 17)
        if (ours - expected).abs().max() > 1e-5 * expected.abs().max():
            raise SystemExit(f"{cls.__name__} differs by {(ours - expected).abs().max():.1e}")


def macs(model: nn.Module, x: Tensor) -> int:
    """Multiplications with an addition, of one forward pass."""
    more = []

    def own_kernels(module: InLineAttention, inputs: tuple, out: Tensor) -> None:
        more.append(9 * (out[0].numel() - module.num_prefix_tokens * module.dim))

    hooks = [m.register_forward_hook(own_kernels) for m in model.modules() if isinstance(m, InLineAttention)]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() // 2 + sum(more)


def directions(models: dict[str, Callable], x: Tensor, rounds: int) -> dict[str, dict[str, dict]]:
    """Times of each direction and contestant."""

    def both(model: Callable) -> Callable[[], object]:
        leaf = x.clone().requires_grad_()
        tensors = (
            [leaf, *(p for p in model.parameters() if p.requires_grad)] if isinstance(model, nn.Module) else [leaf]
        )
        return lambda: torch.autograd.grad(model(leaf).sum(), tensors, allow_unused=True)

    def forward(model: Callable) -> Callable[[], object]:
        return lambda: model(x)

    out = {}
    with torch.no_grad():
        times = alternate({name: forward(model) for name, model in models.items()}, rounds)
        out["forward"] = {name: summary(t) for name, t in times.items()}
    times = alternate({name: both(model) for name, model in models.items()}, rounds)
    out["forward+backward"] = {name: summary(t) for name, t in times.items()}
    return out


def rows_of(part: str, case: str, size: int, models: dict[str, Callable], x: Tensor, rounds: int) -> list[dict]:
    """One row for each contestant and direction; ratios are to the first."""
    first, *_ = models
    rows = []
    for direction, times in directions(models, x, rounds).items():
        base = times[first]["median_ms"]
        text = ", ".join(f"{n} {t['median_ms']:.1f} ({t['median_ms'] / base:.2f}x)" for n, t in times.items())
        print(f"{case} {size} {direction} ms: {text}", flush=True)
        for name, t in times.items():
            module = models[name]
            counted = isinstance(module, nn.Module)
            rows.append(
                dict(
                    part=part, case=case, size=size, direction=direction, contestant=name, **t,
                    times_first=round(t["median_ms"] / base, 3),
                    parameters=sum(p.numel() for p in module.parameters()) if counted else "",
                    macs_m=round(macs(module, x) / 1e6, 2) if counted else "",
                    machine=machine(), torch=torch.__version__, visionattn=__version__,
                )
            )  # fmt: skip
    return rows


def models_part(name: str, size: int, rounds: int) -> list[dict]:
    def build(attention: str | None) -> nn.Module:
        torch.manual_seed(0)
        model = timm.create_model(name, img_size=size).eval()
        if attention:
            replace_attention(model, attention)
        return model

    plain = build(None)
    contestants = {"plain": plain}
    for attention in FEWER.get((name, size), ATTENTIONS):
        contestants[attention] = build(attention)
    x = torch.randn(1, 3, size, size)
    if name.startswith("deit"):  # all pairs kept: nothing but the plain model
        dense = build("sparsifiner")
        for module in dense.modules():
            if isinstance(module, SparsifinerAttention):
                module.keep_rate = 1.0
        with torch.no_grad():
            if (dense(x) - plain(x)).abs().max() > 1e-4:
                raise SystemExit("Sparsifiner with all tokens kept is not the plain model")
    return rows_of("models", name, size, contestants, x, rounds)


def networks_part(name: str, size: int, rounds: int) -> list[dict]:
    contestants = {}
    for label, attention, options in (
        ("plain", None, {}),
        ("ela T", "ela", {"variant": "T"}),
        ("ela L", "ela", {"variant": "L"}),
        ("ulsam", "ulsam", {"num_splits": 4}),
    ):
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        if attention:
            insert_after(model, attention, **options)
        contestants[label] = model
    return rows_of("networks", name, size, contestants, torch.randn(1, 3, size, size), rounds)


class Steps:
    """Sparsifiner's attention in steps, so that those can be timed that a faster one would still have."""

    def __init__(self, layer: SparsifinerAttention, x: Tensor, side: int) -> None:
        self.layer, self.size = layer, (side, side)
        with torch.no_grad():
            self.mask = layer.forward_forecast(x, self.size)[1].mask
            self.index = self.chosen(self.mask) if x.shape[1] <= GATHERED else None

    def chosen(self, mask: Tensor) -> Tensor:
        """Places of the kept keys of each row but that of the class token, within all keys of all heads."""
        rows = mask[:, :, 1:]
        place = rows.nonzero()[:, 3].view(*rows.shape[:3], -1)
        heads = torch.arange(rows.shape[0] * rows.shape[1]).view(rows.shape[0], -1, 1, 1)
        return place + heads * rows.shape[3]

    def finish(self, out: Tensor) -> Tensor:
        return self.layer.proj(out.transpose(1, 2).flatten(2))

    def all_pairs(self, x: Tensor) -> Tensor:
        return self.finish(F.scaled_dot_product_attention(*self.layer._project(x), scale=self.layer.scale))

    def masked(self, x: Tensor) -> Tensor:
        return self.layer(x, size=self.size)

    def masked_given(self, x: Tensor) -> Tensor:
        q, k, v = self.layer._project(x)
        return self.finish(F.scaled_dot_product_attention(q, k, v, self.mask, scale=self.layer.scale))

    def gathered(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            q, k, _ = self.layer._project(x)
            mask = self.layer._forecast(q, k, *self.size, None).mask
        return self.gather(x, self.chosen(mask))

    def gathered_given(self, x: Tensor) -> Tensor:
        return self.gather(x, self.index)

    def gather(self, x: Tensor, index: Tensor) -> Tensor:
        q, k, v = self.layer._project(x)
        first = F.scaled_dot_product_attention(q[:, :, :1], k, v, scale=self.layer.scale)
        k, v = (F.embedding(index, t.reshape(-1, t.shape[-1])) for t in (k, v))
        weights = (q[:, :, 1:, None] @ k.mT * self.layer.scale).softmax(-1)
        return self.finish(torch.cat([first, (weights @ v)[:, :, :, 0]], 2))


def sparsity_part(side: int, keep: float, rounds: int) -> list[dict]:
    torch.manual_seed(0)
    layer = SparsifinerAttention(192, 3, side, num_prefix_tokens=1, keep_rate=keep).eval()
    x = torch.randn(1, side * side + 1, 192)
    steps = Steps(layer, x, side)
    contestants = {
        "all pairs": steps.all_pairs,
        "masked": steps.masked,
        "masked, choice given": steps.masked_given,
    }
    if x.shape[1] <= GATHERED:
        contestants |= {"gathered": steps.gathered, "gathered, choice given": steps.gathered_given}
    with torch.no_grad():
        expected = steps.masked(x)
        for name, other in list(contestants.items())[2:]:
            if (other(x) - expected).abs().max() > 1e-5 * expected.abs().max():
                raise SystemExit(f"{name} differs by {(other(x) - expected).abs().max():.1e}")
    return rows_of("sparsity", f"keep {keep:g}", side, contestants, x, rounds)


def merge(path: Path, rows: list[dict]) -> list[dict]:
    """Rows of other cases that the file holds, and these, in the order of cases."""
    done = {(row["part"], row["case"], str(row["size"])) for row in rows}
    old = []
    if path.exists():
        with path.open(newline="") as file:
            old = [row for row in csv.DictReader(file) if (row["part"], row["case"], row["size"]) not in done]
    order = ("models", "networks", "sparsity")
    return sorted(old + rows, key=lambda row: (order.index(row["part"]), row["case"], int(row["size"])))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--part", default="models,networks,sparsity")
    parser.add_argument("--only", help="names of models, by commas")
    parser.add_argument("--size", help="of the image, or side of the map of tokens, by commas")
    parser.add_argument("--out", type=Path, default=RESULTS / "modules_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    check_layers()
    cases: list[tuple[str, str, int, Callable[[], list[dict]]]] = []
    for name, sizes in SIZES.items():
        cases += [("models", name, s, lambda n=name, s=s: models_part(n, s, args.rounds)) for s in sizes]
    cases += [("networks", name, 224, lambda n=name: networks_part(n, 224, args.rounds)) for name in NETWORKS]
    for keep in KEPT:
        cases += [("sparsity", "", s, lambda s=s, k=keep: sparsity_part(s, k, args.rounds)) for s in TOKENS]
    rows = []
    for part, name, size, run in cases:
        chosen = part in args.part.split(",") and (not args.only or name in args.only.split(","))
        if chosen and (not args.size or str(size) in args.size.split(",")):
            rows += run()
    if not rows:
        raise SystemExit("no case is chosen; see --help")
    write_csv(args.out, merge(args.out, rows))


if __name__ == "__main__":
    main()
