"""Efficient probing: attentive pooling with few parameters, to judge a frozen backbone by.

Psomas et al., "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency" (arXiv 2506.10178).
Parameter names are the published ones.
"""

import torch
from torch import Tensor, nn

__all__ = ["EfficientProbe", "EfficientProbing"]


class EfficientProbing(nn.Module):
    """Attentive pooling by learned queries: ``[B, N, C]`` or ``[B, C, H, W]`` to ``[B, C / d_out]``.

    Keys are the tokens as they are. Values are one linear map of them, in as many chunks of channels as there are
    queries, each chunk pooled by the attention of its query.

    Args:
        dim: channels of the tokens.
        num_queries: queries, so many attention maps; divides ``dim / d_out``.
        d_out: by how much channels are reduced; divides `dim`.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument out of its range, or an input that does not fit.
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
            raise ValueError(f"d_out={d_out} must be at least 1 and divide dim={dim}")
        if num_queries < 1 or (dim // d_out) % num_queries:
            raise ValueError(f"num_queries={num_queries} must be at least 1 and divide dim / d_out = {dim // d_out}")
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
            raise ValueError(f"x must be [B, N, {self.dim}] or [B, {self.dim}, H, W], got {tuple(x.shape)}")
        return x

    def attention(self, x: Tensor) -> Tensor:
        """Where each query looks, ``[B, num_queries, N]``; rows sum to 1. They localize what the probe reads."""
        return (self.cls_token * self.scale @ self._tokens(x).transpose(1, 2)).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool the tokens."""
        x = self._tokens(x)
        value = self.v(x).unflatten(2, (self.num_queries, -1)).transpose(1, 2)  # [B, Q, N, C / (d_out Q)]
        pooled = self.attention(x)[:, :, None] @ value
        return pooled.flatten(1)


class EfficientProbe(nn.Module):
    """A classifier on a frozen timm model: its tokens, `EfficientProbing`, optionally batch norm, a linear layer.

    The backbone gets no gradient and stays in evaluation mode; ``probe.parameters()`` holds it all the same, so give
    an optimizer what has ``requires_grad``.

    Args:
        backbone: a model of timm with ``forward_features`` and ``num_features``, features ``[B, N, C]``,
            ``[B, C, H, W]`` or, of models that say so by ``output_fmt``, ``[B, H, W, C]``.
        num_classes: classes.
        num_queries, d_out: see `EfficientProbing`.
        batch_norm: norm the pooled features over the batch, without scale and shift.
        prefix_tokens: let the queries see class token and registers, too.

    Raises:
        ValueError: an argument out of its range.
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
            raise ValueError(f"num_classes={num_classes} must be at least 1")
        for needed in ("forward_features", "num_features"):
            if not hasattr(backbone, needed):
                raise ValueError(f"backbone={type(backbone).__name__} must be a timm model with {needed}")
        like = next(backbone.parameters())
        dd = {"device": like.device, "dtype": like.dtype}
        self.backbone = backbone.requires_grad_(False).eval()
        self.skip = 0 if prefix_tokens else getattr(backbone, "num_prefix_tokens", 0)
        self.channels_last = str(getattr(backbone, "output_fmt", "")) == "NHWC"
        self.pool = EfficientProbing(backbone.num_features, num_queries, d_out, **dd)
        self.norm = nn.BatchNorm1d(self.pool.out_dim, affine=False, **dd) if batch_norm else nn.Identity()
        self.fc = nn.Linear(self.pool.out_dim, num_classes, **dd)

    def train(self, mode: bool = True) -> "EfficientProbe":
        """Training mode for all but the backbone."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward_features(self, x: Tensor) -> Tensor:
        """The frozen tokens ``[B, N, C]``, or a map ``[B, C, H, W]``."""
        with torch.no_grad():
            features = self.backbone.forward_features(x)
        if features.dim() == 4:
            return features.permute(0, 3, 1, 2) if self.channels_last else features
        return features[:, self.skip :]

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``."""
        return self.fc(self.norm(self.pool(self.forward_features(x))))
