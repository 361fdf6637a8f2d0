"""Spatial-aware token (SAT): weakly supervised localization with a vision transformer.

Wu et al., "Spatial-Aware Token for Weakly Supervised Object Localization" (ICCV 2023, arXiv 2303.10438).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from visionattn.backbones import LoadReport
from visionattn.backbones._conversion import Conversion, backbone_tensors
from visionattn.backbones._download import create_model
from visionattn.errors import CheckpointError
from visionattn.heads.localization.batch_mean import batch_mean
from visionattn.io.weights import check_finite
from visionattn.kernels.transforms import full_precision

__all__ = ["SpatialAwareToken", "SpatialAwareTokenOutput", "create_sat", "spatially_aware_attention"]


class SpatialAwareTokenOutput(NamedTuple):
    """Output of `SpatialAwareToken` for images of ``h x w`` patches and a transformer with P prefix tokens.

    Attributes:
        logits: ``[B, classes]``, the spatial mean of ``class_maps``.
        maps: ``[B, 1, h, w]`` in [0, 1], the localization map: the mean of ``masks`` over the blocks.
        class_maps: ``[B, classes, h, w]``, the contribution of each patch to the logits.
        masks: for each spatially aware block ``[B, P + h * w + 1]`` in [0, 1], in token order.
        prefix: ``[B, P, C]``, the normalized class (and register) tokens.
        location: ``[B, C]``, the normalized spatial token.
    """

    logits: Tensor
    maps: Tensor
    class_maps: Tensor
    masks: tuple[Tensor, ...]
    prefix: Tensor
    location: Tensor


def spatially_aware_attention(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Self-attention whose keys are masked by the attention of the spatial token (section 3.2).

    The mask is the sigmoid of the spatial token's attention logits, averaged over the heads. The attention weights of
    all queries are multiplied by it per key, without renormalization. This is equivalent to masking the values, which
    allows PyTorch's fused attention.

    Args:
        attention: timm attention module whose weights are used.
        x: ``[B, N, C]``, with the spatial token last.

    Returns:
        Output ``[B, N, C]`` and mask ``[B, N]``, the latter in float32 or float64.
    """
    B, N, _ = x.shape
    gate = getattr(attention, "gate", None)
    q, k, v = attention.qkv(x).reshape(B, N, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    wide = torch.promote_types(q.dtype, torch.float32)
    with full_precision(x.device.type):
        logits = (k.to(wide) @ (q[:, :, -1].to(wide) * attention.scale).unsqueeze(-1)).squeeze(-1)
        mask = logits.mean(1).sigmoid()
    out = F.scaled_dot_product_attention(
        q,
        k,
        v * mask[:, None, :, None].to(v.dtype),
        dropout_p=attention.attn_drop.p if attention.training else 0.0,
        scale=attention.scale,
    )
    out = attention.norm(out.transpose(1, 2).reshape(B, N, -1))
    if gate is not None:
        out = out * gate(x).sigmoid()
    return attention.proj_drop(attention.proj(out)), mask


class SpatialAwareToken(nn.Module):
    """Vision transformer with a spatial token that learns object locations from image labels.

    In the last blocks, the attention of the spatial token masks the patches for all tokens; the classification loss
    trains it through that mask. Two further losses keep the mean masked area near a target and the masks near 0 or 1.

    Args:
        vit: a timm ``VisionTransformer`` with standard blocks and without a classifier, see `create_sat`.
        num_classes: number of classes, at least 1.
        aware_blocks: number of final blocks that use the mask; 3 in the paper.
        area: mean fraction of the image area that objects cover; 0.25 for CUB and 0.35 for ImageNet in the paper.
        sync_area: in distributed training, whether to average the area over all processes instead of over the local
            images as in the paper.

    Raises:
        ValueError: if the transformer is not supported, or a number is out of range.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        num_classes: int,
        *,
        aware_blocks: int = 3,
        area: float = 0.25,
        sync_area: bool = False,
    ) -> None:
        super().__init__()
        _check(vit, num_classes, aware_blocks, area)
        self.vit, self.aware_blocks, self.area, self.sync_area = vit, aware_blocks, area, sync_area
        self.num_classes, width = num_classes, vit.embed_dim
        self.loc_token = nn.Parameter(torch.zeros(1, 1, width))
        self.loc_embed = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.loc_token, std=0.02)
        nn.init.trunc_normal_(self.loc_embed, std=0.02)
        self.head = nn.Conv2d(width, num_classes, 3, padding=1)
        self.register_buffer("smoothing", _smoothing())

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: tokens and position embeddings."""
        return {"loc_token", "loc_embed"} | {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def forward(self, x: Tensor) -> SpatialAwareTokenOutput:
        """Compute logits and maps of images ``[B, in_chans, H, W]``."""
        vit = self.vit
        x = vit.patch_embed(x)
        grid = x.shape[1:3] if x.ndim == 4 else vit.patch_embed.grid_size
        x = vit._pos_embed(x)
        location = vit.pos_drop(self.loc_token + self.loc_embed).expand(x.shape[0], -1, -1)
        x = vit.norm_pre(torch.cat([x, location.to(x.dtype)], dim=1))
        plain, aware = vit.blocks[: -self.aware_blocks], vit.blocks[-self.aware_blocks :]
        x = checkpoint_seq(plain, x) if vit.grad_checkpointing and len(plain) else plain(x)
        masks = []
        for block in aware:
            attended, mask = spatially_aware_attention(block.attn, block.norm1(x))
            x = x + block.drop_path1(block.ls1(attended))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
            masks.append(mask)
        x = vit.fc_norm(vit.norm(x))
        count = vit.num_prefix_tokens
        patches = x[:, count:-1].transpose(1, 2).unflatten(2, grid)
        class_maps = self.head(patches)
        maps = torch.stack([mask[:, count:-1] for mask in masks]).mean(0).unflatten(1, grid).unsqueeze(1)
        return SpatialAwareTokenOutput(class_maps.mean((2, 3)), maps, class_maps, tuple(masks), x[:, :count], x[:, -1])

    def loss(self, output: SpatialAwareTokenOutput, labels: Tensor) -> dict[str, Tensor]:
        """Compute the three losses, each with weight 1 as in the paper (section 3.3).

        Args:
            output: return value of `forward`.
            labels: int64 ``[B]``.

        Returns:
            ``loss_cls``, the cross-entropy; ``loss_area``, the absolute difference of the mean of the maps from
            ``area``; ``loss_norm``, the mean of ``m * (1 - m)`` over the smoothed maps m.
        """
        smooth = F.conv2d(output.maps, self.smoothing.to(output.maps.dtype), padding=1)
        return {
            "loss_cls": F.cross_entropy(output.logits.float(), labels),
            "loss_area": (batch_mean(output.maps.mean(), self.sync_area) - self.area).abs(),
            "loss_norm": (smooth * (1 - smooth)).mean(),
        }

    def convert_official(self, state_dict: Mapping[str, Any]) -> Conversion:
        """Convert a checkpoint of the authors, or of a plain ViT or DeiT, to this model's names."""
        conversion = backbone_tensors(state_dict)
        given, own = conversion.state_dict, self.state_dict()
        plain = "loc_token" not in given
        for name, value in list(given.items()):
            if name.startswith(("head_dist.", "dist_token")) and f"vit.{name}" not in own:
                conversion.drop(name, "distillation token, which the transformer does not have")
            elif name.startswith("head.") and (plain or value.shape[0] != self.num_classes):
                conversion.drop(name, f"classifier of another model, of shape {tuple(value.shape)}")
            elif name == "weight":
                conversion.rename(name, "smoothing")
            elif not name.startswith(("head.", "loc_")):
                conversion.rename(name, f"vit.{name}")
        position, present = given.get("vit.pos_embed"), own.get("vit.pos_embed")
        if position is not None and present is not None and position.shape != present.shape:
            given["vit.pos_embed"] = self._positions(position)
            conversion.interpolated["vit.pos_embed"] = f"from {position.shape[1]} positions"
        return conversion

    def load_official(self, state_dict: Mapping[str, Any]) -> LoadReport:
        """Load a checkpoint of the authors, or of a plain ViT or DeiT for training.

        Position embeddings are interpolated if the number of patches differs. Parameters that a plain transformer does
        not have (spatial token, classifier) keep their values, as does a classifier with another number of classes.

        Raises:
            CheckpointError: if the checkpoint does not match. The model is then unchanged.
        """
        conversion = self.convert_official(state_dict)
        given, own = conversion.state_dict, self.state_dict()
        plain = "loc_token" not in given
        missing = {
            name: "not in the checkpoint; the initial value is kept"
            for name in own
            if name not in given and (name.startswith("head.") or (plain and not name.startswith("vit.")))
        }
        problems = [f"{name} is missing" for name in own if name not in given and name not in missing]
        problems += [f"{name} is unknown" for name in given if name not in own]
        problems += [
            f"{name} has shape {tuple(value.shape)} instead of {tuple(own[name].shape)}"
            for name, value in given.items()
            if name in own and value.shape != own[name].shape
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise CheckpointError(f"the checkpoint does not match SpatialAwareToken: {'; '.join(problems[:3])}{more}")
        check_finite(given, own=own, names={new: old for old, new in conversion.renamed.items()})
        self.load_state_dict(given, strict=False)
        return LoadReport(tuple(given), conversion.renamed, conversion.interpolated, conversion.dropped, missing)

    def _positions(self, value: Tensor) -> Tensor:
        prefix = 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens
        side = round((value.shape[1] - prefix) ** 0.5)
        if value.ndim != 3 or side * side + prefix != value.shape[1]:
            return value  # reported as a shape mismatch by load_official
        return resample_abs_pos_embed(value, self.vit.patch_embed.grid_size, (side, side), num_prefix_tokens=prefix)


def create_sat(model_name: str, num_classes: int, *, pretrained: bool = False, **kwargs: Any) -> SpatialAwareToken:
    """Create a `SpatialAwareToken` on a timm vision transformer, for images of any size.

    Args:
        model_name: timm model name, such as ``"deit_small_patch16_224"``, which the paper uses.
        num_classes: number of classes, at least 1.
        pretrained: whether timm downloads pretrained weights of the transformer.
        **kwargs: ``aware_blocks``, ``area`` and ``sync_area`` of `SpatialAwareToken`; the others are passed to
            ``timm.create_model``, such as ``drop_path_rate=0.1`` or ``img_size=(128, 192)``.

    Raises:
        ValueError: if the model is not a timm ``VisionTransformer``, or an argument is invalid.
    """
    own = {key: kwargs.pop(key) for key in ("aware_blocks", "area", "sync_area") if key in kwargs}
    options = {"dynamic_img_size": True, "dynamic_img_pad": True, "num_classes": 0, **kwargs}
    try:
        vit = create_model(model_name, pretrained, **options)
    except TypeError as error:
        if "dynamic_img" not in str(error):
            raise
        raise ValueError(f"`model_name` must be a timm VisionTransformer, got {model_name!r}") from error
    return SpatialAwareToken(vit, num_classes, **own)


def _check(vit: nn.Module, num_classes: int, aware_blocks: int, area: float) -> None:
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"`vit` must be a timm VisionTransformer, got {type(vit).__name__}")
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1, got {num_classes}")
    if not 1 <= aware_blocks <= len(vit.blocks):
        raise ValueError(f"`aware_blocks` must be in 1..{len(vit.blocks)}, the number of blocks, got {aware_blocks}")
    if not 0 < area < 1:
        raise ValueError(f"`area` must be between 0 and 1, got {area}")
    for block in vit.blocks[-aware_blocks:]:
        if type(block) is not Block or not isinstance(block.attn, Attention):
            raise ValueError(f"`vit` must have timm blocks of type Block, got {type(block).__name__}")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise ValueError("`vit` must have `patch_drop_rate` 0, since the maps need all patches")


def _smoothing() -> Tensor:
    """Fixed 3x3 kernel ``[1, 1, 3, 3]``: square roots of the mass of a standard normal in 3x3 equal cells."""
    edges = torch.linspace(-6 - 13 / 6, 6 + 13 / 6, 4, dtype=torch.float64)
    mass = torch.special.ndtr(edges).diff()
    kernel = torch.outer(mass, mass).sqrt()
    return (kernel / kernel.sum()).float()[None, None]
