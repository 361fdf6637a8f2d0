"""The complete NFA-ViT model (arXiv 2504.11922): noise extractor, noise and image branches, mask and label heads.

By default, the model fixes defects of the published code; see `NFAViT`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.backbones._weights import LoadReport
from visionattn.errors import CheckpointError
from visionattn.heads.forgery.branches import ImageBranch, NoiseBranch, NoiseExtractor
from visionattn.heads.forgery.heads import ForgeryOutput, FusionHead, forgery_losses, label_decoder
from visionattn.io.weights import check_finite, check_tensor, entry_of

__all__ = ["NFAViT", "NFA_ViT"]

TRAIN_NOISE = ("aux", "straight_through", "none")
AUX_DIM = 64


class NFAViT(nn.Module):
    """Forgery localization and detection with noise-guided attention.

    ``official=True`` reproduces the published model exactly: ``train_noise="none"``, ``noise_block="published"``,
    ``noise_eval=False`` and the official parameter names, with which released checkpoints load. The defaults fix three
    defects of its training:

    - In the published code, the masks are detached and the noise features are unused, so the noise branch gets no
      gradient. ``train_noise="aux"`` trains it with an auxiliary mask; ``"straight_through"`` passes the gradient of
      the image branch through the masks.
    - In the published code, a noise block replaces its input by the attention output and doubles it.
      ``noise_block="prenorm"`` is the standard residual block.
    - In the published code, the batch norm statistics of the frozen extractor drift in training. ``noise_eval=True``
      keeps the extractor in eval mode.

    Args:
        official: use the published values of the three arguments below unless they are given.
        train_noise: ``"aux"``, ``"straight_through"`` or ``"none"``. Defaults to ``"aux"``.
        noise_block: ``"prenorm"`` or ``"published"``. Defaults to ``"prenorm"``.
        noise_eval: whether the extractor stays in eval mode. Defaults to True.
        freeze_extractor: whether the extractor is frozen. Set False without pretrained weights.
        noise_dims, noise_depths, image_dims, image_depths, num_heads, sr_ratios: see `NoiseBranch` and `ImageBranch`.
        embed_dim: channels of the fusion head.
        keep_ratio: fraction of the keys that the noise masks keep.
        sparse_rate: number of groups per axis of the fixed sparse attention.
        drop_path_rate: stochastic depth probability of the last block of each branch.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        official: bool = False,
        train_noise: str | None = None,
        noise_block: str | None = None,
        noise_eval: bool | None = None,
        freeze_extractor: bool = True,
        noise_dims: Sequence[int] = (32, 64, 160, 256),
        noise_depths: Sequence[int] = (2, 2, 2, 2),
        image_dims: Sequence[int] = (64, 128, 320, 512),
        image_depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        embed_dim: int = 512,
        keep_ratio: float = 0.25,
        sparse_rate: int = 2,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        train_noise = train_noise or ("none" if official else "aux")
        noise_block = noise_block or ("published" if official else "prenorm")
        if train_noise not in TRAIN_NOISE:
            raise ValueError(f"`train_noise` must be one of {', '.join(TRAIN_NOISE)}, got {train_noise!r}")
        self.official, self.train_noise = official, train_noise
        self.noise_eval = (not official) if noise_eval is None else noise_eval
        common = dict(num_heads=num_heads, sr_ratios=sr_ratios, drop_path_rate=drop_path_rate)
        self.noise_extractor = NoiseExtractor()
        self.noise_backbone = NoiseBranch(
            1, noise_dims, noise_depths, keep_ratio=keep_ratio, block=noise_block,
            differentiable=train_noise == "straight_through", **common,
        )  # fmt: skip
        self.image_backbone = ImageBranch(3, image_dims, image_depths, sparse_rate=sparse_rate, **common)
        self.seg_decoder = FusionHead(image_dims, embed_dim, official=official)
        self.cls_decoder = label_decoder(image_dims[-1])
        self.aux_decoder = FusionHead(noise_dims, AUX_DIM, gamma_init=1.0) if train_noise == "aux" else None
        self._freeze(freeze_extractor)
        self.train()

    def _freeze(self, freeze_extractor: bool) -> None:
        """Freeze parameters that get no gradient, so that DDP works without ``find_unused_parameters``."""
        if freeze_extractor or self.train_noise == "none":
            self.noise_extractor.requires_grad_(False)
        if self.train_noise == "none":
            self.noise_backbone.requires_grad_(False)
        elif self.noise_backbone.block4[-1].block == "published":
            for stage in range(1, 5):
                for block in getattr(self.noise_backbone, f"block{stage}"):
                    block.norm1.requires_grad_(False)
        if self.train_noise == "straight_through":  # the masks do not depend on layers after the last attention
            last = self.noise_backbone.block4[-1]
            value = last.attn.kv  # the rows for the keys get a gradient
            for module in (last.norm2, last.mlp, last.attn.proj, self.noise_backbone.norm4):
                module.requires_grad_(False)
            value.requires_grad_(True)

    def train(self, mode: bool = True) -> "NFAViT":
        """Set the training mode; the extractor stays in eval mode with ``noise_eval``."""
        super().train(mode)
        if getattr(self, "noise_eval", False):
            self.noise_extractor.eval()
        return self

    def forward(self, image: Tensor, noise_masks: Sequence[Tensor] | None = None) -> ForgeryOutput:
        """Predict mask and label.

        Args:
            image: ``[B, 3, H, W]`` of any size, normalized with the ImageNet mean and standard deviation.
            noise_masks: four masks ``[B, heads_i, H_i * W_i, M_i]`` that replace those of the noise branch. The keys
                that the noise branch selects depend on tie-breaking among probabilities of 0, so comparisons between
                implementations require given masks.
        """
        size = (image.shape[2], image.shape[3])
        noise_features = None
        aux = self.aux_decoder is not None and self.training
        if noise_masks is None or aux:
            noise_features, own = self.noise_backbone(self.noise_extractor(image))
            noise_masks = own if noise_masks is None else noise_masks
        features = self.image_backbone(image, noise_masks)
        mask = F.interpolate(self.seg_decoder(features), size=size, mode="bilinear", align_corners=False)
        label = self.cls_decoder(features[-1])[:, 0]
        output = ForgeryOutput(mask, label)
        if aux:
            coarse = self.aux_decoder(noise_features)
            output.aux_logits = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        return output

    def losses(self, output: ForgeryOutput, mask: Tensor, label: Tensor | None = None, **options) -> dict[str, Tensor]:
        """Compute the losses; see `visionattn.heads.forgery.heads.forgery_losses`."""
        return forgery_losses(output, mask, label, **options)

    def framework_step(self, image: Tensor, mask: Tensor, label: Tensor) -> dict[str, Any]:
        """Run a training step and return the outputs that IMDLBenCo's training loop expects.

        Args:
            image: ``[B, 3, H, W]``.
            mask: ``[B, 1, H, W]``, 1 where forged.
            label: ``[B]``, 1 for forged images.

        Returns:
            ``backward_loss``, ``pred_mask`` ``[B, 1, H, W]``, ``pred_label`` ``[B]``, ``visual_loss`` and
            ``visual_image``.
        """
        output = self(image)
        losses = self.losses(output, mask, label)
        total = sum(losses.values())
        return {
            "backward_loss": total,
            "pred_mask": output.mask,
            "pred_label": output.label,
            "visual_loss": {"predict_loss": total, **losses},
            "visual_image": {"pred_mask": output.mask},
        }

    # weights

    def load_official(self, state_dict: Mapping[str, Any]) -> LoadReport:
        """Load a checkpoint of the official code.

        The noise blocks are switched to ``"published"`` and ``noise_eval`` to False, since the weights were trained
        that way. Parts that the official model lacks (the auxiliary decoder) keep their values.

        Args:
            state_dict: a state dict, or one inside ``{"model": ...}`` or ``{"state_dict": ...}``, with or without the
                prefix ``module.``.

        Returns:
            A report of the loaded parameters and the changed settings.

        Raises:
            CheckpointError: if names or shapes do not match. The model is then unchanged.
        """
        given = _tensors(state_dict)
        own = self.state_dict()
        missing = {k: "not part of the official model" for k in own if k.startswith("aux_decoder.")}
        missing |= {k: "batch counter" for k in own if k.endswith("num_batches_tracked") and k not in given}
        dropped = {k: "unused" for k in given if k in ("seg_decoder.gamma5", "seg_decoder.gamma6") and k not in own}
        problems = [f"{k} is missing" for k in own if k not in given and k not in missing]
        problems += [f"{k} is unknown" for k in given if k not in own and k not in dropped]
        problems += [
            f"{k} has shape {tuple(v.shape)} instead of {tuple(own[k].shape)}"
            for k, v in given.items()
            if k in own and v.shape != own[k].shape
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise CheckpointError(
                f"the checkpoint does not match NFAViT: {'; '.join(problems[:3])}{more}; "
                "NFAViT.from_official(checkpoint) builds the matching model"
            )
        loaded = {k: v for k, v in given.items() if k in own}
        self.load_state_dict({**own, **loaded})
        self._set_noise_block("published")
        self.noise_eval = False  # as the weights were trained
        return LoadReport(
            loaded=tuple(loaded), renamed={}, interpolated={}, dropped=dropped, missing=missing,
            settings={"noise_block": "published", "noise_eval": "False", "train_noise": self.train_noise},
        )  # fmt: skip

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Any], **arguments) -> tuple["NFAViT", LoadReport]:
        """Build the official model of a checkpoint, in eval mode; widths and depths are inferred from its tensors.

        Args:
            state_dict: see `load_official`.
            **arguments: arguments of the class, such as ``num_heads``, which cannot be inferred, or
                ``train_noise="aux"``.

        Returns:
            The model, and the report of `load_official`.

        Raises:
            CheckpointError: if the checkpoint is not of an NFA-ViT.
        """
        given = _tensors(state_dict)
        try:
            found = {
                f"{branch}_{what}": tuple(value(f"{branch}_backbone", stage, given) for stage in range(1, 5))
                for branch in ("noise", "image")
                for what, value in (("dims", _dim), ("depths", _depth))
            }
            found["embed_dim"] = given["seg_decoder.conv_last.weight"].shape[1]
            found["sr_ratios"] = tuple(_reduction("image_backbone", stage, given) for stage in range(1, 5))
        except (KeyError, IndexError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else "a tensor has another number of axes"
            raise CheckpointError(f"the checkpoint is not of an NFA-ViT: {what}") from error
        model = cls(**{"official": True, **found, **arguments})
        return model.eval(), model.load_official(given)

    def load_branches(
        self,
        extractor: Mapping[str, Any] | None = None,
        noise: Mapping[str, Any] | None = None,
        image: Mapping[str, Any] | None = None,
    ) -> LoadReport:
        """Load pretrained parts: Noiseprint's DnCNN, and SegFormer's MiT-b0 and MiT-b2 pretrained on ImageNet.

        As in the official code, the weights of the noise branch's first convolution are averaged over the three input
        channels.

        Args:
            extractor, noise, image: state dicts; None leaves a part unchanged.

        Raises:
            CheckpointError: if the names or shapes of a part do not match.
        """
        loaded, dropped = [], {}
        for name, given in (("noise_extractor", extractor), ("noise_backbone", noise), ("image_backbone", image)):
            if given is None:
                continue
            module = getattr(self, name)
            own = module.state_dict()
            weights = {k.removeprefix("backbone."): v for k, v in _tensors(given).items()}
            dropped |= {f"{name}: {k}": "not a part of the branch" for k in weights if k not in own}
            weights = {k: v for k, v in weights.items() if k in own}
            first = "patch_embed1.proj.weight"
            if name == "noise_backbone" and first in weights and weights[first].shape[1] != own[first].shape[1]:
                weights[first] = weights[first].mean(1, keepdim=True).expand_as(own[first])
            problems = [
                k
                for k, v in own.items()
                if not k.endswith("num_batches_tracked") and (k not in weights or weights[k].shape != v.shape)
            ]
            if problems:
                raise CheckpointError(
                    f"the weights of {name} do not match: {problems[0]} is missing or has another shape "
                    f"({len(problems)} of {len(own)} tensors)"
                )
            module.load_state_dict({**own, **weights})
            loaded += [f"{name}.{k}" for k in weights]
        return LoadReport(loaded=tuple(loaded), renamed={}, interpolated={}, dropped=dropped, missing={})

    def _set_noise_block(self, block: str) -> None:
        for stage in range(1, 5):
            for module in getattr(self.noise_backbone, f"block{stage}"):
                module.block = block
                module.norm1.requires_grad_(block != "published" and self.train_noise != "none")


NFA_ViT = NFAViT
"""Alias with the name used by the official scripts."""


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    given = {k: v for k, v in entry_of(state_dict)[1].items() if isinstance(k, str) and isinstance(v, Tensor)}
    for name, tensor in given.items():
        check_tensor(tensor, name)
    check_finite(given)
    return {k.removeprefix("module."): v for k, v in given.items()}


def _dim(branch: str, stage: int, given: Mapping[str, Tensor]) -> int:
    return given[f"{branch}.norm{stage}.weight"].shape[0]


def _depth(branch: str, stage: int, given: Mapping[str, Tensor]) -> int:
    prefix = f"{branch}.block{stage}."
    numbers = {k.removeprefix(prefix).split(".")[0] for k in given if k.startswith(prefix)}
    if numbers != {str(n) for n in range(len(numbers))}:  # otherwise a single name could request a million blocks
        raise KeyError(f"{prefix}{len(numbers) - 1}")
    return max(1, len(numbers))


def _reduction(branch: str, stage: int, given: Mapping[str, Tensor]) -> int:
    weight = given.get(f"{branch}.block{stage}.0.attn.sr.weight")
    return 1 if weight is None else weight.shape[2]
