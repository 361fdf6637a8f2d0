"""TimeSformer with divided space-time attention, and with pose: PAAB and PAAT.

Bertasius et al., "Is Space-Time Attention All You Need for Video Understanding?" (arXiv 2102.05095); Reilly et al.,
"Seeing the Pose in the Pixels" (arXiv 2306.09331). Parameter names are those of the published checkpoints.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from visionattn.backbones._backbone import NormLayer, drop_path_rates
from visionattn.backbones._conversion import Conversion
from visionattn.backbones._weights import checkpoint_filter_fn
from visionattn.backbones._weights_timesformer import convert_timesformer
from visionattn.layers.pose_attention import ATTENTIONS, JointHead, PoseBlock, PoseBlocks

__all__ = ["TimeSformer", "TimeSformerBlock"]

LAYOUTS = ("tyx", "legacy")


class TimeSformerBlock(nn.Module):
    """Attention of each patch over time, then of the patches of each frame, then an MLP (divided space-time).

    Args:
        dim: channels.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``dim``.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        drop_path: probability of stochastic depth.
        norm_layer: makes a norm from a number of channels.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **dd)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, **dd)
        self.temporal_norm1 = norm_layer(dim, **dd)
        self.temporal_attn = Attention(dim, num_heads, qkv_bias=qkv_bias, **dd)
        self.temporal_fc = nn.Linear(dim, dim, **dd)
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 1, C]`` and ``[B, N, T, C]`` to the same."""
        B, N, T, C = patches.shape
        series = self.temporal_attn(self.temporal_norm1(patches.reshape(B * N, T, C)))
        patches = patches + self.temporal_fc(self.drop_path(series)).view(B, N, T, C)
        frames = patches.transpose(1, 2).reshape(B * T, N, C)
        frames = torch.cat([cls.repeat_interleave(T, 0), frames], 1)
        seen = self.drop_path(self.attn(self.norm1(frames)))
        cls = cls + seen[:, :1].view(B, T, 1, C).mean(1)
        patches = patches + seen[:, 1:].view(B, T, N, C).transpose(1, 2)
        x = torch.cat([cls, patches.reshape(B, N * T, C)], 1)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x[:, :1], x[:, 1:].reshape(B, N, T, C)


class TimeSformer(nn.Module):
    """TimeSformer for clips of any size and length, with pose-aware attention blocks (PAAB) or joint heads (PAAT).

    The tokens are the class token, then the patches by row, column and frame, the frame fastest. Sizes that are no
    multiple of the patch are padded at the bottom and right; positions and times are interpolated (nearest).

    Args:
        img_size: height and width that the table of positions is made for.
        patch_size: side of a patch.
        in_chans: channels of the frames.
        num_classes: classes; 0 leaves the classifier out.
        global_pool: ``"token"`` classifies by the class token, ``"avg"`` by the mean of the patches, ``""`` gives
            the tokens.
        embed_dim: channels.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over ``embed_dim``.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        num_frames: frames that the table of times is made for.
        paab: numbers of the blocks, from 1, after which pose-aware attention blocks stand; the published models have
            one after the last.
        paab_attention: ``"spatial"``, ``"joint"`` or ``"spatiotemporal"``, see
            `visionattn.layers.pose_attention.PoseBlock`.
        num_pose_blocks: how many blocks, or joint heads, stand at each place. Of several joint heads the last counts,
            as published.
        paat: numbers of the blocks, from 1, whose patches a joint head reads; the published models have one after the
            first. The video's own path is not changed, and no pose is needed to predict.
        num_joints: of the joint heads.
        mask_layout: ``"tyx"``: masks are ``[B, T, H, W]`` in patches, and each patch gets its own. ``"legacy"``
            repeats the published code, which puts masks flattened by frame, column and row onto tokens in another
            order; released checkpoints were trained so.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        init_std: of the normal that weights start from. Narrow models trained from nothing want a wider one.
        norm_layer: makes a norm from a number of channels; LayerNorm with an epsilon of 1e-6 unless given.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument out of its range; the message names it.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 400,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        num_frames: int = 8,
        paab: Sequence[int] = (),
        paab_attention: str = "spatial",
        num_pose_blocks: int = 1,
        paat: Sequence[int] = (),
        num_joints: int = 17,
        mask_layout: str = "tyx",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        init_std: float = 0.02,
        norm_layer: NormLayer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(depth, embed_dim, num_heads, paab, paab_attention, num_pose_blocks, paat, num_joints, mask_layout)
        dd = {"device": device, "dtype": dtype}
        norm_layer = norm_layer or partial(nn.LayerNorm, eps=1e-6)
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.global_pool, self.grad_checkpointing, self.mask_layout = global_pool, False, mask_layout
        self.num_prefix_tokens = 1
        self.paab, self.paat = tuple(sorted(paab)), tuple(sorted(paat))
        self.patch_embed = PatchEmbed(
            img_size, patch_size, in_chans, embed_dim, strict_img_size=False, dynamic_img_pad=True, **dd
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **dd))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim, **dd))
        self.time_embed = nn.Parameter(torch.zeros(1, num_frames, embed_dim, **dd))
        width = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "norm_layer": norm_layer, **dd}
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(TimeSformerBlock(embed_dim, num_heads, drop_path=r, **width) for r in rates)
        for place in self.paab:
            made = (
                PoseBlock(embed_dim, num_heads, paab_attention, drop_path=rates[place - 1], **width)
                for _ in range(num_pose_blocks)
            )
            self.blocks[place - 1].pose_blocks = PoseBlocks(made)
        for place in self.paat:
            heads = (JointHead(embed_dim, num_joints, **dd) for _ in range(num_pose_blocks))
            self.blocks[place - 1].pose_blocks = nn.ModuleList(heads)
        self.norm = norm_layer(embed_dim, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.init_std = init_std
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal; the temporal paths start at zero, so that the model starts as one of single frames."""
        self.apply(partial(_init_linear, std=self.init_std))
        for block in self.blocks:
            nn.init.zeros_(block.temporal_fc.weight)
        for place in self.paat:
            self.blocks[place - 1].pose_blocks.apply(_init_linear)
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that are positions, times and tokens."""
        return {"pos_embed", "cls_token", "time_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters for a layer-wise decay of the learning rate."""
        return {
            "stem": r"^cls_token|^pos_embed|^time_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks anew in the backward pass, which saves memory."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes for none."""
        if global_pool is not None:
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = {"device": self.cls_token.device, "dtype": self.cls_token.dtype}
        self.head = nn.Linear(self.num_features, num_classes, **like) if num_classes else nn.Identity()
        _init_linear(self.head)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Class token ``[B, 1, C]``, patches ``[B, N, T, C]`` and their rows and columns, from ``[B, c, T, H, W]``."""
        if x.ndim == 4:
            x = x[:, :, None]
        if x.ndim != 5:
            raise ValueError(f"x has the shape {tuple(x.shape)}; it must be [B, channels, T, H, W]")
        B, _, T, H, W = x.shape
        rows, columns = self.patch_embed.dynamic_feat_size((H, W))
        patches = self.patch_embed(x.transpose(1, 2).flatten(0, 1))
        table = self.pos_embed[:, 1:]
        if (rows, columns) != tuple(self.patch_embed.grid_size):
            grid = table.transpose(1, 2).unflatten(2, tuple(self.patch_embed.grid_size))
            table = F.interpolate(grid, (rows, columns), mode="nearest").flatten(2).transpose(1, 2)
        time = self.time_embed
        if time.shape[1] != T:
            time = F.interpolate(time.transpose(1, 2), T, mode="nearest").transpose(1, 2)
        patches = (patches + table).unflatten(0, (B, T)).transpose(1, 2) + time[:, None]
        return (self.cls_token + self.pos_embed[:, :1]).expand(B, -1, -1), patches, (rows, columns)

    def _masks(self, pose: Tensor | None, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """What patches to replace, ``[B, N, T]``, and for the published code what patches attend instead."""
        B, N, T, _ = patches.shape
        flat = self.mask_layout == "legacy" and pose.ndim == 2
        expected = (B, T * N) if flat else (B, T, *grid)
        if tuple(pose.shape) != expected:
            raise ValueError(f"pose has the shape {tuple(pose.shape)}; for this clip it must be {expected}")
        if self.mask_layout == "tyx":
            return pose.flatten(2).transpose(1, 2), None
        vector = pose if flat else pose.transpose(2, 3).reshape(B, T * N)
        replaced = vector.view(B, N, T)
        joint = self.blocks[self.paab[0] - 1].pose_blocks[0].attention == "joint"
        return replaced, replaced if joint else vector.view(B, T, N).transpose(1, 2)

    def _run(
        self, x: Tensor, pose: Tensor | None, take: Sequence[int] = (), last: int | None = None, joints: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor], tuple[int, int]]:
        """Tokens before the final norm, those after the blocks ``take``, and the joint heads' logits."""
        cls, patches, grid = self.embed(x)
        masks = None if pose is None or not self.paab else self._masks(pose, patches, grid)
        run = checkpoint if self.grad_checkpointing and not torch.jit.is_scripting() else _call
        kept, found = [], []
        for index, block in enumerate(self.blocks if last is None else self.blocks[: last + 1]):
            cls, patches = run(block, cls, patches)
            if index + 1 in self.paab and masks is not None:
                cls, patches = run(block.pose_blocks, cls, patches, *masks)
            elif index + 1 in self.paat and joints:
                logits = block.pose_blocks[-1](patches)
                found.append(logits.transpose(1, 2).unflatten(2, grid))
            if index in take:
                kept.append(torch.cat([cls, patches.flatten(1, 2)], 1))
        return torch.cat([cls, patches.flatten(1, 2)], 1), kept, found, grid

    def forward_features(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        """Normed tokens ``[B, 1 + N * T, C]``; arguments as of `forward`."""
        return self.norm(self._run(x, pose)[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits ``[B, num_classes]``, or to what enters the classifier."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, 1:].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        """Logits ``[B, num_classes]`` of clips.

        Args:
            x: ``[B, in_chans, T, H, W]``, or pictures ``[B, in_chans, H, W]``.
            pose: mask of the patches under a person, bool or in [0, 1], ``[B, T, ceil(H / patch), ceil(W / patch)]``;
                ``mask_layout="legacy"`` also takes the published flat form ``[B, T * N]``. Without it the pose-aware
                attention blocks are passed over.

        Raises:
            ValueError: shapes that do not fit.
        """
        return self.forward_head(self.forward_features(x, pose))

    def forward_joints(self, x: Tensor, pose: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits, and of each joint head the logits of each joint in each patch, ``[B, T, h, w, joints]``."""
        tokens, _, joints, _ = self._run(x, pose, joints=True)
        return self.forward_head(self.norm(tokens)), joints

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        pose: Tensor | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps after chosen blocks, ``[B, C, T, h, w]`` (``[B, C, h, w]`` of pictures); arguments as timm has them."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={str(output_fmt)!r} must be 'NCHW' or 'NLC'")
        take, highest = feature_take_indices(len(self.blocks), indices)
        tokens, kept, _, grid = self._run(x, pose, take, highest if stop_early else None)
        kept = [(self.norm(value) if norm else value)[:, 1:] for value in kept]
        if output_fmt == "NCHW":
            kept = [value.unflatten(1, (*grid, -1)).permute(0, 4, 3, 1, 2).contiguous() for value in kept]
            kept = [value[:, :, 0] for value in kept] if x.ndim == 4 else kept
        return kept if intermediates_only else (self.norm(tokens), kept)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the blocks in ``indices`` do not need; returns the indices counted from the first block."""
        take, highest = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: highest + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def convert_official(self, state_dict: dict[str, Any]) -> Conversion:
        """A checkpoint of TimeSformer, of PoseAwareVT, or of an image ViT under this model's names."""
        return convert_timesformer(state_dict, self)


def _call(module: nn.Module, *inputs: Any) -> Any:
    return module(*inputs)


def _init_linear(module: nn.Module, std: float = 0.02) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(
    depth: int, dim: int, heads: int, paab: Sequence[int], attention: str, number: int, paat: Sequence[int],
    joints: int, layout: str,
) -> None:  # fmt: skip
    if dim % heads:
        raise ValueError(f"embed_dim={dim} must be a multiple of num_heads={heads}")
    for name, places in (("paab", paab), ("paat", paat)):
        if any(isinstance(p, bool) or not isinstance(p, int) or not 1 <= p <= depth for p in places):
            raise ValueError(f"{name}={tuple(places)} must be numbers of blocks, 1 to {depth}")
        if len(set(places)) != len(places):
            raise ValueError(f"{name}={tuple(places)} names a block twice")
    if set(paab) & set(paat):
        raise ValueError(f"paab={tuple(paab)} and paat={tuple(paat)} share a block, and the published names with it")
    for name, value, allowed in (("paab_attention", attention, ATTENTIONS), ("mask_layout", layout, LAYOUTS)):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be one of {allowed}")
    for name, value in (("num_pose_blocks", number), ("num_joints", joints)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "", "num_classes": 400, "input_size": (3, 224, 224), "pool_size": None, "crop_pct": 0.875,
        "mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225), "first_conv": "patch_embed.proj",
        "classifier": "head", "paper_ids": "arXiv:2102.05095", **kwargs,
    }  # fmt: skip


default_cfgs = generate_default_cfgs(
    {
        "timesformer_tiny_patch16_224": _cfg(),
        "timesformer_small_patch16_224": _cfg(),
        "timesformer_base_patch16_224": _cfg(),
        "paab_timesformer_base_patch16_224": _cfg(num_classes=31, paper_ids="arXiv:2306.09331"),
        "paat_timesformer_base_patch16_224": _cfg(num_classes=31, paper_ids="arXiv:2306.09331"),
    }
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> TimeSformer:
    return build_model_with_cfg(
        TimeSformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def timesformer_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> TimeSformer:
    """TimeSformer of the width of ViT-Ti."""
    return _create("timesformer_tiny_patch16_224", pretrained, **{"embed_dim": 192, "num_heads": 3, **kwargs})


@register_model
def timesformer_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> TimeSformer:
    """TimeSformer of the width of ViT-S."""
    return _create("timesformer_small_patch16_224", pretrained, **{"embed_dim": 384, "num_heads": 6, **kwargs})


@register_model
def timesformer_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> TimeSformer:
    """TimeSformer of the width of ViT-B: the published one, 121 M parameters."""
    return _create("timesformer_base_patch16_224", pretrained, **kwargs)


@register_model
def paab_timesformer_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> TimeSformer:
    """TimeSformer-B with a pose-aware attention block after its last block."""
    place = (kwargs.get("depth", 12),)
    return _create("paab_timesformer_base_patch16_224", pretrained, **{"paab": place, **kwargs})


@register_model
def paat_timesformer_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> TimeSformer:
    """TimeSformer-B with a joint head after its first block."""
    options = {"paat": (1,), "num_joints": 13, **kwargs}
    return _create("paat_timesformer_base_patch16_224", pretrained, **options)
