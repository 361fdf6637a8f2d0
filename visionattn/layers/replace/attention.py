"""Replace the attention of timm models, and keep the weights that fit."""

import inspect
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from visionattn.layers._tokens import TokenAttention
from visionattn.layers.agent_attention import AgentAttention
from visionattn.layers.gated_positional import GatedPositionalAttention
from visionattn.layers.inline_attention import InLineAttention
from visionattn.layers.replace.places import Place, Record, convert_block, find_places
from visionattn.layers.replace.report import ReplaceReport, some
from visionattn.layers.sparsifiner import SparsifinerAttention

__all__ = ["ATTENTIONS", "replace_attention"]

ATTENTIONS: dict[str, type[TokenAttention]] = {
    "agent": AgentAttention,
    "gpsa": GatedPositionalAttention,
    "inline": InLineAttention,
    "sparsifiner": SparsifinerAttention,
}
AGENTS = (9, 16, 49, 49)  # number of agents in each stage of the published models


def replace_attention(
    model: nn.Module, attention: str, where: str | Callable[[str], bool] | None = None, **options: Any
) -> ReplaceReport:
    """Replace the attention of a timm model, in place.

    Supported are timm's `VisionTransformer` (ViT, DeiT, ...), whose class and register tokens are handled separately,
    `SwinTransformer`, PVT v2, and the spatial attention of DaViT. In Swin, DaViT and PVT the new attention is over the
    whole map, without windows, shifts and their position bias, and without the spatial reduction of PVT.

    The projections of queries, keys and values and ``proj`` keep their values, device, dtype and training mode. Load
    weights of the original model before the replacement, and weights of a model with the new attention after it.

    Args:
        model: a timm model, possibly with ``features_only=True``, or a module that contains one.
        attention: ``"agent"``, ``"inline"``, ``"gpsa"`` or ``"sparsifiner"``.
        where: shell-style pattern of module names, such as ``"blocks.[0-5].attn"``, or a predicate of the name; None
            for all attention modules.
        **options: arguments of the new module. A list has one value per stage. For vision transformers it has one value
            per block, or four for the first sixth of the depth, the second sixth, the next three and the last, as in
            the published models. Stages and blocks that a model with ``features_only=True`` leaves out count too.
            `input_size` defaults to that of the model (DaViT and PVT: 224 x 224 images), the number of agents of the
            stages to 9, 16, 49 and 49.

    Returns:
        A report of the replaced modules and of kept, new and removed parameters.

    Raises:
        ValueError: if the attention is unknown, no module can be replaced, or an option is out of range.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"`attention` must be one of {tuple(ATTENTIONS)}, got {attention!r}")
    places = list(find_places(model))
    if not places:
        raise ValueError(
            "`model` must be or contain a VisionTransformer, SwinTransformer, DaVit or PyramidVisionTransformerV2 of "
            f"timm with its original attention, got a {type(model).__name__}"
        )
    chosen = [place for place in places if _matches(place.name, where)]
    if not chosen:
        raise ValueError(f"`where` must match one of {some([place.name for place in places])}, got {where!r}")
    made = [_make(ATTENTIONS[attention], place, options) for place in chosen]  # before any change
    kept, new, dropped = [], [], []
    for place, module in zip(chosen, made, strict=True):
        carried = _carry(place.block.attn, module)
        kept += [f"{place.name}.{name}" for name in carried]
        new += [f"{place.name}.{name}" for name in module.state_dict() if name not in carried]
        dropped += [f"{place.name}.{name}" for name in _unused(place.block.attn, module, carried)]
        place.block.attn = module
        convert_block(place)
    for root in {id(m): m for m in model.modules() if isinstance(m, VisionTransformer)}.values():
        _hook(root, chosen)
    return ReplaceReport(tuple(place.name for place in chosen), tuple(kept), tuple(new), tuple(dropped))


def _matches(name: str, where: str | Callable[[str], bool] | None) -> bool:
    if where is None:
        return True
    return fnmatchcase(name, where) if isinstance(where, str) else bool(where(name))


def _make(cls: type[TokenAttention], place: Place, options: dict[str, Any]) -> TokenAttention:
    old = place.block.attn
    like = next(old.parameters())
    dim = old.proj.out_features
    own: dict[str, Any] = {
        "num_heads": old.num_heads,
        "input_size": place.input_size,
        "num_prefix_tokens": place.num_prefix_tokens,
        "qkv_bias": any(name in dict(old.named_parameters()) for name in ("qkv.bias", "qk.bias", "kv.bias")),
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
            raise ValueError(f"`{name}` is not an argument of {cls.__name__}; it must be one of {', '.join(known)}")
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
    """Copy the parameters of equal meaning and shape; returns their names in `new`."""
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
    """Split the name of a joint projection into those of queries, keys and values."""
    layer, _, parameter = name.partition(".")
    return [f"{letter}.{parameter}" for letter in layer] if layer in ("qkv", "qk", "kv") else [name]


def _split(module: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """Return the parameters, with joint projections split, and whether they require gradients."""
    out = {}
    for name, parameter in module.named_parameters():
        parts = _parts(name)
        for part, value in zip(parts, parameter.detach().chunk(len(parts)), strict=True):
            out[part] = (value, parameter.requires_grad)
    return out


def _unused(old: nn.Module, new: nn.Module, carried: Sequence[str]) -> list[str]:
    used = {part for name in carried for part in _parts(name)}
    return [name for name, _ in old.named_parameters() if not used.issuperset(_parts(name))]


def _hook(root: VisionTransformer, chosen: Sequence[Place]) -> None:
    """Register the hook that stores the size of the token map, unless it is registered already."""
    grids = [p.grid for p in chosen if p.grid is not None and any(p.block is b for b in root.blocks.children())]
    hooked = any(isinstance(hook, Record) for hook in root.patch_embed._forward_hooks.values())
    if grids and not hooked:
        root.patch_embed.register_forward_hook(Record(grids[0]))
