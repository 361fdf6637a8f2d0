"""Spatial-aware token: localization from image labels with a vision transformer.

Wu et al., "Spatial-Aware Token for Weakly Supervised Object Localization" (ICCV 2023, arXiv 2303.10438).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from visionattn.backbones import LoadReport
from visionattn.backbones._conversion import Conversion, backbone_tensors
from visionattn.errors import CheckpointError
from visionattn.heads.localization.batch_mean import batch_mean

__all__ = ["SpatialAwareToken", "SpatialAwareTokenOutput", "create_sat", "spatially_aware_attention"]


class SpatialAwareTokenOutput(NamedTuple):
    """What `SpatialAwareToken` gives for images of ``h x w`` patches and a transformer of P prefix tokens.

    Attributes:
        logits: ``[B, classes]``, the mean of `class_maps`.
        maps: ``[B, 1, h, w]`` in 0..1, how likely each patch belongs to the object: the mean of the masks.
        class_maps: ``[B, classes, h, w]``, each patch's part in the logits.
        masks: of each spatially aware block ``[B, P + h * w + 1]`` in 0..1, in the order of the tokens.
        prefix: ``[B, P, C]``, the normed class (and register) tokens.
        location: ``[B, C]``, the normed spatial token.
    """

    logits: Tensor
    maps: Tensor
    class_maps: Tensor
    masks: tuple[Tensor, ...]
    prefix: Tensor
    location: Tensor


def spatially_aware_attention(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Attention in which the last token says how much each token may give to all others (section 3.2).

    Its logits, meant over the heads, become a mask by a sigmoid. The attention weights of all queries are
    multiplied by it, key by key, and not normalized again. That equals masking the values, which leaves the
    attention itself to PyTorch's fused kernels.

    Args:
        attention: timm's, whose weights are used.
        x: ``[B, N, C]``, the spatial token last.

    Returns:
        ``[B, N, C]`` and the mask ``[B, N]`` in float32 at least.
    """
    B, N, _ = x.shape
    gate = getattr(attention, "gate", None)
    q, k, v = attention.qkv(x).reshape(B, N, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
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
    """A vision transformer with one more token, which learns from image labels where the object is.

    The token's attention in the last blocks masks what all tokens see of each patch; the classification loss
    reaches it through that mask. Two more losses keep the masked area near a given share and the masks near 0 or 1.

    Args:
        vit: a timm `VisionTransformer` with ordinary blocks and without a classifier, see `create_sat`.
        num_classes: at least 1.
        aware_blocks: how many of the last blocks use the mask; 3 as published.
        area: share of the pictures that objects cover on average: 0.25 as published for CUB, 0.35 for ImageNet.
        sync_area: under distributed training, take the mean area over all processes and not, as published, over
            each process's own images.

    Shapes: images ``[B, in_chans, H, W]`` of any size that the transformer takes; see `SpatialAwareTokenOutput`.

    Raises:
        ValueError: a transformer or number that does not do.
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
        """Names of parameters that are positions or tokens."""
        return {"loc_token", "loc_embed"} | {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def forward(self, x: Tensor) -> SpatialAwareTokenOutput:
        """Logits and maps of images; see the class."""
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
        """The three losses, each of weight 1 as published (section 3.3).

        Args:
            output: of `forward`.
            labels: int64 ``[B]``.

        Returns:
            ``loss_cls``, cross-entropy; ``loss_area``, how far the batch's mean of the maps is from `area`;
            ``loss_norm``, the mean of ``m (1 - m)`` of the smoothed maps m.
        """
        smooth = F.conv2d(output.maps, self.smoothing.to(output.maps.dtype), padding=1)
        return {
            "loss_cls": F.cross_entropy(output.logits.float(), labels),
            "loss_area": (batch_mean(output.maps.mean(), self.sync_area) - self.area).abs(),
            "loss_norm": (smooth * (1 - smooth)).mean(),
        }

    def convert_official(self, state_dict: Mapping[str, Any]) -> Conversion:
        """A checkpoint of the authors, or one of a plain ViT or DeiT, under this model's names."""
        conversion = backbone_tensors(state_dict)
        given, own = conversion.state_dict, self.state_dict()
        plain = "loc_token" not in given
        for name, value in list(given.items()):
            if name.startswith(("head_dist.", "dist_token")) and f"vit.{name}" not in own:
                conversion.drop(name, "of distillation, which the transformer has not")
            elif name.startswith("head.") and (plain or value.shape[0] != self.num_classes):
                conversion.drop(name, f"another classifier, of shape {tuple(value.shape)}")
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
        """Load a checkpoint of the authors, or one of a plain ViT or DeiT to start from.

        Positions are interpolated where the number of patches differs. A plain transformer has no spatial token
        and no such classifier; those keep their values, as does a classifier for another number of classes.

        Raises:
            CheckpointError: the checkpoint does not fit. The model is then unchanged.
        """
        conversion = self.convert_official(state_dict)
        given, own = conversion.state_dict, self.state_dict()
        plain = "loc_token" not in given
        missing = {
            name: "the checkpoint has none that fits; it keeps its own value"
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
            raise CheckpointError(f"the checkpoint does not fit SpatialAwareToken: {'; '.join(problems[:3])}{more}")
        self.load_state_dict(given, strict=False)
        return LoadReport(tuple(given), conversion.renamed, conversion.interpolated, conversion.dropped, missing)

    def _positions(self, value: Tensor) -> Tensor:
        prefix = 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens
        side = round((value.shape[1] - prefix) ** 0.5)
        if value.ndim != 3 or side * side + prefix != value.shape[1]:
            return value  # reported as a wrong shape
        return resample_abs_pos_embed(value, self.vit.patch_embed.grid_size, (side, side), num_prefix_tokens=prefix)


def create_sat(model_name: str, num_classes: int, *, pretrained: bool = False, **kwargs: Any) -> SpatialAwareToken:
    """A `SpatialAwareToken` on a vision transformer that timm knows by name, for pictures of any size.

    Args:
        model_name: such as ``"deit_small_patch16_224"``, the published one.
        num_classes: at least 1.
        pretrained: let timm fetch the transformer's weights.
        **kwargs: ``aware_blocks``, ``area`` and ``sync_area`` of `SpatialAwareToken`; the rest goes to
            ``timm.create_model``, such as ``drop_path_rate=0.1`` or ``img_size=(128, 192)``.

    Raises:
        ValueError: the name is not one of a `VisionTransformer`, or an argument does not do.
    """
    own = {key: kwargs.pop(key) for key in ("aware_blocks", "area", "sync_area") if key in kwargs}
    options = {"dynamic_img_size": True, "dynamic_img_pad": True, "num_classes": 0, **kwargs}
    try:
        vit = timm.create_model(model_name, pretrained=pretrained, **options)
    except TypeError as error:
        if "dynamic_img" not in str(error):
            raise
        raise ValueError(f"model_name={model_name!r} is not a VisionTransformer of timm") from error
    return SpatialAwareToken(vit, num_classes, **own)


def _check(vit: nn.Module, num_classes: int, aware_blocks: int, area: float) -> None:
    if not isinstance(vit, VisionTransformer):
        raise ValueError(f"vit is a {type(vit).__name__}; it must be a VisionTransformer of timm")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    if not 1 <= aware_blocks <= len(vit.blocks):
        raise ValueError(f"aware_blocks={aware_blocks} must be in 1..{len(vit.blocks)}, the blocks of the transformer")
    if not 0 < area < 1:
        raise ValueError(f"area={area} must be in 0..1")
    for block in vit.blocks[-aware_blocks:]:
        if type(block) is not Block or not isinstance(block.attn, Attention):
            raise ValueError(f"vit has blocks of type {type(block).__name__}; the ordinary Block of timm is needed")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise ValueError("vit drops patches (patch_drop_rate), so that no map can be made of them")


def _smoothing() -> Tensor:
    """Fixed 3x3 kernel ``[1, 1, 3, 3]``: square roots of a standard normal's mass in 3x3 equal cells."""
    edges = torch.linspace(-6 - 13 / 6, 6 + 13 / 6, 4, dtype=torch.float64)
    mass = torch.special.ndtr(edges).diff()
    kernel = torch.outer(mass, mass).sqrt()
    return (kernel / kernel.sum()).float()[None, None]
