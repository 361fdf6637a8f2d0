"""What the neighborhood-attention backbones share: block, level of blocks, timm's model interface."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, create_classifier, trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from visionattn.backbones._conversion import Conversion
from visionattn.backbones._weights_neighborhood import convert_neighborhood
from visionattn.layers import NeighborhoodAttention2d

__all__ = [
    "NeighborhoodBackbone",
    "NeighborhoodBlock",
    "NeighborhoodLevel",
    "check_levels",
    "default_cfg",
    "drop_path_rates",
]

NormLayer = Callable[..., nn.Module]


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Stochastic-depth rates of `depth` blocks: linear from exactly 0 to `highest`."""
    return [highest * block / max(1, depth - 1) for block in range(depth)]


def check_levels(**per_level: Sequence[Any]) -> None:
    """Raise ValueError unless all arguments have the same number of entries, at least one."""
    lengths = {len(values) for values in per_level.values()}
    if len(lengths) != 1 or 0 in lengths:
        given = ", ".join(f"{name}={tuple(values)}" for name, values in per_level.items())
        raise ValueError(f"these need the same number of entries, one per level: {given}")


def default_cfg(path: str = "", **kwargs: Any) -> dict[str, Any]:
    """A pretrained cfg for timm, with the weights at `path` on the authors' site; no path, no weights."""
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


class NeighborhoodBlock(nn.Module):
    """Pre-norm transformer block, ``[B, H, W, dim]`` to the same: attention, then an MLP with exact GELU.

    Args:
        attn: the attention module, with its own projections.
        dim: channels.
        mlp_ratio: hidden width of the MLP over `dim`.
        layer_scale: initial value of ``gamma1`` and ``gamma2``, learned factors per channel on the branches;
            None leaves them out (0 is a value, not "off").
        proj_drop: dropout in the MLP.
        drop_path: stochastic-depth rate of each branch.
        norm_layer: makes a norm from a number of channels.
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
        gamma = self.gamma1  # a local name lets TorchScript see that it is not None below
        if gamma is not None:
            attended = gamma * attended
        x = x + self.drop_path1(attended)
        hidden = self.mlp(self.norm2(x))
        gamma = self.gamma2
        if gamma is not None:
            hidden = gamma * hidden
        return x + self.drop_path2(hidden)


class NeighborhoodLevel(nn.Module):
    """The blocks of one resolution, and the step to the next one.

    `forward` runs the blocks only; the model applies `downsample` after it, because dense prediction takes
    the map in between.

    Args:
        dim: channels.
        num_heads: attention heads.
        dilations: one per block.
        drop_path: one rate per block.
        downsample: to the next level; Identity at the last.
        attn_kwargs: for `NeighborhoodAttention2d`.
        block_kwargs: for `NeighborhoodBlock`.
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


class NeighborhoodBackbone(nn.Module):
    """timm's model interface over a stem, a list of stages on ``[B, H, W, C]`` maps, a norm and a classifier.

    A subclass builds ``patch_embed`` and its stages, calls `_build_head`, and defines `forward_features`. Its
    `STAGES` is the name of the list of stages, which differs between the published models.
    """

    STAGES: str

    def _build_head(
        self,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        norm_layer: NormLayer,
        feature_info: list[dict[str, Any]],
        out_norms: Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """The attributes and modules after the stages, and the initial values of all linear layers."""
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.output_fmt = "NHWC"
        self.feature_info = feature_info
        self.num_features = feature_info[-1]["num_chs"]
        self.norm = norm_layer(self.num_features, device=device, dtype=dtype)
        for level in out_norms:
            if not 0 <= level < len(feature_info):
                raise ValueError(f"out_norms must be levels from 0 to {len(feature_info) - 1}, got {level}")
            self.add_module(f"norm{level}", norm_layer(feature_info[level]["num_chs"], device=device, dtype=dtype))
        self.head_drop = nn.Dropout(drop_rate)
        self._set_classifier(num_classes, global_pool, device, dtype)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _set_classifier(self, num_classes: int, global_pool: str, device: Any, dtype: Any) -> None:
        pool, head = create_classifier(
            self.num_features, num_classes, global_pool, input_fmt="NHWC", device=device, dtype=dtype
        )
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * pool.feat_mult()
        self.global_pool, self.head = pool.train(self.training), head.train(self.training)

    def stages(self) -> nn.ModuleList:
        """The stages in order, one for each entry of `feature_info`."""
        return getattr(self, self.STAGES)

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Run a stage where the forward pass is not scripted."""
        return stage(x)

    def _next_resolution(self, stage: nn.Module, x: Tensor) -> Tensor:
        """The step from one stage to the next."""
        return stage.downsample(x)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"*.rpb"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stages = self.STAGES
        if coarse:
            return {"stem": r"^patch_embed", "blocks": [(rf"^{stages}\.(\d+)", None), (r"^norm", (99999,))]}
        return {
            "stem": r"^patch_embed",
            "blocks": [
                (rf"^{stages}\.(\d+)\.blocks\.(\d+)", None),
                (rf"^{stages}\.(\d+)\.downsample", (99999,)),  # after the blocks of its level
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable
        for stage in self.stages():
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` (0: none), and another pooling if given (``""``: none)."""
        parameter = next(self.parameters())
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self._set_classifier(num_classes, pool, parameter.device, parameter.dtype)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of chosen stages, before downsampling, and the final features.

        Args:
            x: ``[B, in_chans, H, W]``.
            indices: stages to return; an integer for the last so many, None for all.
            norm: apply the final norm to the map of the last stage. Stages in `out_norms` get their own.
            stop_early: stop after the last stage asked for.
            output_fmt: layout of the maps, ``"NCHW"`` (contiguous) or ``"NHWC"``.
            intermediates_only: return only the list of maps.

        Returns:
            The final features ``[B, H', W', C]``, as from `forward_features`, and the list of maps.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {str(output_fmt)!r}")
        stages = list(self.stages())
        last = len(stages) - 1
        take, highest = feature_take_indices(len(stages), indices)
        maps = []
        x = self.patch_embed(x)
        for i, stage in enumerate(stages[: highest + 1] if stop_early else stages):
            x = self._run_stage(stage, x)
            if i in take:
                final_norm = self.norm if norm and i == last else nn.Identity()
                out = getattr(self, f"norm{i}", final_norm)(x)
                maps.append(out.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else out)
            if i == last:
                x = self.norm(x)
            elif not (stop_early and i == highest):
                x = self._next_resolution(stage, x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the stages in `indices` do not need; returns the indices counted from the first stage."""
        stages = self.stages()
        take, highest = feature_take_indices(len(stages), indices)
        shortened = highest < len(stages) - 1
        for i in range(len(stages)):
            if i not in take and hasattr(self, f"norm{i}"):
                delattr(self, f"norm{i}")
        setattr(self, self.STAGES, stages[: highest + 1])
        if hasattr(self.stages()[-1], "downsample"):
            self.stages()[-1].downsample = nn.Identity()
        if shortened:
            self.num_features = self.feature_info[highest]["num_chs"]
        if prune_norm or shortened:
            self.norm = nn.Identity()  # it has the channels of the last stage
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return take

    def convert_official(self, state_dict: dict[str, Any]) -> Conversion:
        """A published state dict of this family under this model's names; see `load_official`."""
        return convert_neighborhood(state_dict, self)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``[B, H', W', C]`` features to logits ``[B, num_classes]``, or to what enters the classifier."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` to logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))
