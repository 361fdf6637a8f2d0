"""The attention modules of timm models that can be replaced, and blocks that compute attention over the whole map.

Vision transformers (ViT, DeiT) attend to token sequences. Only their patch embedding has the height and width of the
token map, which a forward hook stores in a `TokenGrid` for the new modules. Swin and DaViT attend within windows, PVT
to a reduced map; the new attention is over the whole map, because linear attention is faster only for many tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from timm.layers import Attention, PatchEmbed
from timm.models.davit import SpatialBlock
from timm.models.pvt_v2 import Block as PyramidBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from visionattn.layers._tokens import TokenAttention, TokenGrid

__all__ = ["Place", "Record", "convert_block", "find_places"]

SIXTHS = (0, 1, 2, 2, 2, 3)  # stage of each sixth of the depth of a vision transformer, as published


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


class _WholeMapPyramidBlock(PyramidBlock):
    """timm's block of PVT v2 without reduction of keys and values. Existing blocks are converted in the same way."""

    def forward(self, x: Tensor, feat_size: list[int]) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), size=tuple(feat_size)))
        return x + self.drop_path2(self.mlp(self.norm2(x), feat_size))


_WHOLE_MAP: dict[type[nn.Module], type[nn.Module]] = {
    SwinTransformerBlock: _WholeMapSwinBlock,
    SpatialBlock: _WholeMapSpatialBlock,
    PyramidBlock: _WholeMapPyramidBlock,
}


@dataclass(frozen=True)
class Place:
    """An attention module that can be replaced."""

    name: str
    block: nn.Module
    input_size: tuple[int, int]
    depth: tuple[int, int]  # index of the stage, or of the block in a ViT, and their number
    num_prefix_tokens: int = 0
    grid: TokenGrid | None = None

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


class Record:
    """Forward hook of a patch embedding that stores the size of the token map in a `TokenGrid`."""

    def __init__(self, grid: TokenGrid) -> None:
        self.grid = grid

    def __call__(self, module: PatchEmbed, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.grid.size = tuple(module.dynamic_feat_size(inputs[0].shape[-2:]))


def find_places(model: nn.Module) -> Iterator[Place]:
    """Yield all attention modules that can be replaced, with names relative to the model."""
    modules = dict(model.named_modules())
    for path, root in modules.items():
        if isinstance(root, VisionTransformer) and isinstance(root.patch_embed, PatchEmbed):
            blocks = [(name, block) for name, block in root.blocks.named_children() if _replaceable(block)]
            grid = next((b.attn.grid for b in root.blocks.children() if _is_replaced(b)), None) or TokenGrid()
            size = tuple(root.patch_embed.grid_size or (14, 14))
            count = max(len(root.blocks), len(root.feature_info))  # the second is the number before any pruning
            for name, block in blocks:
                full = ".".join(filter(None, (path, "blocks", name, "attn")))
                yield Place(full, block, size, (int(name), count), root.num_prefix_tokens, grid)
    yield from _staged(modules)


def convert_block(place: Place) -> None:
    """Let the block of a model with stages compute its attention over the whole map."""
    for plain, whole in _WHOLE_MAP.items():
        if isinstance(place.block, plain):
            place.block.__class__ = whole
            if plain is SwinTransformerBlock:
                place.block.attn_mask = None


def _replaceable(block: nn.Module) -> bool:
    attn = getattr(block, "attn", None)
    return isinstance(attn, (Attention, TokenAttention))


def _is_replaced(block: nn.Module) -> bool:
    return isinstance(getattr(block, "attn", None), TokenAttention)


def _staged(modules: dict[str, nn.Module]) -> Iterator[Place]:
    """Yield the attention modules of Swin, DaViT and PVT. A stage is the parent of the list of blocks."""
    found = [(name, block) for name, block in modules.items() if isinstance(block, tuple(_WHOLE_MAP))]
    stages: dict[str, list[str]] = {}  # those of each model, by its name
    for name, _ in found:
        stages.setdefault(_model_of(modules, name)[0], []).append(name.rsplit(".blocks.", 1)[0])
    for name, block in found:
        root, levels = _model_of(modules, name)
        names = list(dict.fromkeys(stages[root]))
        number = names.index(name.rsplit(".blocks.", 1)[0])
        side = 56 >> number
        size = tuple(block.input_resolution) if isinstance(block, SwinTransformerBlock) else (side, side)
        yield Place(f"{name}.attn", block, size, (number, max(len(names), levels)))


def _model_of(modules: dict[str, nn.Module], name: str) -> tuple[str, int]:
    """Return the name of the model that a block is in, and its number of levels, including those left out."""
    while name:
        name = name.rpartition(".")[0]
        info = getattr(modules[name], "feature_info", None)
        if info is not None:
            return name, len(getattr(info, "info", info))
    return "", 0
