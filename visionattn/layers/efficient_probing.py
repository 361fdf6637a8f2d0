"""Efficient probing: attentive pooling with few parameters, for the evaluation of frozen backbones.

Psomas et al., "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency" (arXiv 2506.10178).
Parameter names are the published ones.
"""

import torch
from torch import Tensor, nn

__all__ = ["EfficientProbe", "EfficientProbing"]


class EfficientProbing(nn.Module):
    """Attentive pooling with learned queries, ``[B, N, C]`` or ``[B, C, H, W]`` to ``[B, C / d_out]``.

    Keys are the tokens without projection. Values are a linear projection whose channels are split into one chunk per
    query; each chunk is pooled with the attention of its query.

    Args:
        dim: channels of the tokens.
        num_queries: number of queries and attention maps; divides ``dim / d_out``.
        d_out: reduction factor of the channels; divides `dim`.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range or the input has the wrong shape.
    """

    def __init__(
        self,
        dim: int,
        num_queries: int = 32,
        d_out: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_out < 1 or dim % d_out:
            raise ValueError(f"`d_out` must be at least 1 and divide `dim`={dim}, got {d_out}")
        if num_queries < 1 or (dim // d_out) % num_queries:
            raise ValueError(
                f"`num_queries` must be at least 1 and divide `dim / d_out`={dim // d_out}, got {num_queries}"
            )
        dd = {"device": device, "dtype": dtype}
        self.dim = dim
        self.num_queries = num_queries
        self.out_dim = dim // d_out
        self.scale = dim**-0.5
        self.cls_token = nn.Parameter(torch.randn(1, num_queries, dim, **dd) * 0.02)
        self.v = nn.Linear(dim, self.out_dim, bias=False, **dd)

    def _tokens(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.flatten(2).transpose(1, 2)
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"`x` must have shape [B, N, {self.dim}] or [B, {self.dim}, H, W], got {tuple(x.shape)}")
        return x

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention maps of the queries, ``[B, num_queries, N]``; rows sum to 1."""
        return (self.cls_token * self.scale @ self._tokens(x).transpose(1, 2)).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool the tokens."""
        x = self._tokens(x)
        value = self.v(x).unflatten(2, (self.num_queries, -1)).transpose(1, 2)  # [B, Q, N, C / (d_out Q)]
        pooled = self.attention(x)[:, :, None] @ value
        return pooled.flatten(1)


class EfficientProbe(nn.Module):
    """Classifier on a frozen timm model: `EfficientProbing` of its tokens, optional batch norm, and a linear layer.

    The backbone stays in evaluation mode and gets no gradient. `parameters` includes its parameters, so pass only those
    with ``requires_grad`` to an optimizer.

    Args:
        backbone: timm model with ``forward_features`` and ``num_features``, whose features are ``[B, N, C]``,
            ``[B, C, H, W]`` or, with ``output_fmt="NHWC"``, ``[B, H, W, C]``.
        num_classes: number of classes.
        num_queries, d_out: see `EfficientProbing`.
        batch_norm: apply batch norm without scale and shift to the pooled features.
        prefix_tokens: include class and register tokens.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        num_queries: int = 32,
        d_out: int = 1,
        batch_norm: bool = False,
        prefix_tokens: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, got {num_classes}")
        for needed in ("forward_features", "num_features"):
            if not hasattr(backbone, needed):
                raise ValueError(f"`backbone` must be a timm model with {needed}, got a {type(backbone).__name__}")
        like = next(backbone.parameters())
        dd = {"device": like.device, "dtype": like.dtype}
        self.backbone = backbone.requires_grad_(False).eval()
        self.skip = 0 if prefix_tokens else getattr(backbone, "num_prefix_tokens", 0)
        self.channels_last = str(getattr(backbone, "output_fmt", "")) == "NHWC"
        self.pool = EfficientProbing(backbone.num_features, num_queries, d_out, **dd)
        self.norm = nn.BatchNorm1d(self.pool.out_dim, affine=False, **dd) if batch_norm else nn.Identity()
        self.fc = nn.Linear(self.pool.out_dim, num_classes, **dd)

    def train(self, mode: bool = True) -> "EfficientProbe":
        """Set the training mode of all modules but the backbone."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the backbone's tokens ``[B, N, C]`` or map ``[B, C, H, W]``, without gradient."""
        with torch.no_grad():
            features = self.backbone.forward_features(x)
        if features.dim() == 4:
            return features.permute(0, 3, 1, 2) if self.channels_last else features
        return features[:, self.skip :]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of images ``[B, in_chans, H, W]``."""
        return self.fc(self.norm(self.pool(self.forward_features(x))))
