"""timm's vision transformers with pose-aware attention blocks (PAAB), for images and dense prediction.

Reilly et al., "Seeing the Pose in the Pixels" (arXiv 2306.09331), restricted to one frame, without temporal attention.
Masks are given with the image or predicted from the patches of an early block by a joint head.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import register_notrace_function, resample_abs_pos_embed
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models._pretrained import PretrainedCfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from visionattn.backbones._conversion import Conversion, backbone_tensors
from visionattn.backbones._weights import checkpoint_filter_fn
from visionattn.layers.pose_attention import JointHead, PoseBlock, PoseBlocks

__all__ = ["PoseFeatures", "PoseVisionTransformer"]


class PoseVisionTransformer(VisionTransformer):
    """timm's `VisionTransformer` with pose-aware attention blocks, in which only the patches of a mask attend.

    Created with ``timm.create_model("pose_vit_small_patch16_224", paab=(12,))``, or from any `VisionTransformer` of
    timm with ``timm.create_model("pose_vit", base="vit_small_patch14_reg4_dinov2", paab=(6, 12))``. Parameters have
    timm's names; those of the added blocks start with ``blocks.<n>.pose_blocks.<j>.``.

    Accepts images of any size. `pose` is a mask, bool or in [0, 1], of shape
    ``[B, ceil(H / patch_size), ceil(W / patch_size)]``. Without it and without a joint head, the added blocks are
    skipped and the model is equal to its base.
    """

    paab: tuple[int, ...]
    joints_after: int

    not_pretrained = (".pose_blocks.", "joint_head.")  # parameters that checkpoints of the plain model lack

    @classmethod
    def from_vit(
        cls,
        vit: VisionTransformer,
        paab: Sequence[int] | None = None,
        num_pose_blocks: int = 1,
        pose_joints: int = 0,
        joints_after: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "PoseVisionTransformer":
        """Convert a vision transformer, whose modules are reused; do not use `vit` afterwards.

        Args:
            vit: a `VisionTransformer` of timm without patch dropout.
            paab: numbers of the blocks, starting at 1, that are followed by pose-aware attention blocks; None for the
                last block.
            num_pose_blocks: pose-aware blocks after each block in `paab`.
            pose_joints: number of joints predicted by a joint head, whose maximum probability replaces a missing mask;
                0 for no joint head. Train it with `forward_joints`.
            joints_after: number of the block whose patches are the input of the joint head, starting at 1; not after
                the first block in `paab`.
            device, dtype: device and dtype of the parameters.

        Raises:
            ValueError: if the transformer is not supported or an argument is out of range.
        """
        if type(vit) is not VisionTransformer:
            raise ValueError(f"`base` must be a VisionTransformer of timm, got a {type(vit).__name__}")
        if not isinstance(vit.patch_drop, nn.Identity):
            raise ValueError("`patch_drop_rate` must be 0, because masks cover all patches")
        depth, dim = len(vit.blocks), vit.embed_dim
        places = (depth,) if paab is None else tuple(sorted(paab))
        if any(isinstance(p, bool) or not isinstance(p, int) or not 1 <= p <= depth for p in places):
            raise ValueError(f"`paab` must be block numbers in 1..{depth}, got {places}")
        if len(set(places)) != len(places):
            raise ValueError(f"`paab` must not contain a block twice, got {places}")
        if num_pose_blocks < 1:
            raise ValueError(f"`num_pose_blocks` must be at least 1, got {num_pose_blocks}")
        if pose_joints < 0:
            raise ValueError(f"`pose_joints` must be at least 0, got {pose_joints}")
        if pose_joints and not 1 <= joints_after <= min(places, default=depth):
            raise ValueError(f"`joints_after` must be in 1..{min(places, default=depth)}, got {joints_after}")
        self = cls.__new__(cls)
        self.__dict__ = vit.__dict__
        dd = {"device": device, "dtype": dtype}
        first = vit.blocks[0]
        heads = getattr(getattr(first, "attn", None), "num_heads", max(1, dim // 64))
        norm = type(first.norm1) if isinstance(getattr(first, "norm1", None), nn.LayerNorm) else nn.LayerNorm
        for place in places:
            blocks = PoseBlocks(PoseBlock(dim, heads, norm_layer=_norm_1e6(norm), **dd) for _ in range(num_pose_blocks))
            blocks.apply(_init_linear)
            self.blocks[place - 1].pose_blocks = blocks
        self.paab, self.joints_after = places, joints_after
        if pose_joints:
            self.joint_head = JointHead(dim, pose_joints, **dd)
            self.joint_head.apply(_init_linear)
        else:
            self.joint_head = None
        return self

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add prefix tokens and position embeddings to patches, with an interpolation that torch.fx does not trace."""
        if self.pos_embed is None or not self.dynamic_img_size:
            return super()._pos_embed(x)
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        count = 0 if self.no_embed_class else self.num_prefix_tokens
        table = resize_positions(self.pos_embed, x, tuple(self.patch_embed.grid_size), count)
        x = x.flatten(1, 2)
        x = torch.cat([*prefix, x + table], 1) if self.no_embed_class else torch.cat([*prefix, x], 1) + table
        return self.pos_drop(x)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Return the number of patches along height and width."""
        return tuple(self.patch_embed.dynamic_feat_size(tuple(x.shape[-2:])))

    def _run(
        self, x: Tensor, pose: Tensor | None, take: Sequence[int] = (), last: int | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Return tokens before the final norm, those after the blocks `take`, and joint logits ``[B, N, joints]``."""
        mask = joints = None
        if pose is not None:
            mask = patch_mask(pose, x, tuple(self.patch_embed.patch_size), self.patch_embed.dynamic_img_pad)
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        count = self.num_prefix_tokens
        run = checkpoint if self.grad_checkpointing and not torch.jit.is_scripting() else _call
        kept = []
        for index, block in enumerate(self.blocks if last is None else self.blocks[: last + 1]):
            x = run(block, x)
            if self.joint_head is not None and index + 1 == self.joints_after:
                joints = self.joint_head(x[:, count:])
                mask = default_mask(mask, joints)
            if mask is not None and index + 1 in self.paab:
                prefix, patches = run(block.pose_blocks, x[:, :count], x[:, count:, None], mask)
                x = torch.cat([prefix, patches[:, :, 0]], 1)
            if index in take:
                kept.append(x)
        return x, kept, joints

    def forward_features(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        """Return normed tokens ``[B, prefix + N, C]`` of images ``[B, in_chans, H, W]``."""
        return self.norm(self._run(x, pose)[0])

    def forward(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        """Return logits ``[B, num_classes]``; see the class for `pose`."""
        return self.forward_head(self.forward_features(x, pose))

    def forward_joints(self, x: Tensor, pose: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the class logits and the logits of each joint in each patch, ``[B, h, w, joints]``.

        Raises:
            ValueError: if the model has no joint head.
        """
        if self.joint_head is None:
            raise ValueError("`pose_joints` must be at least 1 for joint logits, got 0")
        tokens, _, joints = self._run(x, pose)
        return self.forward_head(self.norm(tokens)), joints.unflatten(1, self._grid(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        pose: Tensor | None = None,
    ) -> Any:
        """Return the final tokens and the maps ``[B, C, h, w]`` after selected blocks.

        Arguments are those of timm's `VisionTransformer.forward_intermediates`; see the class for `pose`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"`output_fmt` must be 'NCHW' or 'NLC', got {str(output_fmt)!r}")
        take, highest = feature_take_indices(len(self.blocks), indices)
        tokens, kept, _ = self._run(x, pose, take, highest if stop_early else None)
        kept = [self.norm(value) for value in kept] if norm else kept
        count = self.num_prefix_tokens
        maps = [value[:, count:] for value in kept]
        if output_fmt == "NCHW":
            maps = [value.transpose(1, 2).unflatten(2, self._grid(x)).contiguous() for value in maps]
        if return_prefix_tokens and count:
            maps = list(zip(maps, (value[:, :count] for value in kept), strict=True))
        return maps if intermediates_only else (self.norm(tokens), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the modules that the blocks in `indices` do not need; returns the indices as non-negative integers."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.paab = tuple(place for place in self.paab if place <= len(self.blocks))
        if not self.paab:
            self.joint_head = None
        return take

    def convert_official(self, state_dict: Mapping[str, Any]) -> Conversion:
        """Convert a checkpoint of this model or of its base; pose blocks that it does not have keep their values."""
        conversion = backbone_tensors(state_dict)
        given, own = conversion.state_dict.get("pos_embed"), self.pos_embed
        if given is not None and own is not None and given.shape[1] != own.shape[1]:
            prefix = 0 if self.no_embed_class else self.num_prefix_tokens
            conversion.state_dict["pos_embed"] = resample_abs_pos_embed(
                given, self.patch_embed.grid_size, num_prefix_tokens=prefix
            )
            conversion.interpolated["pos_embed"] = f"{given.shape[1]} to {own.shape[1]}"
        for name in self.state_dict():
            if (".pose_blocks." in name or name.startswith("joint_head.")) and name not in conversion.state_dict:
                conversion.missing[name] = "the checkpoint has no such pose block"
        return conversion


class PoseFeatures(FeatureGetterNet):
    """timm's wrapper for ``features_only=True``, with masks as an additional argument: ``net(x, pose=mask)``."""

    def forward(self, x: Tensor, pose: Tensor | None = None) -> list[Tensor]:
        """Return the maps of the selected blocks."""
        return self.model.forward_intermediates(
            x, self.out_indices, norm=self.norm, output_fmt=self.output_fmt, intermediates_only=True, pose=pose
        )


@register_notrace_function  # torch.fx does not wrap functions whose names start with an underscore
def resize_positions(table: Tensor, x: Tensor, grid_size: tuple[int, int], prefix: int) -> Tensor:
    """Interpolate position embeddings to the size of patches ``[B, H, W, C]``; the first `prefix` rows are kept."""
    return resample_abs_pos_embed(table, list(x.shape[1:3]), list(grid_size), num_prefix_tokens=prefix)


@register_notrace_function
def patch_mask(pose: Tensor | None, x: Tensor, patch_size: tuple[int, int], padded: bool) -> Tensor | None:
    """Return the mask as ``[B, N, 1]`` after checking its shape."""
    if pose is None:  # in traced graphs, which always have the argument
        return None
    sides = zip(x.shape[-2:], patch_size, strict=True)
    expected = (x.shape[0], *(-(-side // patch) if padded else side // patch for side, patch in sides))
    if tuple(pose.shape) != expected:
        raise ValueError(f"`pose` must have shape {expected} for this image, got {tuple(pose.shape)}")
    return pose.flatten(1)[..., None]


@register_notrace_function
def default_mask(mask: Tensor | None, joints: Tensor) -> Tensor:
    """Return the mask or, if it is None, the maximum probability of the joints."""
    return joints.detach().sigmoid().amax(2, keepdim=True) if mask is None else mask


def _call(module: nn.Module, *inputs: Any) -> Any:
    return module(*inputs)


def _norm_1e6(norm: type[nn.LayerNorm]):
    return lambda dim, **kwargs: norm(dim, eps=1e-6, **kwargs)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg(base: str) -> dict[str, Any]:
    return {
        "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None, "crop_pct": 0.9,
        "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "first_conv": "patch_embed.proj",
        "classifier": "head", "paper_ids": "arXiv:2306.09331", "description": f"{base} with pose-aware attention",
    }  # fmt: skip


NAMED = {
    f"pose_vit_{size}_patch16_224": f"vit_{size}_patch16_224.augreg_in21k_ft_in1k" for size in ("tiny", "small", "base")
}
default_cfgs = generate_default_cfgs(
    {"pose_vit": _cfg("VisionTransformer"), **{name: _cfg(base) for name, base in NAMED.items()}}
)
# Fields that are taken from the cfg of the base.
_FROM_BASE = (
    "input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "num_classes", "first_conv", "classifier",
)  # fmt: skip


def _build(base: str, pretrained: bool, cache_dir: Any, **kwargs: Any) -> PoseVisionTransformer:
    own = ("paab", "num_pose_blocks", "pose_joints", "joints_after", "device", "dtype")
    options = {name: kwargs[name] for name in own if name in kwargs}
    kwargs = {name: value for name, value in kwargs.items() if name not in own[:4]}
    try:
        vit = timm.create_model(
            base, pretrained, cache_dir=cache_dir, **{"dynamic_img_size": True, "dynamic_img_pad": True, **kwargs}
        )
    except TypeError as error:
        if "dynamic_img" not in str(error):
            raise
        raise ValueError(f"`base` must be a VisionTransformer of timm, got {base!r}") from error
    return PoseVisionTransformer.from_vit(vit, **options)


def _create(name: str, pretrained: bool, base: str, **kwargs: Any) -> nn.Module:
    architecture, _, tag = base.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(f"`base` must be the name of a timm model, got {base!r}")
    cfg, overlay = kwargs.pop("pretrained_cfg", None), dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if not isinstance(cfg, (dict, PretrainedCfg)):
        base_cfg = resolve_pretrained_cfg(architecture, tag or None)
        overlay = {**{field: getattr(base_cfg, field) for field in _FROM_BASE}, **overlay}
    resolved = resolve_pretrained_cfg(name, cfg, overlay)
    has_weights = bool(resolved.has_weights or resolved.state_dict or resolved.source)  # else the weights of the base
    feature_cfg = {"out_indices": 3, "feature_cls": PoseFeatures}
    if kwargs.get("feature_cls") == "getter":
        kwargs["feature_cls"] = PoseFeatures
    if "feature_norm" in kwargs:
        feature_cfg["norm"] = kwargs.pop("feature_norm")
    return build_model_with_cfg(
        partial(_build, base, pretrained and not has_weights, kwargs.get("cache_dir")),
        name,
        pretrained and has_weights,
        pretrained_cfg=cfg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **kwargs,
    )


@register_model
def pose_vit(pretrained: bool = False, base: str = "vit_small_patch16_224", **kwargs: Any) -> nn.Module:
    """Any `VisionTransformer` of timm, named `base`, with pose-aware attention; see `PoseVisionTransformer`."""
    return _create("pose_vit", pretrained, base, **kwargs)


@register_model
def pose_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-Ti/16 with a pose-aware attention block after the last block."""
    return _create("pose_vit_tiny_patch16_224", pretrained, NAMED["pose_vit_tiny_patch16_224"], **kwargs)


@register_model
def pose_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-S/16 with a pose-aware attention block after the last block."""
    return _create("pose_vit_small_patch16_224", pretrained, NAMED["pose_vit_small_patch16_224"], **kwargs)


@register_model
def pose_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-B/16 with a pose-aware attention block after the last block."""
    return _create("pose_vit_base_patch16_224", pretrained, NAMED["pose_vit_base_patch16_224"], **kwargs)
