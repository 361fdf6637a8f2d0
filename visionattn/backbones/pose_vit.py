"""Any vision transformer of timm with pose-aware attention blocks (PAAB), for pictures and dense prediction.

Reilly et al., "Seeing the Pose in the Pixels" (arXiv 2306.09331), with one frame: then attention over time falls away,
and the order of tokens with it. Masks are given with the picture, or predicted from an early block by a joint head.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from visionattn.backbones._conversion import Conversion, backbone_tensors
from visionattn.backbones._weights import load_official
from visionattn.layers.pose_attention import JointHead, PoseBlock, PoseBlocks

__all__ = ["PoseFeatures", "PoseVisionTransformer"]


class PoseVisionTransformer(VisionTransformer):
    """timm's `VisionTransformer` with blocks in which only the patches under a pose attend to each other.

    Made by ``timm.create_model("pose_vit_small_patch16_224", paab=(12,))``, or from any other by ``pose_vit`` and the
    name of its base: ``timm.create_model("pose_vit", base="vit_small_patch14_reg4_dinov2", paab=(6, 12))``. Names of
    parameters are timm's; the added ones are ``blocks.<n>.pose_blocks.<j>.*``.

    Pictures of any size are taken. ``pose`` is bool or in [0, 1], ``[B, ceil(H / patch), ceil(W / patch)]``; without
    it, and without ``pose_joints``, the added blocks are passed over and the model is its base.
    """

    paab: tuple[int, ...]
    joints_after: int

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
        """A pose-aware model that takes over the parts of a transformer; use that no more.

        Args:
            vit: of timm, with its ordinary kinds of blocks and without dropped patches.
            paab: numbers of the blocks, from 1, after which pose-aware attention blocks stand; None for the last.
            num_pose_blocks: how many at each place.
            pose_joints: joints of a head that reads the patches after a block; where no mask is given, the most of
                their probabilities is the mask. Train it with `forward_joints`. 0 for none.
            joints_after: number of that block, from 1, not after the first of ``paab``.
            device, dtype: of the parameters.

        Raises:
            ValueError: a transformer or argument that does not do.
        """
        if type(vit) is not VisionTransformer:
            raise ValueError(f"base is a {type(vit).__name__}; it must be a VisionTransformer of timm")
        if not isinstance(vit.patch_drop, nn.Identity):
            raise ValueError("base drops patches (patch_drop_rate), so that a mask would not fit them")
        depth, dim = len(vit.blocks), vit.embed_dim
        places = (depth,) if paab is None else tuple(sorted(paab))
        if any(isinstance(p, bool) or not isinstance(p, int) or not 1 <= p <= depth for p in places):
            raise ValueError(f"paab={places} must be numbers of blocks, 1 to {depth}")
        if len(set(places)) != len(places):
            raise ValueError(f"paab={places} names a block twice")
        if num_pose_blocks < 1 or pose_joints < 0:
            raise ValueError(f"num_pose_blocks={num_pose_blocks} must be at least 1, pose_joints={pose_joints} 0")
        if pose_joints and not 1 <= joints_after <= min(places, default=depth):
            raise ValueError(f"joints_after={joints_after} must be in 1..{min(places, default=depth)}, before the mask")
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

    def _run(
        self, x: Tensor, pose: Tensor | None, take: Sequence[int] = (), last: int | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor | None, tuple[int, int]]:
        """Tokens before the final norm, those after the blocks ``take``, joint logits ``[B, h, w, J]``, the grid."""
        grid = self.patch_embed.dynamic_feat_size(tuple(x.shape[-2:]))
        if pose is not None and tuple(pose.shape) != (x.shape[0], *grid):
            expected = (x.shape[0], *grid)
            raise ValueError(f"pose has the shape {tuple(pose.shape)}; for this picture it must be {expected}")
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        count = self.num_prefix_tokens
        run = checkpoint if self.grad_checkpointing and not torch.jit.is_scripting() else _call
        mask = None if pose is None else pose.flatten(1)[..., None]
        kept, joints = [], None
        for index, block in enumerate(self.blocks if last is None else self.blocks[: last + 1]):
            x = run(block, x)
            if self.joint_head is not None and index + 1 == self.joints_after:
                joints = self.joint_head(x[:, count:])
                if mask is None:
                    mask = joints.detach().sigmoid().amax(2, keepdim=True)
            if mask is not None and index + 1 in self.paab:
                prefix, patches = run(block.pose_blocks, x[:, :count], x[:, count:, None], mask)
                x = torch.cat([prefix, patches[:, :, 0]], 1)
            if index in take:
                kept.append(x)
        return x, kept, None if joints is None else joints.unflatten(1, grid), grid

    def forward_features(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        """Normed tokens ``[B, prefix + N, C]`` of pictures ``[B, in_chans, H, W]``."""
        return self.norm(self._run(x, pose)[0])

    def forward(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        """Logits ``[B, num_classes]``; see the class for ``pose``."""
        return self.forward_head(self.forward_features(x, pose))

    def forward_joints(self, x: Tensor, pose: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits, and those of each joint in each patch, ``[B, h, w, joints]``, to train with `joint_loss`.

        Raises:
            ValueError: the model has no joint head.
        """
        if self.joint_head is None:
            raise ValueError("pose_joints=0: the model has no joint head")
        tokens, _, joints, _ = self._run(x, pose)
        return self.forward_head(self.norm(tokens)), joints

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
        """Maps ``[B, C, h, w]`` after chosen blocks; arguments as timm has them, and ``pose``."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={str(output_fmt)!r} must be 'NCHW' or 'NLC'")
        take, highest = feature_take_indices(len(self.blocks), indices)
        tokens, kept, _, grid = self._run(x, pose, take, highest if stop_early else None)
        kept = [self.norm(value) for value in kept] if norm else kept
        count = self.num_prefix_tokens
        maps = [value[:, count:] for value in kept]
        if output_fmt == "NCHW":
            maps = [value.transpose(1, 2).unflatten(2, grid).contiguous() for value in maps]
        if return_prefix_tokens and count:
            maps = list(zip(maps, (value[:, :count] for value in kept), strict=True))
        return maps if intermediates_only else (self.norm(tokens), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the blocks in ``indices`` do not need; returns the indices counted from the first block."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.paab = tuple(place for place in self.paab if place <= len(self.blocks))
        if not self.paab:
            self.joint_head = None
        return take

    def convert_official(self, state_dict: dict[str, Any]) -> Conversion:
        """A checkpoint of this model, or of its base, whose pose blocks then keep their own values."""
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
                conversion.missing[name] = "the checkpoint has no such pose block; it keeps its own values"
        return conversion


class PoseFeatures(FeatureGetterNet):
    """timm's wrapper of ``features_only=True``, whose call takes a mask too: ``net(x, pose=mask)``."""

    def forward(self, x: Tensor, pose: Tensor | None = None) -> list[Tensor]:
        """The maps of the chosen blocks."""
        return self.model.forward_intermediates(
            x, self.out_indices, norm=self.norm, output_fmt=self.output_fmt, intermediates_only=True, pose=pose
        )


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
default_cfgs = generate_default_cfgs({"pose_vit": _cfg("any"), **{name: _cfg(base) for name, base in NAMED.items()}})


def _create(pretrained: bool, base: str, **kwargs: Any) -> nn.Module:
    kwargs.pop("pretrained_cfg", None)  # of this model, which has no weights of its own: those of the base serve
    own = ("paab", "num_pose_blocks", "pose_joints", "joints_after")
    options = {name: kwargs.pop(name) for name in own if name in kwargs}
    features, indices = kwargs.pop("features_only", False), kwargs.pop("out_indices", 3)
    norm = kwargs.pop("feature_norm", False)
    weights = dict(kwargs.pop("pretrained_cfg_overlay", None) or {}).get("state_dict")
    if not timm.is_model(base.split(".")[0]):
        raise ValueError(f"base={base!r} is not known to timm")
    common = {"dynamic_img_size": True, "dynamic_img_pad": True, **kwargs}
    try:
        vit = timm.create_model(base, pretrained=pretrained and weights is None, **common)
    except TypeError as error:
        if "dynamic_img" not in str(error):
            raise
        raise ValueError(f"base={base!r} is not a VisionTransformer of timm") from error
    dd = {name: kwargs[name] for name in ("device", "dtype") if name in kwargs}
    model = PoseVisionTransformer.from_vit(vit, **options, **dd)
    if pretrained and weights is not None:
        load_official(model, weights)
    return PoseFeatures(model, indices, norm=norm) if features else model


@register_model
def pose_vit(pretrained: bool = False, base: str = "vit_small_patch16_224", **kwargs: Any) -> nn.Module:
    """Any `VisionTransformer` of timm by its name, ``base``, with pose-aware attention; see `PoseVisionTransformer`."""
    return _create(pretrained, base, **kwargs)


@register_model
def pose_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-Ti/16 with a pose-aware attention block after its last block."""
    return _create(pretrained, NAMED["pose_vit_tiny_patch16_224"], **kwargs)


@register_model
def pose_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-S/16 with a pose-aware attention block after its last block."""
    return _create(pretrained, NAMED["pose_vit_small_patch16_224"], **kwargs)


@register_model
def pose_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-B/16 with a pose-aware attention block after its last block."""
    return _create(pretrained, NAMED["pose_vit_base_patch16_224"], **kwargs)
