"""TimeSformer with divided space-time attention, and its pose-aware variants PAAB and PAAT.

Bertasius et al., "Is Space-Time Attention All You Need for Video Understanding?" (arXiv 2102.05095); Reilly et al.,
"Seeing the Pose in the Pixels" (arXiv 2306.09331). Parameter names are those of the published checkpoints.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import (
    DropPath,
    Mlp,
    PatchEmbed,
    register_notrace_module,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from visionattn.backbones._backbone import NormLayer, drop_path_rates
from visionattn.backbones._conversion import Conversion, backbone_tensors
from visionattn.backbones._timesformer_parts import (
    add_embeddings,
    call,
    check_arguments,
    init_linear,
    initialize_temporal,
    pose_masks,
    resize_positions,
    resize_times,
    to_frames,
)
from visionattn.backbones._weights import checkpoint_filter_fn
from visionattn.layers.pose_attention import JointHead, PoseBlock, PoseBlocks

__all__ = ["TimeSformer", "TimeSformerBlock"]

POOLS = ("token", "avg", "")


@register_notrace_module  # reshapes depend on the input size
class TimeSformerBlock(nn.Module):
    """Divided space-time attention: temporal attention of each patch, spatial attention in each frame, and an MLP.

    Args:
        dim: channels.
        num_heads: attention heads.
        mlp_ratio: ratio of the MLP's hidden width to `dim`.
        qkv_bias: add a bias to the query, key and value projections.
        drop_path: stochastic depth rate.
        norm_layer: norm class or factory, called with the number of channels.
        device, dtype: device and dtype of the parameters.
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
        """Map the class token ``[B, 1, C]`` and patches ``[B, N, T, C]`` to the same shapes."""
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

    Tokens are the class token, then the patches in row-major order, with the frames of each patch in sequence. Image
    sizes that are not multiples of the patch size are padded at the bottom and right; position and time embeddings are
    interpolated (nearest).

    Args:
        img_size: height and width of the position embedding table, in pixels.
        patch_size: patch size.
        in_chans: image channels.
        num_classes: number of classes; 0 for no classifier.
        global_pool: ``"token"`` for the class token, ``"avg"`` for the mean of the patches, ``""`` for no pooling.
        embed_dim: channels.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: ratio of the MLPs' hidden width to `embed_dim`.
        qkv_bias: add a bias to the query, key and value projections.
        num_frames: length of the time embedding table.
        paab: numbers of the blocks, starting at 1, that are followed by pose-aware attention blocks. The published
            models have one after the last block.
        paab_attention: ``"spatial"``, ``"joint"`` or ``"spatiotemporal"``, see
            `visionattn.layers.pose_attention.PoseBlock`.
        num_pose_blocks: pose-aware blocks, or joint heads, after each block in `paab` or `paat`. Of several joint heads
            only the last is used, as published.
        paat: numbers of the blocks, starting at 1, whose patches are the input of a joint head. The published models
            have one after the first block. Joint heads do not affect the logits, so inference needs no pose.
        num_joints: output channels of the joint heads.
        mask_layout: ``"tyx"``: masks ``[B, T, H, W]`` in patches are applied to the patches at the same positions.
            ``"legacy"`` reproduces the published code, which flattens masks by frame, column and row and applies them
            to tokens in another order; released checkpoints were trained with it.
        drop_rate: dropout rate before the classifier.
        drop_path_rate: stochastic depth rate of the last block, increasing linearly from 0 at the first.
        init_std: standard deviation of the initial weights. Narrow models trained from scratch need a larger one.
        norm_layer: norm class or factory, called with the number of channels; None for LayerNorm with epsilon 1e-6.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range.
    """

    not_pretrained = (".pose_blocks.",)  # parameters that checkpoints of the plain model lack

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
        check_arguments(
            depth, embed_dim, num_heads, paab, paab_attention, num_pose_blocks, paat, num_joints, mask_layout
        )
        if global_pool not in POOLS:
            raise ValueError(f"`global_pool` must be one of {POOLS}, got {global_pool!r}")
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
        """Initialize with a truncated normal; temporal branches start at zero, which leaves frames independent."""
        self.apply(partial(init_linear, std=self.init_std))
        for block in self.blocks:
            nn.init.zeros_(block.temporal_fc.weight)
        for place in self.paat:
            self.blocks[place - 1].pose_blocks.apply(init_linear)
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay: embeddings and the class token."""
        return {"pos_embed", "cls_token", "time_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that group parameters by depth, for layer-wise learning rate decay."""
        return {
            "stem": r"^cls_token|^pos_embed|^time_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0 classes: remove it) and, if given, the pooling (``""``: none)."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"`global_pool` must be one of {POOLS}, got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = {"device": self.cls_token.device, "dtype": self.cls_token.dtype}
        self.head = nn.Linear(self.num_features, num_classes, **like) if num_classes else nn.Identity()
        init_linear(self.head)
        self.head.train(self.training)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token ``[B, 1, C]`` and patches ``[B, N, T, C]`` of clips or images; see `forward`."""
        patches = self.patch_embed(to_frames(x))
        sizes = tuple(self.patch_embed.grid_size), tuple(self.patch_embed.patch_size)
        patches = add_embeddings(patches, x, self.pos_embed, self.time_embed, *sizes)
        return (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1), patches

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Return the number of patches along height and width."""
        return tuple(self.patch_embed.dynamic_feat_size(tuple(x.shape[-2:])))

    def _run(
        self, x: Tensor, pose: Tensor | None, take: Sequence[int] = (), last: int | None = None, joints: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the tokens before the final norm, those after the blocks `take`, and the logits of the joint heads."""
        cls, patches = self.embed(x)
        mask = attended = None
        if pose is not None and self.paab:
            attention = self.blocks[self.paab[0] - 1].pose_blocks[0].attention
            size = tuple(self.patch_embed.patch_size)
            mask, attended = pose_masks(pose, patches, x, size, self.mask_layout, attention)
        run = checkpoint if self.grad_checkpointing and not torch.jit.is_scripting() else call
        kept, found = [], []
        for index, block in enumerate(self.blocks if last is None else self.blocks[: last + 1]):
            cls, patches = run(block, cls, patches)
            if index + 1 in self.paab and mask is not None:
                cls, patches = run(block.pose_blocks, cls, patches, mask, attended)
            elif index + 1 in self.paat and joints:
                logits = block.pose_blocks[-1](patches)
                found.append(logits.transpose(1, 2).unflatten(2, self._grid(x)))
            if index in take:
                kept.append(torch.cat([cls, patches.flatten(1, 2)], 1))
        return torch.cat([cls, patches.flatten(1, 2)], 1), kept, found

    def forward_features(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        """Return normed tokens ``[B, 1 + N * T, C]``; arguments as for `forward`."""
        return self.norm(self._run(x, pose)[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify tokens; returns logits ``[B, num_classes]`` or the classifier's input."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, 1:].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        """Return logits ``[B, num_classes]``.

        Args:
            x: clips ``[B, in_chans, T, H, W]`` or images ``[B, in_chans, H, W]``.
            pose: mask of the patches that contain a person, bool or in [0, 1], of shape
                ``[B, T, ceil(H / patch_size), ceil(W / patch_size)]``. With ``mask_layout="legacy"`` the published flat
                form ``[B, T * N]`` is accepted, too. Without it, the pose-aware attention blocks are skipped.

        Raises:
            ValueError: if a shape is wrong.
        """
        return self.forward_head(self.forward_features(x, pose))

    def forward_joints(self, x: Tensor, pose: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the class logits and, for each joint head, the logits of each joint ``[B, T, h, w, num_joints]``."""
        tokens, _, joints = self._run(x, pose, joints=True)
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
        """Return the final tokens and the feature maps after selected blocks.

        Args:
            x: clips ``[B, in_chans, T, H, W]`` or images ``[B, in_chans, H, W]``.
            indices: blocks to return; an integer n selects the last n, None selects all.
            norm: apply the final norm to all maps.
            stop_early: do not run blocks after the last selected one.
            output_fmt: ``"NCHW"`` for ``[B, C, T, h, w]`` (images: ``[B, C, h, w]``), ``"NLC"`` for tokens.
            intermediates_only: return only the list of maps.
            pose: see `forward`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"`output_fmt` must be 'NCHW' or 'NLC', got {str(output_fmt)!r}")
        take, highest = feature_take_indices(len(self.blocks), indices)
        tokens, kept, _ = self._run(x, pose, take, highest if stop_early else None)
        kept = [(self.norm(value) if norm else value)[:, 1:] for value in kept]
        if output_fmt == "NCHW":
            kept = [value.unflatten(1, (*self._grid(x), -1)).permute(0, 4, 3, 1, 2).contiguous() for value in kept]
            kept = [value[:, :, 0] for value in kept] if x.ndim == 4 else kept
        return kept if intermediates_only else (self.norm(tokens), kept)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the modules that the blocks in `indices` do not need; returns the indices as non-negative integers."""
        take, highest = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: highest + 1]
        self.paab, self.paat = (tuple(n for n in numbers if n <= highest + 1) for numbers in (self.paab, self.paat))
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def convert_official(self, state_dict: Mapping[str, Any]) -> Conversion:
        """Convert a checkpoint of TimeSformer, PoseAwareVT or an image ViT; see `load_official`.

        Position and time embeddings are interpolated (nearest). The spatial attention of an image ViT also initializes
        the temporal attention, as published. Pose blocks that the checkpoint does not have keep their values.
        """
        conversion = backbone_tensors(state_dict)
        given, own = conversion.state_dict, self.state_dict()
        if not any(".temporal_attn." in name for name in given):
            initialize_temporal(conversion, own)
        for name in [n for n in given if n.startswith(("head_dist.", "dist_token"))]:
            conversion.drop(name, "used for distillation only")
        for name in [n for n in given if ".pose_blocks." in n and n not in own]:
            stem = name.split(".pose_blocks.")[0]
            if not any(n.startswith(f"{stem}.pose_blocks.") for n in own):
                conversion.drop(name, "the model has no pose blocks after this block")
        for name in own:
            if ".pose_blocks." in name and name not in given:
                conversion.missing[name] = "the checkpoint has no such pose block"
        for name in ("pos_embed", "time_embed"):
            if name in given and name in own and given[name].shape != own[name].shape and given[name].ndim == 3:
                if name == "pos_embed":
                    resized = resize_positions(given[name], self.patch_embed.grid_size)
                else:
                    resized = resize_times(given[name], own[name].shape[1])
                if resized is not None and resized.shape == own[name].shape:
                    conversion.interpolated[name] = f"{given[name].shape[1]} to {own[name].shape[1]}"
                    given[name] = resized
        return conversion


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
    """TimeSformer with the width of ViT-Ti; not a published size."""
    return _create("timesformer_tiny_patch16_224", pretrained, **{"embed_dim": 192, "num_heads": 3, **kwargs})


@register_model
def timesformer_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> TimeSformer:
    """TimeSformer with the width of ViT-S; not a published size."""
    return _create("timesformer_small_patch16_224", pretrained, **{"embed_dim": 384, "num_heads": 6, **kwargs})


@register_model
def timesformer_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> TimeSformer:
    """TimeSformer with the width of ViT-B, as published: 121 M parameters."""
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
