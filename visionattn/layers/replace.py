"""Put another attention into a model of timm, and keep the weights that fit.

Vision transformers (ViT, DeiT) attend to a sequence, and only their patch embedding sees height and width: it leaves
them in a `TokenGrid` for the modules put in. Swin and DaViT attend within windows; their blocks are given the whole map
instead, because linear attention pays on many tokens, and windows of 49 are not many.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from timm.layers import Attention, PatchEmbed
from timm.models.davit import SpatialBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from visionattn.layers._tokens import TokenAttention, TokenGrid
from visionattn.layers._whole_map import WholeMapSpatialBlock, WholeMapSwinBlock
from visionattn.layers.agent_attention import AgentAttention
from visionattn.layers.gated_positional import GatedPositionalAttention
from visionattn.layers.inline_attention import InLineAttention
from visionattn.layers.sparsifiner import SparsifinerAttention

__all__ = ["ATTENTIONS", "ReplaceReport", "replace_attention"]

ATTENTIONS: dict[str, type[TokenAttention]] = {
    "agent": AgentAttention,
    "gpsa": GatedPositionalAttention,
    "inline": InLineAttention,
    "sparsifiner": SparsifinerAttention,
}
AGENTS = (9, 16, 49, 49)  # of the published models, by stage
SIXTHS = (0, 1, 2, 2, 2, 3)  # the stage of each sixth of the depth of a vision transformer, as published


@dataclass(frozen=True)
class ReplaceReport:
    """What `replace_attention` or `insert_after` did; names are of the model's modules and parameters.

    Attributes:
        modules: put in.
        kept: parameters that hold the values of those they replace.
        new: parameters that start anew.
        dropped: parameters that are gone.
        notes: what was chosen that the caller did not say.
    """

    modules: tuple[str, ...]
    kept: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.modules)} modules: {_some(self.modules)}"]
        for word, names in (("kept", self.kept), ("new", self.new), ("dropped", self.dropped)):
            if names:
                lines.append(f"{word} {len(names)} tensors: {_some(names)}")
        return "\n".join([*lines, *self.notes])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class _Place:
    """An attention that can be replaced: its name, block, what is known of its map, and its share of the depth."""

    name: str
    block: nn.Module
    input_size: tuple[int, int]
    depth: tuple[int, int]  # number of the stage, or of the block, and how many there are
    num_prefix_tokens: int = 0
    grid: TokenGrid | None = None
    block_class: type[nn.Module] | None = None

    def value(self, option: str, given: Sequence[Any]) -> Any:
        """That of this place."""
        number, count = self.depth
        if len(given) == count:
            return given[number]
        if self.grid is None:
            raise ValueError(f"{option}={given!r} must have one value for each of {count} stages")
        if len(given) != 4:
            raise ValueError(f"{option}={given!r} must have 4 values, or one for each of {count} blocks")
        return given[SIXTHS[6 * number // count]]


class _Record:
    """Hook of a patch embedding that tells a `TokenGrid` the size of the map."""

    def __init__(self, grid: TokenGrid) -> None:
        self.grid = grid

    def __call__(self, module: PatchEmbed, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.grid.size = tuple(module.dynamic_feat_size(inputs[0].shape[-2:]))


def replace_attention(
    model: nn.Module, attention: str, where: str | Callable[[str], bool] | None = None, **options: Any
) -> ReplaceReport:
    """Replace the attention of a model of timm, in place.

    Attentions that can be replaced are those of timm's `VisionTransformer` (ViT, DeiT and the like), whose class token
    and registers are kept apart, of `SwinTransformer`, and the spatial ones of DaViT, timm's and ours. In Swin and
    DaViT the new attention is over the whole map, without windows, shifts and their position bias.

    The projections ``qkv`` and ``proj`` keep their values, device, dtype and training mode. Load weights of the plain
    model before, and those of a model with this attention after.

    Args:
        model: also with ``features_only=True``, and as part of something larger.
        attention: ``"agent"``, ``"inline"``, ``"gpsa"`` or ``"sparsifiner"``.
        where: a pattern as of a shell, such as ``"blocks.[0-5].attn"``, or a function, for the names of modules to
            replace; None for all.
        **options: to the module's constructor. A list has one value for each stage; in vision transformers one for
            each block, or four for the first sixth of the depth, the second, the next three and the last, as the
            published models have it. ``input_size`` is that of the model, of DaViT that of 224 x 224 images. Agent
            attention has 9, 16, 49 and 49 agents by default.

    Returns:
        What was replaced, kept, and what is new.

    Raises:
        ValueError: an unknown attention, nothing to replace, or an option out of its range.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention={attention!r} must be one of {tuple(ATTENTIONS)}")
    places = list(_places(model))
    if not places:
        raise ValueError(
            f"model={type(model).__name__} has no attention to replace; it must be or hold a timm VisionTransformer, "
            "SwinTransformer or DaVit with its own attention"
        )
    chosen = [place for place in places if _matches(place.name, where)]
    if not chosen:
        raise ValueError(f"where={where!r} matches none of {_some([place.name for place in places])}")
    made = [_make(ATTENTIONS[attention], place, options) for place in chosen]  # an error leaves the model as it is
    kept, new, dropped = [], [], []
    for place, module in zip(chosen, made, strict=True):
        carried = _carry(place.block.attn, module)
        kept += [f"{place.name}.{name}" for name in carried]
        new += [f"{place.name}.{name}" for name in module.state_dict() if name not in carried]
        dropped += [f"{place.name}.{name}" for name in _unused(place.block.attn, module, carried)]
        place.block.attn = module
        if place.block_class is not None:
            place.block.__class__ = place.block_class
            if place.block_class is WholeMapSwinBlock:
                place.block.attn_mask = None
    for root in {id(m): m for m in model.modules() if isinstance(m, VisionTransformer)}.values():
        _hook(root, chosen)
    return ReplaceReport(tuple(place.name for place in chosen), tuple(kept), tuple(new), tuple(dropped))


def _matches(name: str, where: str | Callable[[str], bool] | None) -> bool:
    if where is None:
        return True
    return fnmatchcase(name, where) if isinstance(where, str) else bool(where(name))


def _places(model: nn.Module) -> Iterator[_Place]:
    """All attentions that can be replaced, with names relative to the model."""
    modules = dict(model.named_modules())
    for path, root in modules.items():
        if isinstance(root, VisionTransformer) and isinstance(root.patch_embed, PatchEmbed):
            blocks = [(name, block) for name, block in root.blocks.named_children() if _plain(block)]
            grid = next((b.attn.grid for b in root.blocks.children() if _put_in(b)), None) or TokenGrid()
            size = tuple(root.patch_embed.grid_size or (14, 14))
            for name, block in blocks:
                full = ".".join(filter(None, (path, "blocks", name, "attn")))
                yield _Place(full, block, size, (int(name), len(root.blocks)), root.num_prefix_tokens, grid)
    yield from _windowed(modules)


def _plain(block: nn.Module) -> bool:
    attn = getattr(block, "attn", None)
    return isinstance(attn, (Attention, TokenAttention))


def _put_in(block: nn.Module) -> bool:
    return isinstance(getattr(block, "attn", None), TokenAttention)


def _windowed(modules: dict[str, nn.Module]) -> Iterator[_Place]:
    """Those of Swin and DaViT; a stage is what holds the blocks."""
    found = [
        (name, block) for name, block in modules.items() if isinstance(block, (SwinTransformerBlock, SpatialBlock))
    ]
    stages: dict[str, int] = {}
    for name, _ in found:
        stages.setdefault(name.rsplit(".blocks.", 1)[0], len(stages))
    for name, block in found:
        number = stages[name.rsplit(".blocks.", 1)[0]]
        depth = (number, len(stages))
        if isinstance(block, SwinTransformerBlock):
            yield _Place(f"{name}.attn", block, tuple(block.input_resolution), depth, block_class=WholeMapSwinBlock)
        else:
            side = 56 >> number
            yield _Place(f"{name}.attn", block, (side, side), depth, block_class=WholeMapSpatialBlock)


def _make(cls: type[TokenAttention], place: _Place, options: dict[str, Any]) -> TokenAttention:
    old = place.block.attn
    like = next(old.parameters())
    dim = old.proj.out_features
    own: dict[str, Any] = {
        "num_heads": old.num_heads,
        "input_size": place.input_size,
        "num_prefix_tokens": place.num_prefix_tokens,
        "qkv_bias": any(name in dict(old.named_parameters()) for name in ("qkv.bias", "qk.bias")),
        "attn_drop": _rate(old, "attn_drop"),
        "proj_drop": _rate(old, "proj_drop"),
        "device": like.device,
        "dtype": like.dtype,
    }
    if cls is AgentAttention:
        number, count = place.depth
        own["agent_num"] = place.value("agent_num", AGENTS) if place.grid else AGENTS[4 * number // count]
    known = [name for name in inspect.signature(cls).parameters if name != "dim"]
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{name}={value!r} is not an option of {cls.__name__}; it has {', '.join(known)}")
        listed = isinstance(value, (list, tuple)) and name != "input_size"
        own[name] = place.value(name, value) if listed else value
    module = cls(dim, **own)
    module.grid = place.grid
    return module.train(old.training)


def _rate(module: nn.Module, name: str) -> float:
    rate = getattr(module, name, 0.0)
    return rate.p if isinstance(rate, nn.Dropout) else float(rate)


@torch.no_grad()
def _carry(old: nn.Module, new: nn.Module) -> list[str]:
    """Copy what has the same meaning and shape; returns the names in `new`."""
    theirs, ours = _split(old), dict(new.named_parameters())
    carried = []
    for name, parameter in ours.items():
        if name.split(".")[0] in ("qkv", "proj", "qk", "v") or type(old) is type(new):
            parts = [theirs.get(part) for part in _parts(name)]
            if all(part is not None for part in parts):
                value = torch.cat([part for part, _ in parts])
                if value.shape == parameter.shape:
                    parameter.copy_(value)
                    parameter.requires_grad_(all(trained for _, trained in parts))
                    carried.append(name)
    return carried


def _parts(name: str) -> list[str]:
    """A projection by what it gives: queries, keys, values."""
    layer, _, kind = name.partition(".")
    return [f"{letter}.{kind}" for letter in layer] if layer in ("qkv", "qk") else [name]


def _split(module: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """The parameters, projections by what they give, and whether they are trained."""
    out = {}
    for name, parameter in module.named_parameters():
        parts = _parts(name)
        for part, value in zip(parts, parameter.detach().chunk(len(parts)), strict=True):
            out[part] = (value, parameter.requires_grad)
    return out


def _unused(old: nn.Module, new: nn.Module, carried: Sequence[str]) -> list[str]:
    used = {part for name in carried for part in _parts(name)}
    return [name for name, _ in old.named_parameters() if not used.issuperset(_parts(name))]


def _hook(root: VisionTransformer, chosen: Sequence[_Place]) -> None:
    """Let the patch embedding of a vision transformer tell the size of its map, once."""
    grids = [p.grid for p in chosen if p.grid is not None and any(p.block is b for b in root.blocks.children())]
    hooked = any(isinstance(hook, _Record) for hook in root.patch_embed._forward_hooks.values())
    if grids and not hooked:
        root.patch_embed.register_forward_hook(_Record(grids[0]))
