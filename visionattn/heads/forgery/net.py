"""Forgery localization on any backbone, with the noise branch and head of NFA-ViT."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.heads.forgery.branches import STRIDES, NFABlock, NoiseBranch, NoiseExtractor
from visionattn.heads.forgery.heads import ForgeryHead, ForgeryOutput, FusionHead, forgery_losses
from visionattn.heads.forgery.matches import SelfMatch
from visionattn.heads.forgery.noise import HighPassResidual, NoiseFeatures, NoiseStatistics
from visionattn.kernels.exporting import extend_to_multiple

__all__ = ["ForgeryNet"]

EXTRACTORS = ("features", "statistics", "highpass", "dncnn")
SMALL_BRANCH = dict(dims=(24, 48, 64, 96), depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 4), mlp_ratio=2.0)


def _either(a: Tensor, b: Tensor) -> Tensor:
    """Logits of the probability that at least one of two independent events occurs, from their logits, in float32."""
    a = a.float()
    return torch.logaddexp(torch.logaddexp(a, b), a + b)


class ForgeryNet(nn.Module):
    """Any backbone combined with the components of NFA-ViT: noise branch, noise-guided attention and fusion head.

    Each feature map of stride 4, 8, 16 or 32 passes through one block that attends to the keys selected by the noise
    branch; image and noise features are then fused. Without a noise branch, this is a segmentation head on the
    backbone.

    Args:
        backbone: module that returns a list of feature maps, such as ``timm.create_model(name, features_only=True)``.
        channels: channels of each map, highest resolution first.
        strides: stride of each map.
        noise: noise extractor: ``"statistics"`` (fixed local statistics of noise, sharpness and compression, which
            converge fastest), ``"features"`` (the statistics and a small network on full-resolution residuals, which
            trains longer to a higher accuracy), ``"highpass"`` (fixed filters and a few learned maps), ``"dncnn"``
            (the extractor of NFA-ViT), or None for no noise branch.
        noise_branch: arguments of `NoiseBranch`. Defaults to a small one.
        guided: whether to add noise-guided blocks on the feature maps.
        fuse_noise: whether the head also receives the noise features.
        embed_dim: channels of the head.
        label_from_mask, compare_regions: see `ForgeryHead`.
        image_scale: scale of the image for the backbone; below 1 it reduces the cost. The noise branch always receives
            the full resolution, because resizing removes noise.
        residual_maps: number of learned maps of the extractor; may be 0 for ``"statistics"`` and ``"highpass"``.
        matches: whether the noise branch also receives the maps of `SelfMatch`, for copied and moved regions; needs an
            extractor of stride 4, ``"statistics"`` or ``"features"``.
        aux: whether the noise branch predicts an auxiliary mask in training.
        copies: whether predictions also mark regions that occur twice in the image, as found by `SelfMatch.copies`
            without any learned parameter: the probability is that of the network or this patch matching being
            right, as if they were independent. It has no effect in training.

    Raises:
        ValueError: if an argument is out of range.
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
        matches: bool = False,
        aux: bool = True,
        copies: bool = False,
    ) -> None:
        super().__init__()
        if matches and noise not in ("statistics", "features"):
            raise ValueError(f"`matches` needs `noise` to be 'statistics' or 'features', got {noise!r}")
        if noise is not None and noise not in EXTRACTORS:
            raise ValueError(f"`noise` must be None or one of {', '.join(EXTRACTORS)}, got {noise!r}")
        if len(channels) != len(strides) or not channels:
            raise ValueError(
                f"`channels` and `strides` must have one number for each map, got {list(channels)} and {list(strides)}"
            )
        if not 0 < image_scale <= 1 or any(round(stride / image_scale) * image_scale != stride for stride in strides):
            raise ValueError(f"`image_scale` must be 1, 1/2, 1/4, ..., got {image_scale}")
        strides = [round(stride / image_scale) for stride in strides]
        self.backbone, self.image_scale = backbone, image_scale
        self.matches = SelfMatch() if matches else None
        self.copies = SelfMatch() if copies else None
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
                extractors = {"features": NoiseFeatures, "statistics": NoiseStatistics, "highpass": HighPassResidual}
                extractor = extractors[noise](residual_maps)
                self.noise_extractor = extractor
                given = dict(
                    in_chans=extractor.out_chans + (SelfMatch.out_chans if matches else 0), in_stride=extractor.stride
                )
            self.noise_backbone = NoiseBranch(**given, **options)
            if guided:
                for index, (dim, stride) in enumerate(zip(channels, strides, strict=True)):
                    if stride in self._level:
                        self.guided[str(index)] = self._guided_block(dim, stride, options)
            if aux:
                self.aux_decoder = FusionHead(options["dims"], 32, gamma_init=1.0)
            if self.fuse_noise:
                # The first map determines the resolution of the fusion; the last one is the input of the label head.
                fused = [*options["dims"], *channels]
        self.head = ForgeryHead(fused, embed_dim, label_from_mask, compare_regions=compare_regions)
        if self.noise_backbone is not None and not (aux or self.fuse_noise):
            self.noise_backbone.requires_grad_(False)  # its masks do not pass gradients
            self.noise_extractor.requires_grad_(False)

    def _guided_block(self, dim: int, stride: int, options: Mapping[str, Any]) -> NFABlock:
        level = self._level[stride]
        heads = options["num_heads"][level]
        if dim % heads:
            heads = next(h for h in range(heads, 0, -1) if dim % h == 0)
        return NFABlock(dim, heads, (8, 4, 2, 1)[level], "guided", mlp_ratio=2.0)

    def forward(self, image: Tensor, noise_masks: Sequence[Tensor] | None = None) -> ForgeryOutput:
        """Predict mask and label.

        Args:
            image: ``[B, 3, H, W]`` of any size, normalized with the ImageNet mean and standard deviation.
            noise_masks: four masks ``[B, heads_i or 1, H_i * W_i, M_i]`` that replace those of the noise branch.
        """
        given, size = image, (image.shape[2], image.shape[3])
        image = extend_to_multiple(image, self.multiple)
        padded = (image.shape[2], image.shape[3])
        content = image
        if self.image_scale != 1:
            content = F.avg_pool2d(image, round(1 / self.image_scale))
        features = list(self.backbone(content))
        noise_features: list[Tensor] = []
        if self.noise_backbone is not None:
            noise = self.noise_extractor(image)
            if self.matches is not None:
                noise = torch.cat([noise, self.matches(image).to(noise.dtype)], 1)
            noise_features, own = self.noise_backbone(noise)
            masks = own if noise_masks is None else noise_masks
            for key, block in self.guided.items():
                features[int(key)] = self._guide(block, features[int(key)], masks[self._level[self.strides[int(key)]]])
        fused = [*noise_features, *features] if self.fuse_noise else features
        output = self.head(fused, padded)
        output.mask_logits = output.mask_logits[..., : size[0], : size[1]]
        if self.aux_decoder is not None and self.training:
            aux = F.interpolate(self.aux_decoder(noise_features), size=padded, mode="bilinear", align_corners=False)
            output.aux_logits = aux[..., : size[0], : size[1]]
        if self.copies is not None and not self.training:
            pixels, label = self.copies.copies(given)
            output.mask_logits = _either(output.mask_logits, pixels)
            output.label_logits = _either(output.label_logits, label)
        return output

    @staticmethod
    def _guide(block: NFABlock, feature: Tensor, mask: Tensor) -> Tensor:
        if mask.shape[1] not in (1, block.attn.num_heads):
            mask = mask[:, :1]
        tokens = block(feature.flatten(2).transpose(1, 2), (feature.shape[2], feature.shape[3]), mask)
        return tokens.transpose(1, 2).reshape(feature.shape)

    def losses(self, output: ForgeryOutput, mask: Tensor, label: Tensor | None = None, **options) -> dict[str, Tensor]:
        """Compute the losses; see `visionattn.heads.forgery.heads.forgery_losses`."""
        return forgery_losses(output, mask, label, **options)
