"""What timm's DaViT lacks: dense prediction, models without MLPs, the authors' schedule of stochastic depth.

Ding et al., "DaViT: Dual Attention Vision Transformers" (arXiv 2204.03645). The ``davit_*`` models are timm's, and
everything they compute is timm's code; `visionattn.backbones.load_official` reads the authors' checkpoints into them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerNorm2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.davit import DaVit
from torch import Tensor, nn

from visionattn.backbones._conversion import Conversion
from visionattn.backbones._neighborhood import drop_path_rates
from visionattn.backbones._weights import checkpoint_filter_fn
from visionattn.backbones._weights_davit import convert_davit, is_davit, mend_blocks

__all__ = ["DaViT", "is_davit", "mend_blocks"]


class DaViT(DaVit):
    """timm's `DaVit` with what the published models have besides.

    Any input size works: the stem pads to a multiple of 4, each downsampling to an even size, each window attention
    to a multiple of the window, at the bottom and right and with zeros. As in the published model, padded places
    take part in the attention.

    Args:
        out_norms: levels whose map gets a norm of its own (``norm0``, ``norm1``, ...), as in the published detection
            and segmentation backbones: in `forward_intermediates` and with ``features_only=True``. The classifier
            does not use them.
        overlapped_patch: downsample between stages by a 3x3 convolution of stride 2 in place of a 2x2 one.
        drop_path_schedule: how `drop_path_rate` grows from 0: ``"block"``, as the authors train, from one block to
            the next; ``"pair"``, as in timm, with one rate for a spatial block and the channel block after it.
        attn_types: the blocks of a pair, in order: ``"spatial"``, ``"channel"``.
        ffn: False for blocks without MLPs, which timm 1.0.31 cannot run.
        drop_path_rate: stochastic depth of the last block.
        **kwargs: to timm's `DaVit`: ``depths``, ``embed_dims``, ``num_heads``, ``window_size``, ``cpe_act``, ...

    Raises:
        ValueError: an argument out of its range; the message names it.
    """

    def __init__(
        self,
        *,
        out_norms: Sequence[int] = (),
        overlapped_patch: bool = False,
        drop_path_schedule: Literal["block", "pair"] = "block",
        attn_types: Sequence[str] = ("spatial", "channel"),
        ffn: bool = True,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if drop_path_schedule not in ("block", "pair"):
            raise ValueError(f"drop_path_schedule must be 'block' or 'pair', got {drop_path_schedule!r}")
        if not attn_types or not set(attn_types) <= {"spatial", "channel"}:  # timm leaves out what it does not know
            raise ValueError(f"attn_types must be of 'spatial' and 'channel', got {attn_types!r}")
        if overlapped_patch:
            if kwargs.get("down_kernel_size", 3) != 3:
                raise ValueError(f"overlapped_patch needs down_kernel_size=3, got {kwargs['down_kernel_size']}")
            kwargs["down_kernel_size"] = 3
        super().__init__(attn_types=tuple(attn_types), ffn=ffn, drop_path_rate=drop_path_rate, **kwargs)
        if not ffn:
            mend_blocks(self)
        if drop_path_schedule == "block":
            blocks = [block for stage in self.stages for pair in stage.blocks for block in pair]
            for block, rate in zip(blocks, drop_path_rates(drop_path_rate, len(blocks)), strict=True):
                block.drop_path1 = DropPath(rate) if rate > 0 else nn.Identity()
                if ffn:
                    block.drop_path2 = DropPath(rate) if rate > 0 else nn.Identity()
        for level in out_norms:
            if not 0 <= level < len(self.feature_info):
                raise ValueError(f"out_norms must be levels from 0 to {len(self.feature_info) - 1}, got {level}")
            channels = self.feature_info[level]["num_chs"]
            norm = LayerNorm2d(channels, eps=1e-5, device=kwargs.get("device"), dtype=kwargs.get("dtype"))
            self.add_module(f"norm{level}", norm)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Nothing: biases and norms timm leaves out by itself, and there are no tables of positions."""
        return set()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of chosen stages, with their own norms, and the final features; arguments as timm has them.

        Args:
            x: ``[B, in_chans, H, W]``.
            indices: stages to return; an integer for the last so many, None for all.
            norm: apply the model's norm before pooling, where it has one, to the last map.
            stop_early: stop after the last stage asked for.
            output_fmt: layout of the maps, ``"NCHW"`` (contiguous) or ``"NHWC"``.
            intermediates_only: return only the list of maps.

        Returns:
            The final features ``[B, C, H', W']``, as from `forward_features`, and the list of maps.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {str(output_fmt)!r}")
        take, _ = feature_take_indices(len(self.stages), indices)
        result = super().forward_intermediates(x, indices, norm, stop_early, "NCHW", intermediates_only)
        maps = result if intermediates_only else result[1]
        norms = [getattr(self, f"norm{level}", nn.Identity()) for level in sorted(set(take))]
        maps = [out_norm(out).contiguous() for out_norm, out in zip(norms, maps, strict=True)]
        if output_fmt == "NHWC":
            maps = [out.permute(0, 2, 3, 1) for out in maps]
        return maps if intermediates_only else (result[0], maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the stages in `indices` do not need; returns the indices counted from the first stage."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        for level in range(len(self.feature_info)):
            if level not in take and hasattr(self, f"norm{level}"):
                delattr(self, f"norm{level}")
        return take

    def convert_official(self, state_dict: dict[str, Any]) -> Conversion:
        """A published state dict of this family under this model's names; see `load_official`."""
        return convert_davit(state_dict, self)


default_cfgs = generate_default_cfgs(
    {
        # Its weights were never released.
        "davit_large_window12_384": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 384, 384),
            "pool_size": (12, 12),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
            "origin_url": "https://github.com/dingmyu/davit",
            "paper_ids": "arXiv:2204.03645",
        }
    }
)


@register_model
def davit_large_window12_384(pretrained: bool = False, **kwargs: Any) -> DaViT:
    """DaViT-Large as in the authors' code, for 384 x 384: 197 M parameters, 103 GFLOPs. timm's has windows of 7."""
    architecture = {
        "depths": (1, 1, 9, 1),
        "embed_dims": (192, 384, 768, 1536),
        "num_heads": (6, 12, 24, 48),
        "window_size": 12,
    }
    return build_model_with_cfg(
        DaViT,
        "davit_large_window12_384",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**architecture, **kwargs},
    )
