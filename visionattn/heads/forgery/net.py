"""Forgery localization on any backbone: feature maps of the picture, a noise branch beside them, the NFA head."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.heads.forgery.branches import STRIDES, NFABlock, NoiseBranch, NoiseExtractor
from visionattn.heads.forgery.heads import ForgeryHead, ForgeryOutput, FusionHead, forgery_losses
from visionattn.heads.forgery.noise_features import NoiseFeatures
from visionattn.heads.forgery.noise_statistics import NoiseStatistics
from visionattn.heads.forgery.residuals import HighPassResidual

__all__ = ["ForgeryNet"]

EXTRACTORS = ("features", "statistics", "highpass", "dncnn")
SMALL_BRANCH = dict(dims=(24, 48, 64, 96), depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 4), mlp_ratio=2.0)


class ForgeryNet(nn.Module):
    """A backbone of any kind with the parts that make NFA-ViT: noise branch, noise-guided attention, fusion.

    Each feature map of the backbone whose stride is 4, 8, 16 or 32 goes through one block that attends to the places
    which the noise branch finds least alike; then image and noise features are fused. Without a noise branch, this is
    a plain segmentation head on the backbone.

    Args:
        backbone: gives a list of maps, such as ``timm.create_model(name, features_only=True)``.
        channels: of each map, the finest first.
        strides: of each map.
        noise: ``"statistics"``, fixed local statistics of noise, sharpness and compression, from which a small branch
            learns soonest; ``"features"``, these and a small network on residuals at full resolution, which takes
            longer and gets further; ``"highpass"``, fixed filters and a few learned maps; ``"dncnn"``, NFA-ViT's
            extractor; or None.
        noise_branch: arguments of `NoiseBranch`; by default a small one.
        guided: noise-guided blocks on the backbone's maps.
        fuse_noise: the head sees the noise features too, not only the masks that they lead to.
        embed_dim: channels of the head.
        label_from_mask, compare_regions: see `ForgeryHead`.
        image_scale: the backbone sees the picture at this scale; below 1 it costs less. The noise branch always sees
            every pixel: resizing takes the noise away.
        residual_maps: learned maps of the extractor; ``"statistics"`` and ``"highpass"`` can do
            without, by 0.
        aux: in training, the noise branch also predicts a mask by itself.

    Shapes: ``[B, 3, H, W]`` of any size, to a `ForgeryOutput`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        noise: str | None = "statistics",
        noise_branch: Mapping[str, Any] | None = None,
        guided: bool = True,
        fuse_noise: bool = True,
        embed_dim: int = 128,
        label_from_mask: bool = True,
        compare_regions: bool = False,
        image_scale: float = 1.0,
        residual_maps: int = 48,
        aux: bool = True,
    ) -> None:
        super().__init__()
        if noise is not None and noise not in EXTRACTORS:
            raise ValueError(f"noise={noise!r} must be one of {EXTRACTORS}, or None")
        if len(channels) != len(strides) or not channels:
            raise ValueError(f"channels={list(channels)} and strides={list(strides)} must be one of each for every map")
        if not 0 < image_scale <= 1 or any(round(stride / image_scale) * image_scale != stride for stride in strides):
            raise ValueError(f"image_scale={image_scale} must be 1 or one half, a quarter, ...")
        strides = [round(stride / image_scale) for stride in strides]
        self.backbone, self.image_scale = backbone, image_scale
        self.multiple = max([*strides, STRIDES[-1]])
        self.noise_extractor = self.noise_backbone = self.aux_decoder = None
        self.guided = nn.ModuleDict()
        self._level = {stride: index for index, stride in enumerate(STRIDES)}
        self.strides, self.fuse_noise = tuple(strides), fuse_noise and noise is not None
        fused = list(channels)
        if noise is not None:
            options = {**SMALL_BRANCH, "drop_path_rate": 0.0, **(noise_branch or {})}
            if noise == "dncnn":
                self.noise_extractor, given = NoiseExtractor(), {}
            else:
                kinds = {"features": NoiseFeatures, "statistics": NoiseStatistics, "highpass": HighPassResidual}
                extractor = kinds[noise](residual_maps)
                self.noise_extractor = extractor
                given = dict(in_chans=extractor.out_chans, in_stride=extractor.stride)
            self.noise_backbone = NoiseBranch(**given, **options)
            if guided:
                for index, (dim, stride) in enumerate(zip(channels, strides, strict=True)):
                    if stride in self._level:
                        self.guided[str(index)] = self._guided_block(dim, stride, options)
            if aux:
                self.aux_decoder = FusionHead(options["dims"], 32, gamma_init=1.0)
            if self.fuse_noise:
                # the finest map leads the fusion; the deepest of the backbone stays last, for the label
                fused = [*options["dims"], *channels]
        self.head = ForgeryHead(fused, embed_dim, label_from_mask, compare_regions=compare_regions)
        if self.noise_backbone is not None and not (aux or self.fuse_noise):
            self.noise_backbone.requires_grad_(False)  # its masks pass no gradient on
            self.noise_extractor.requires_grad_(False)

    def _guided_block(self, dim: int, stride: int, options: Mapping[str, Any]) -> NFABlock:
        level = self._level[stride]
        heads = options["num_heads"][level]
        if dim % heads:
            heads = next(h for h in range(heads, 0, -1) if dim % h == 0)
        return NFABlock(dim, heads, (8, 4, 2, 1)[level], "guided", mlp_ratio=2.0)

    def forward(self, image: Tensor, noise_masks: Sequence[Tensor] | None = None) -> ForgeryOutput:
        """Mask and label of a batch, ``[B, 3, H, W]`` normalised with ImageNet's mean and deviation.

        ``noise_masks``: four masks in place of the noise branch's own, ``[B, heads_i or 1, H_i * W_i, M_i]``.
        """
        size = (image.shape[2], image.shape[3])
        rest = [-side % self.multiple for side in size]
        if any(rest):
            image = F.pad(image, (0, rest[1], 0, rest[0]), mode="replicate")
        padded = (image.shape[2], image.shape[3])
        content = image
        if self.image_scale != 1:
            content = F.avg_pool2d(image, round(1 / self.image_scale))
        features = list(self.backbone(content))
        noise_features: list[Tensor] = []
        if self.noise_backbone is not None:
            noise_features, own = self.noise_backbone(self.noise_extractor(image))
            masks = own if noise_masks is None else noise_masks
            for key, block in self.guided.items():
                features[int(key)] = self._guide(block, features[int(key)], masks[self._level[self.strides[int(key)]]])
        fused = [*noise_features, *features] if self.fuse_noise else features
        output = self.head(fused, padded)
        output.mask_logits = output.mask_logits[..., : size[0], : size[1]]
        if self.aux_decoder is not None and self.training:
            aux = F.interpolate(self.aux_decoder(noise_features), size=padded, mode="bilinear", align_corners=False)
            output.aux_logits = aux[..., : size[0], : size[1]]
        return output

    @staticmethod
    def _guide(block: NFABlock, feature: Tensor, mask: Tensor) -> Tensor:
        if mask.shape[1] not in (1, block.attn.num_heads):
            mask = mask[:, :1]
        tokens = block(feature.flatten(2).transpose(1, 2), (feature.shape[2], feature.shape[3]), mask)
        return tokens.transpose(1, 2).reshape(feature.shape)

    def losses(self, output: ForgeryOutput, mask: Tensor, label: Tensor | None = None, **options) -> dict[str, Tensor]:
        """See `visionattn.heads.forgery.heads.forgery_losses`."""
        return forgery_losses(output, mask, label, **options)
