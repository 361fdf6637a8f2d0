"""Replace the attention of timm models, keep the weights that fit, and load official checkpoints of such models.

Vision transformers (ViT, DeiT) attend to token sequences. Only their patch embedding has the height and width of the
token map, which a forward hook stores in a `TokenGrid` for the new modules. Swin and DaViT attend within windows; the
new attention is over the whole map instead, because linear attention is faster only for many tokens.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, PatchEmbed
from timm.models.davit import SpatialBlock
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from torch import Tensor, nn

from visionattn.errors import CheckpointError
from visionattn.layers._tokens import TokenAttention, TokenGrid
from visionattn.layers.agent_attention import AgentAttention
from visionattn.layers.gated_positional import GatedPositionalAttention
from visionattn.layers.inline_attention import InLineAttention
from visionattn.layers.sparsifiner import SparsifinerAttention

__all__ = ["ATTENTIONS", "ReplaceReport", "filter_official", "replace_attention"]

ATTENTIONS: dict[str, type[TokenAttention]] = {
    "agent": AgentAttention,
    "gpsa": GatedPositionalAttention,
    "inline": InLineAttention,
    "sparsifiner": SparsifinerAttention,
}
AGENTS = (9, 16, 49, 49)  # number of agents in each stage of the published models
SIXTHS = (0, 1, 2, 2, 2, 3)  # stage of each sixth of the depth of a vision transformer, as published

_LENGTH_AXES = {"ah_bias": 3, "aw_bias": 4, "ha_bias": 2, "wa_bias": 3}  # axis of the map's height or width


@dataclass(frozen=True)
class ReplaceReport:
    """Result of `replace_attention` or `insert_after`: names of modules and parameters of the model.

    Attributes:
        modules: new modules.
        kept: parameters with the values of those they replace.
        new: newly initialized parameters.
        dropped: removed parameters.
        notes: options that were chosen automatically.
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


class _WholeMapSwinBlock(SwinTransformerBlock):
    """timm's Swin block without windows. Existing blocks are converted by assigning their ``__class__``."""

    def _attn(self, x: Tensor) -> Tensor:
        return self.attn(x.flatten(1, 2), size=(x.shape[1], x.shape[2])).view(x.shape)

    def set_input_size(
        self, feat_size: tuple[int, int], window_size: tuple[int, int], always_partition: bool | None = None
    ) -> None:
        """Set the input size; the attention accepts maps of any size."""
        self.input_resolution = feat_size

    def _init_buffers(self) -> None:
        """Do nothing: attention over the whole map needs no mask."""


class _WholeMapSpatialBlock(SpatialBlock):
    """timm's spatial block of DaViT without windows. Existing blocks are converted by assigning their ``__class__``."""

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = self.cpe1(x).flatten(2).transpose(1, 2)
        x = x + self.drop_path1(self.attn(self.norm1(x), size=(shape[2], shape[3])))
        x = self.cpe2(x.transpose(1, 2).reshape(shape))
        if self.mlp is not None:
            x = x.flatten(2).transpose(1, 2)
            x = x + self.drop_path2(self.mlp(self.norm2(x)))
            x = x.transpose(1, 2).reshape(shape)
        return x


@dataclass(frozen=True)
class _Place:
    """An attention module that can be replaced."""

    name: str
    block: nn.Module
    input_size: tuple[int, int]
    depth: tuple[int, int]  # index of the stage, or of the block in a ViT, and their number
    num_prefix_tokens: int = 0
    grid: TokenGrid | None = None
    block_class: type[nn.Module] | None = None

    def value(self, option: str, given: Sequence[Any]) -> Any:
        """Return the entry of a per-stage option for this module."""
        number, count = self.depth
        if len(given) == count:
            return given[number]
        if self.grid is None:
            raise ValueError(f"`{option}` must have one value for each of {count} stages, got {given!r}")
        if len(given) != 4:
            raise ValueError(f"`{option}` must have 4 values, or one for each of {count} blocks, got {given!r}")
        return given[SIXTHS[6 * number // count]]


class _Record:
    """Forward hook of a patch embedding that stores the size of the token map in a `TokenGrid`."""

    def __init__(self, grid: TokenGrid) -> None:
        self.grid = grid

    def __call__(self, module: PatchEmbed, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.grid.size = tuple(module.dynamic_feat_size(inputs[0].shape[-2:]))


def replace_attention(
    model: nn.Module, attention: str, where: str | Callable[[str], bool] | None = None, **options: Any
) -> ReplaceReport:
    """Replace the attention of a timm model, in place.

    Supported are timm's `VisionTransformer` (ViT, DeiT, ...), whose class and register tokens are handled separately,
    `SwinTransformer`, and the spatial attention of DaViT. In Swin and DaViT the new attention is over the whole map,
    without windows, shifts and their position bias.

    The projections ``qkv`` and ``proj`` keep their values, device, dtype and training mode. Load weights of the
    original model before the replacement, and weights of a model with the new attention after it.

    Args:
        model: a timm model, possibly with ``features_only=True``, or a module that contains one.
        attention: ``"agent"``, ``"inline"``, ``"gpsa"`` or ``"sparsifiner"``.
        where: shell-style pattern of module names, such as ``"blocks.[0-5].attn"``, or a predicate of the name; None
            for all attention modules.
        **options: arguments of the new module. A list has one value per stage. For vision transformers it has one value
            per block, or four for the first sixth of the depth, the second sixth, the next three and the last, as in
            the published models. `input_size` defaults to that of the model (DaViT: 224 x 224 images), the number of
            agents of the stages to 9, 16, 49 and 49.

    Returns:
        A report of the replaced modules and of kept, new and removed parameters.

    Raises:
        ValueError: if the attention is unknown, no module can be replaced, or an option is out of range.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"`attention` must be one of {tuple(ATTENTIONS)}, got {attention!r}")
    places = list(_places(model))
    if not places:
        raise ValueError(
            "`model` must be or contain a VisionTransformer, SwinTransformer or DaVit of timm with its original "
            f"attention, got a {type(model).__name__}"
        )
    chosen = [place for place in places if _matches(place.name, where)]
    if not chosen:
        raise ValueError(f"`where` must match one of {_some([place.name for place in places])}, got {where!r}")
    made = [_make(ATTENTIONS[attention], place, options) for place in chosen]  # before any change
    kept, new, dropped = [], [], []
    for place, module in zip(chosen, made, strict=True):
        carried = _carry(place.block.attn, module)
        kept += [f"{place.name}.{name}" for name in carried]
        new += [f"{place.name}.{name}" for name in module.state_dict() if name not in carried]
        dropped += [f"{place.name}.{name}" for name in _unused(place.block.attn, module, carried)]
        place.block.attn = module
        if place.block_class is not None:
            place.block.__class__ = place.block_class
            if place.block_class is _WholeMapSwinBlock:
                place.block.attn_mask = None
    for root in {id(m): m for m in model.modules() if isinstance(m, VisionTransformer)}.values():
        _hook(root, chosen)
    return ReplaceReport(tuple(place.name for place in chosen), tuple(kept), tuple(new), tuple(dropped))


def _matches(name: str, where: str | Callable[[str], bool] | None) -> bool:
    if where is None:
        return True
    return fnmatchcase(name, where) if isinstance(where, str) else bool(where(name))


def _places(model: nn.Module) -> Iterator[_Place]:
    """Yield all attention modules that can be replaced, with names relative to the model."""
    modules = dict(model.named_modules())
    for path, root in modules.items():
        if isinstance(root, VisionTransformer) and isinstance(root.patch_embed, PatchEmbed):
            blocks = [(name, block) for name, block in root.blocks.named_children() if _replaceable(block)]
            grid = next((b.attn.grid for b in root.blocks.children() if _is_replaced(b)), None) or TokenGrid()
            size = tuple(root.patch_embed.grid_size or (14, 14))
            for name, block in blocks:
                full = ".".join(filter(None, (path, "blocks", name, "attn")))
                yield _Place(full, block, size, (int(name), len(root.blocks)), root.num_prefix_tokens, grid)
    yield from _windowed(modules)


def _replaceable(block: nn.Module) -> bool:
    attn = getattr(block, "attn", None)
    return isinstance(attn, (Attention, TokenAttention))


def _is_replaced(block: nn.Module) -> bool:
    return isinstance(getattr(block, "attn", None), TokenAttention)


def _windowed(modules: dict[str, nn.Module]) -> Iterator[_Place]:
    """Yield the window attention modules of Swin and DaViT. A stage is the parent of the list of blocks."""
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
            yield _Place(f"{name}.attn", block, tuple(block.input_resolution), depth, block_class=_WholeMapSwinBlock)
        else:
            side = 56 >> number
            yield _Place(f"{name}.attn", block, (side, side), depth, block_class=_WholeMapSpatialBlock)


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
    return [f"{letter}.{parameter}" for letter in layer] if layer in ("qkv", "qk") else [name]


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


def _hook(root: VisionTransformer, chosen: Sequence[_Place]) -> None:
    """Register the hook that stores the size of the token map, unless it is registered already."""
    grids = [p.grid for p in chosen if p.grid is not None and any(p.block is b for b in root.blocks.children())]
    hooked = any(isinstance(hook, _Record) for hook in root.patch_embed._forward_hooks.values())
    if grids and not hooked:
        root.patch_embed.register_forward_hook(_Record(grids[0]))


def filter_official(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Convert an official checkpoint of Agent-DeiT, Agent-Swin, InLine-DeiT or InLine-Swin to timm's parameter names.

    This is a ``filter_fn`` of timm for a model after `replace_attention`:
    ``timm.models.load_checkpoint(model, path, filter_fn=filter_official)``. The result loads strictly. Containers,
    DataParallel prefixes and computed buffers are removed, stages are renumbered, and position biases are interpolated
    if the model has another size.

    Args:
        state_dict: the official checkpoint, plain or in ``{"model": ...}`` or ``{"state_dict": ...}``.
        model: timm's `VisionTransformer` or `SwinTransformer`, with the same attention replaced as in the checkpoint.

    Raises:
        CheckpointError: if the model is of another class, the checkpoint has no tensors, or it has window attention in
            modules that were replaced in the model.
    """
    if not isinstance(model, (VisionTransformer, SwinTransformer)):
        raise CheckpointError(
            f"`model` must be a VisionTransformer or SwinTransformer of timm, got a {type(model).__name__}"
        )
    for wrapper in ("model", "state_dict"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    tensors = {re.sub(r"^(module\.)+", "", name): t for name, t in state_dict.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CheckpointError("the checkpoint has no tensors")
    replaced = isinstance(model, SwinTransformer) and [
        name for name in tensors if name.endswith("relative_position_bias_table") and name not in model.state_dict()
    ]
    if replaced:
        raise CheckpointError(
            f"the checkpoint has window attention in {replaced[0].rsplit('.', 1)[0]}, which was replaced in the model; "
            "set `where` of `replace_attention` to the modules that the checkpoint replaces"
        )
    tensors = swin_filter(tensors, model) if isinstance(model, SwinTransformer) else vit_filter(tensors, model)
    own = model.state_dict()
    return {name: _resize_bias(name, tensor, own.get(name)) for name, tensor in tensors.items()}


def _resize_bias(name: str, tensor: Tensor, like: Tensor | None) -> Tensor:
    """Interpolate (linear) a position bias of agent attention to the length in `like`."""
    axis = _LENGTH_AXES.get(name.rsplit(".", 1)[-1])
    if axis is None or like is None or tensor.dim() != like.dim() or tensor.shape[axis] == like.shape[axis]:
        return tensor
    moved = tensor.movedim(axis, -1)
    rows = F.interpolate(moved.reshape(1, -1, moved.shape[-1]).float(), like.shape[axis], mode="linear")
    return rows.view(*moved.shape[:-1], -1).movedim(-1, axis).to(tensor.dtype)
