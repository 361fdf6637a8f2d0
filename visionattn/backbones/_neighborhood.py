"""Blocks, dilation schedules and weight conversion of the neighborhood attention backbones (NAT, DiNAT, DiNAT_s, ...).

Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143); Hassani and Shi, "Dilated Neighborhood
Attention Transformer" (arXiv 2209.15001). Schedules are those of the papers and of the released models.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp
from timm.models import build_model_with_cfg, checkpoint_seq, resolve_pretrained_cfg
from torch import Tensor, nn

from visionattn.backbones._backbone import NormLayer, StagedBackbone, check_levels, drop_path_rates
from visionattn.backbones._conversion import OUT_NORM, Conversion, backbone_tensors
from visionattn.backbones._download import with_cached_weights
from visionattn.backbones._transformers import from_transformers
from visionattn.backbones._weights import checkpoint_filter_fn
from visionattn.layers.neighborhood import NeighborhoodAttention2d

__all__ = [
    "DILATION_PRESETS",
    "NeighborhoodBackbone",
    "NeighborhoodBlock",
    "NeighborhoodLevel",
    "create_hierarchical",
    "default_cfg",
    "describe_variants",
    "resolve_dilations",
]

Dilation = int | Literal["auto"]

# One pattern per level. A deeper level repeats its pattern; a shallower one uses the end of it, which has the largest
# dilations. The same table thus gives the published schedules of DiNAT and of the shallower DiNAT_s.
DILATION_PRESETS: dict[str, tuple[tuple[int, ...], ...]] = {
    "classification": ((1, 8), (1, 4), (1, 2), (1,)),  # 224 x 224
    "classification_384": ((1, 13), (1, 6), (1, 3), (1,)),
    "detection": ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3)),  # COCO, short side 800
    "segmentation": ((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2)),  # ADE20K, 512 x 512
    "segmentation_640": (
        (1, 20),
        (1, 5, 1, 10),
        (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
        (1, 2),
    ),
    "mask2former": ((1, 14), (1, 4, 1, 7), (1, 2, 1, 3) * 4 + (1, 3), (1,)),  # kernel 11
}


def _fit(pattern: tuple[int, ...], depth: int) -> list[Dilation]:
    """Fit `pattern` to `depth` blocks: repeat it or use its end, keeping local and dilated blocks alternating."""
    start = max(0, len(pattern) - depth) // 2 * 2
    return [pattern[(start + block) % len(pattern)] for block in range(depth)]


def resolve_dilations(dilations: str | Sequence[Sequence[int]] | None, depths: Sequence[int]) -> list[list[Dilation]]:
    """Return the dilation of every block, as one list per level.

    Args:
        dilations: None for 1 everywhere (NAT); a name in `DILATION_PRESETS`; ``"auto"`` for 1 in even blocks and, in
            odd blocks, the largest dilation that fits the input feature map, per axis (``length // kernel_size``; at
            224 and 384 pixels these are the classification schedules); or one sequence per level with one integer per
            block.
        depths: blocks per level.

    Raises:
        ValueError: if the name is unknown, the number of levels or blocks is wrong, or a value is not an integer >= 1.
    """
    if dilations is None:
        return [[1] * depth for depth in depths]
    if isinstance(dilations, str):
        if dilations == "auto":
            return [["auto" if block % 2 else 1 for block in range(depth)] for depth in depths]
        if dilations not in DILATION_PRESETS:
            names = ", ".join(repr(name) for name in ("auto", *DILATION_PRESETS))
            raise ValueError(f"`dilations` must be one of {names}, or one sequence per level, got {dilations!r}")
        preset = DILATION_PRESETS[dilations]
        if len(preset) != len(depths):
            raise ValueError(
                f"`dilations`={dilations!r} needs {len(preset)} levels, but `depths` has {len(depths)}; "
                "give one list of dilations per level"
            )
        return [_fit(pattern, depth) for pattern, depth in zip(preset, depths, strict=True)]
    if isinstance(dilations, int) or len(dilations) != len(depths):
        raise ValueError(f"`dilations` must have one sequence for each of {len(depths)} levels, got {dilations!r}")
    for level, (given, depth) in enumerate(zip(dilations, depths, strict=True)):
        if isinstance(given, int) or len(given) != depth:
            raise ValueError(f"`dilations[{level}]` must have {depth} values, one per block, got {given!r}")
        if not all(isinstance(d, int) and d >= 1 for d in given):
            raise ValueError(f"`dilations[{level}]` must be integers >= 1, got {given!r}")
    return [list(given) for given in dilations]


class NeighborhoodBlock(nn.Module):
    """Pre-norm transformer block on ``[B, H, W, dim]``: attention, then an MLP with exact GELU.

    Args:
        attn: attention module, including its projections.
        dim: channels.
        mlp_ratio: ratio of the MLP's hidden width to `dim`.
        layer_scale: initial value of the layer scale parameters ``gamma1`` and ``gamma2``; None for no layer scale.
        proj_drop: dropout rate in the MLP.
        drop_path: stochastic depth rate of each branch.
        norm_layer: norm class or factory, called with the number of channels.
    """

    def __init__(
        self,
        attn: nn.Module,
        dim: int,
        mlp_ratio: float,
        layer_scale: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **dd)
        self.attn = attn
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        if layer_scale is None:
            self.register_parameter("gamma1", None)
            self.register_parameter("gamma2", None)
        else:
            self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale), **dd))
            self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale), **dd))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn(self.norm1(x))
        gamma = self.gamma1  # TorchScript narrows the type of local variables only
        if gamma is not None:
            attended = gamma * attended
        x = x + self.drop_path1(attended)
        hidden = self.mlp(self.norm2(x))
        gamma = self.gamma2
        if gamma is not None:
            hidden = gamma * hidden
        return x + self.drop_path2(hidden)


class NeighborhoodLevel(nn.Module):
    """The blocks of one resolution, and the downsampling to the next one.

    `forward` runs the blocks only. The model applies `downsample` afterwards, because dense prediction uses the map
    before it.

    Args:
        dim: channels.
        num_heads: attention heads.
        dilations: dilation of each block.
        drop_path: stochastic depth rate of each block.
        downsample: module that maps to the next level; Identity at the last one.
        attn_kwargs: arguments of `NeighborhoodAttention2d`.
        block_kwargs: arguments of `NeighborhoodBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dilations: Sequence[Any],
        drop_path: Sequence[float],
        downsample: nn.Module,
        attn_kwargs: dict[str, Any],
        block_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(
            NeighborhoodBlock(
                NeighborhoodAttention2d(dim, num_heads, dilation=dilation, **attn_kwargs),
                dim,
                drop_path=rate,
                **block_kwargs,
            )
            for dilation, rate in zip(dilations, drop_path, strict=True)
        )
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(tuple(self.blocks), x)
        for block in self.blocks:
            x = block(x)
        return x


class NeighborhoodBackbone(StagedBackbone):
    """`StagedBackbone` with neighborhood attention blocks."""

    def _build_levels(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        dilations: str | Sequence[Sequence[int]] | None,
        drop_path_rate: float,
        downsample: Callable[[int], nn.Module],
        reduction: int,
        attn_kwargs: dict[str, Any],
        block_kwargs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Create the list of levels, each with twice the channels of the previous one; returns `feature_info`.

        `downsample` creates the step from a level with that many channels; `reduction` is the stride of the stem.
        """
        check_levels(depths=depths, num_heads=num_heads)
        per_block = resolve_dilations(dilations, depths)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        levels, feature_info = nn.ModuleList(), []
        for level, depth in enumerate(depths):
            dim = embed_dim * 2**level
            levels.append(
                NeighborhoodLevel(
                    dim,
                    num_heads[level],
                    per_block[level],
                    drop_path=[next(rates) for _ in range(depth)],
                    downsample=downsample(dim) if level < len(depths) - 1 else nn.Identity(),
                    attn_kwargs=attn_kwargs,
                    block_kwargs=block_kwargs,
                )
            )
            info = {"num_chs": dim, "reduction": reduction * 2**level, "module": f"{self.STAGES}.{level}"}
            feature_info.append(info)
        setattr(self, self.STAGES, levels)
        return feature_info

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay: the relative position biases."""
        return {"*.rpb"}

    def convert_official(self, state_dict: Mapping[str, Any]) -> Conversion:
        """Convert a published checkpoint: prefixes, position biases of another kernel size, per-output norms.

        Parameter names are the published ones; those of transformers are converted. See
        `visionattn.backbones.load_official`.
        """
        own = self.state_dict()
        conversion = backbone_tensors(state_dict)
        conversion.stages = self.STAGES
        from_transformers(conversion)
        for name, tensor in list(conversion.state_dict.items()):
            target = own.get(name)
            if name.endswith("relative_position_index"):
                if target is None or target.shape != tensor.shape:
                    conversion.drop(name, "an index table, computed by the model")
            elif OUT_NORM.fullmatch(name):
                if target is None:
                    conversion.drop(name, "a per-output norm, which the model does not have")
            elif name.endswith(".rpb") and target is not None and target.shape != tensor.shape:
                resized = _resize_rpb(tensor, target)
                if resized is not None:
                    conversion.state_dict[name] = resized
                    conversion.interpolated[name] = f"bicubic, {_size(tensor)} to {_size(target)}"
        return conversion


def _size(rpb: Tensor) -> str:
    return "x".join(str(n) for n in rpb.shape[1:])


def _resize_rpb(rpb: Tensor, target: Tensor) -> Tensor | None:
    """Interpolate `rpb` to the kernel size of `target`; None if the tables differ in more than the kernel size."""
    if rpb.ndim != 3 or target.ndim != 3 or rpb.shape[0] != target.shape[0]:
        return None
    resized = F.interpolate(rpb[None].float(), size=target.shape[1:], mode="bicubic", align_corners=False)
    return resized[0].to(rpb.dtype)


def default_cfg(path: str = "", **kwargs: Any) -> dict[str, Any]:
    """Return a pretrained cfg of timm; `path` is that of the weights on the authors' site, ``""`` for no weights."""
    published = {
        "url": f"https://shi-labs.com/projects/{path}",
        "license": "mit",
        "origin_url": "https://github.com/SHI-Labs/Neighborhood-Attention-Transformer",
        "paper_ids": "arXiv:2204.07143" if path.startswith("nat/") else "arXiv:2209.15001",
    }
    return {
        **(published if path else {}),
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj.0",
        "classifier": "head",
        **kwargs,
    }


def create_hierarchical(
    cls: type[NeighborhoodBackbone], variant: str, architecture: Mapping[str, Any], pretrained: bool, **kwargs: Any
) -> nn.Module:
    """Create a hierarchical model with timm; without `dilations`, the published schedule of its input size is used."""
    architecture = dict(architecture)
    if kwargs.get("dilations") is None:
        kwargs.pop("dilations", None)
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        # With kernel 11, the schedule for 224 pixels and kernel 7 already covers the maps of 384 pixels.
        if "dilations" in architecture and (cfg.input_size or (0,))[-1] == 384 and "kernel_size" not in architecture:
            architecture["dilations"] = "classification_384"
    return build_model_with_cfg(
        cls,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**architecture, **with_cached_weights(variant, pretrained, kwargs)},
    )


def describe_variants(
    tensors: Mapping[str, Tensor], family: str, variants: Mapping[str, Mapping[str, Any]], marker: str
) -> str | None:
    """Return the variant that a checkpoint belongs to, such as ``"dinat_mini"``; None if it has no tensor `marker`."""
    if marker not in tensors:
        return None
    found = _sizes(tensors, marker)
    names = [name for name, variant in variants.items() if _matches(name, variant, found)]
    if names:
        return " or ".join(names)
    sizes = ", ".join(f"{key}={value}" for key, value in found.items() if value is not None)
    return f"{family} of unpublished size ({sizes})"


def _sizes(tensors: Mapping[str, Tensor], marker: str) -> dict[str, Any]:
    """Infer the architecture of a checkpoint from its shapes."""
    block = marker.removesuffix("attn.rpb")
    blocks = {re.sub(r"attn\.rpb$", "", name) for name in tensors if name.endswith(".attn.rpb")}
    dim = tensors[f"{block}attn.proj.weight"].shape[0] if f"{block}attn.proj.weight" in tensors else 0
    hidden = tensors[f"{block}mlp.fc1.weight"].shape[0] if f"{block}mlp.fc1.weight" in tensors else 0
    levels: dict[int, int] = {}
    for name in blocks:
        level = int(name.split(".")[1])
        levels[level] = levels.get(level, 0) + 1
    isotropic = ".blocks." not in block
    return {
        "embed_dim": dim,
        "depths": None if isotropic else tuple(levels[level] for level in sorted(levels)),
        "depth": len(blocks) if isotropic else None,
        "mlp_ratio": round(hidden / dim, 2) if dim else 0,
        "kernel_size": (tensors[marker].shape[-1] + 1) // 2,
        "layer_scale": f"{block}gamma1" in tensors,
    }


def _matches(name: str, variant: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    kernel = 14 if name.startswith("vitrpb") else variant.get("kernel_size", 7)
    ratio = variant.get("mlp_ratio", 4.0)
    return (
        found["embed_dim"] == variant["embed_dim"]
        and found["depths"] == variant.get("depths")
        and found["depth"] == variant.get("depth")
        and math.isclose(found["mlp_ratio"], ratio)
        and found["kernel_size"] == kernel
        and found["layer_scale"] == (variant.get("layer_scale") is not None)
    )
