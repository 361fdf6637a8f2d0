"""TransFusion detection head for LiDAR features (Bai et al., CVPR 2022), as ScatterFormer uses it on nuScenes.

Queries are initialized from the highest peaks of class heatmaps, refined by one transformer decoder layer on the
bird's-eye-view features, and matched one to one with the objects in training.

Parameter names match OpenPCDet's ``TransFusionHead``, so its checkpoints load.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.heads.lidar.decoding import BEVDetections, Decoding
from visionattn.heads.lidar.targets import BEVGrid
from visionattn.heads.lidar.transfusion_losses import decode_proposals, transfusion_losses

__all__ = ["TransFusionHead"]

CHANNELS = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "iou": 1}


class _ConvBlock(nn.Module):
    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _PositionEmbedding(nn.Module):
    """Embedding of positions ``[B, N, 2]`` in cells by a two-layer perceptron: ``[B, N, C]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, channels, 1), nn.BatchNorm1d(channels), nn.ReLU(), nn.Conv1d(channels, channels, 1)
        )

    def forward(self, positions: Tensor) -> Tensor:
        # bfloat16 has no halves above 128.
        with torch.autocast(positions.device.type, enabled=False):
            positions = positions.to(self.position_embedding_head[0].weight.dtype)
            return self.position_embedding_head(positions.transpose(1, 2)).transpose(1, 2)


class _DecoderLayer(nn.Module):
    """Transformer decoder layer with normalization after each block and learned position embeddings.

    As in the authors' code, the position embeddings are added to queries, keys and values.

    Args:
        channels: channels of queries and map.
        num_heads: number of attention heads.
        ffn_channels: hidden channels of the feed-forward network.
        dropout: probability of dropout, also of attention weights.
        radius: the cross-attention of a query is limited to the cells within this distance along rows and columns.
            Cells of the neighborhood outside the map are replaced by the nearest cells of the map, which then count
            several times; and the queries do not attend to one another. None: the whole map, and all queries.
    """

    def __init__(self, channels: int, num_heads: int, ffn_channels: int, dropout: float, radius: int | None) -> None:
        super().__init__()
        self.radius, self.dropout = radius, dropout
        self.self_attn = nn.MultiheadAttention(channels, num_heads, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(channels, num_heads, dropout=dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(channels, ffn_channels), nn.Linear(ffn_channels, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.self_posembed, self.cross_posembed = _PositionEmbedding(channels), _PositionEmbedding(channels)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, query: Tensor, features: Tensor, cells: Tensor) -> Tensor:
        """Refine the queries.

        Args:
            query: ``[B, P, C]``.
            features: map ``[B, C, H, W]``.
            cells: column and row of the cell of each query, int64 ``[B, P, 2]``.
        """
        batch, channels, rows, columns = features.shape
        where = self.self_posembed(cells + 0.5)
        x = query + where
        if self.radius is None:
            x = _attend(self.self_attn, x, x)
        else:  # sequences of one query each
            x = x.reshape(-1, 1, channels)
            x = _attend(self.self_attn, x, x).view_as(query)
        query = self.norm1(query + self._drop(x))
        y, x = torch.meshgrid(*(torch.arange(n, device=features.device) for n in (rows, columns)), indexing="ij")
        grid = torch.stack([x, y], -1).view(1, -1, 2) + 0.5
        keys = features.flatten(2).transpose(1, 2) + self.cross_posembed(grid.expand(batch, -1, -1))
        mask = None if self.radius is None else _neighborhood(cells, rows, columns, self.radius)
        query = self.norm2(query + self._drop(_attend(self.multihead_attn, query + where, keys, mask)))
        hidden = self.linear2(self._drop(F.relu(self.linear1(query))))
        return self.norm3(query + self._drop(hidden))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _neighborhood(cells: Tensor, rows: int, columns: int, radius: int) -> Tensor:
    """Additive attention mask ``[B, P, rows * columns]``: logarithm of how often each cell is in the neighborhood."""
    counts = []
    for axis, size in ((1, rows), (0, columns)):
        center = cells[..., axis, None]
        at = torch.arange(size, device=cells.device)
        count = ((at - center).abs() <= radius).long()
        count[..., :1] += (radius - center).clamp(min=0)
        count[..., -1:] += (radius - (size - 1 - center)).clamp(min=0)
        counts.append(count.float().log())
    return (counts[0][..., :, None] + counts[1][..., None, :]).flatten(2)


def _attend(module: nn.MultiheadAttention, query: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
    """Apply the attention of a module, whose keys are also the values, with one mask for all heads.

    ``nn.MultiheadAttention`` itself would need a copy of the mask for each head.
    """
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for x, w, b in zip((query, keys, keys), weights, biases, strict=True)
    )
    dropout = module.dropout if module.training else 0.0
    mask = None if mask is None else mask[:, None].to(q.dtype)
    return module.out_proj(F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2))


class TransFusionHead(nn.Module):
    """Heatmap proposals refined by a transformer decoder layer.

    Args:
        in_channels: number of input channels.
        num_classes: number of classes.
        grid: geometry of the input map.
        hidden_channels: channels of the queries.
        num_proposals: number of queries.
        num_heads: number of attention heads.
        ffn_channels: hidden channels of the feed-forward network.
        dropout: probability of dropout in the decoder layer.
        branch_channels: hidden channels of each prediction branch.
        peak_size: a cell is a candidate if its heatmap value is the maximum of a window of this size, an odd number;
            cells for which the window exceeds the map are not.
        small_classes: labels of classes, such as pedestrians, of which every cell is a candidate.
        query_radius: radius in cells of the neighborhood to which the attention of a query is limited; None for the
            whole map. See `_DecoderLayer`.
        velocity: whether to predict the velocity, in meters per second.
        iou: whether to predict the IoU of each box with its object.
        loss: keyword arguments of `visionattn.heads.lidar.transfusion_losses.transfusion_losses`.
        decoding: post-processing options.

    Raises:
        ValueError: if an argument is out of range, or ``decoding`` does not match the classes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        grid: BEVGrid,
        hidden_channels: int = 128,
        num_proposals: int = 200,
        num_heads: int = 8,
        ffn_channels: int = 256,
        dropout: float = 0.1,
        branch_channels: int = 64,
        peak_size: int = 3,
        small_classes: Sequence[int] = (),
        query_radius: int | None = 20,
        velocity: bool = False,
        iou: bool = True,
        loss: dict[str, Any] | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__()
        if peak_size < 1 or peak_size % 2 == 0:
            raise ValueError(f"`peak_size` must be an odd number of at least 1, got {peak_size}")
        if not set(small_classes) <= set(range(num_classes)):
            raise ValueError(f"`small_classes` must be labels in 0..{num_classes - 1}, got {list(small_classes)}")
        if num_proposals < 1:
            raise ValueError(f"`num_proposals` must be at least 1, got {num_proposals}")
        if hidden_channels % num_heads:
            raise ValueError(
                f"`hidden_channels` must be a multiple of `num_heads`, got {hidden_channels} and {num_heads}"
            )
        if query_radius is not None and query_radius < 0:
            raise ValueError(f"`query_radius` must be at least 0 or None, got {query_radius}")
        self.num_classes, self.grid, self.num_proposals = num_classes, grid, num_proposals
        self.peak_size, self.small_classes = peak_size, list(small_classes)
        self.decoding = decoding or Decoding()
        self.decoding.check(num_classes, iou)
        self.loss_options = dict(loss or {})
        self.shared_conv = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.heatmap_head = nn.Sequential(
            _ConvBlock(hidden_channels, bias=True), nn.Conv2d(hidden_channels, num_classes, 3, padding=1)
        )
        nn.init.constant_(self.heatmap_head[-1].bias, -2.19)  # sigmoid(-2.19) = 0.1: few cells are positive
        self.class_encoding = nn.Conv1d(num_classes, hidden_channels, 1)
        self.decoder = _DecoderLayer(hidden_channels, num_heads, ffn_channels, dropout, query_radius)
        left_out = {name for name, used in (("vel", velocity), ("iou", iou)) if not used}
        sizes = {name: size for name, size in CHANNELS.items() if name not in left_out} | {"heatmap": num_classes}
        self.prediction_head = nn.ModuleDict(
            {name: _branch(hidden_channels, branch_channels, size) for name, size in sizes.items()}
        )
        nn.init.constant_(self.prediction_head["heatmap"][-1].bias, -2.19)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Compute the proposals.

        Args:
            x: features ``[B, in_channels, H, W]``, rows along y and columns along x.

        Returns:
            A list with one dict, of P proposals: ``center`` ``[B, 2, P]`` (x and y in cells from the corner of the
            map), ``height`` ``[B, 1, P]`` (z of the center), ``dim`` ``[B, 3, P]`` (logarithms), ``rot`` ``[B, 2, P]``
            (sine, cosine), ``heatmap`` ``[B, classes, P]`` (logits), if enabled ``vel`` ``[B, 2, P]`` and ``iou``
            ``[B, 1, P]``; ``query_labels`` and ``query_scores`` ``[B, P]``, class and value of the peak that each
            proposal started from; and ``dense_heatmap`` ``[B, classes, H, W]`` (logits).
        """
        features = self.shared_conv(x)
        dense = self.heatmap_head(features)
        scores, labels, cells = self._proposals(dense.detach().float().sigmoid())
        index = cells[..., 1] * features.shape[-1] + cells[..., 0]
        query = features.flatten(2).gather(2, index[:, None].expand(-1, features.shape[1], -1))
        one_hot = F.one_hot(labels, self.num_classes).transpose(1, 2).to(query.dtype)
        query = (query + self.class_encoding(one_hot)).transpose(1, 2)
        refined = self.decoder(query, features, cells).transpose(1, 2)
        outputs = {name: branch(refined) for name, branch in self.prediction_head.items()}
        outputs["center"] = outputs["center"] + (cells.transpose(1, 2) + 0.5)
        return [outputs | {"query_labels": labels, "query_scores": scores, "dense_heatmap": dense}]

    def _proposals(self, heat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heatmap value ``[B, P]``, class ``[B, P]`` and cell ``[B, P, 2]`` (column, row) of the highest peaks."""
        margin = self.peak_size // 2
        peaks = torch.zeros_like(heat)
        rows, columns = (slice(margin, size - margin) for size in heat.shape[-2:])
        if min(heat.shape[-2:]) >= self.peak_size:
            highest = F.max_pool2d(heat, self.peak_size, 1)
            inner = heat[..., rows, columns]
            peaks[..., rows, columns] = torch.where(inner == highest, inner, 0.0)
        peaks[:, self.small_classes] = heat[:, self.small_classes]
        scores, order = peaks.flatten(1).topk(min(self.num_proposals, peaks[0].numel()))
        labels, index = order // heat[0, 0].numel(), order % heat[0, 0].numel()
        return scores, labels, torch.stack([index % heat.shape[-1], index // heat.shape[-1]], -1)

    def loss(
        self,
        outputs: Sequence[dict[str, Tensor]],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        velocity: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses; see `visionattn.heads.lidar.transfusion_losses.transfusion_losses`.

        Args:
            outputs: return value of `forward`.
            boxes: ground-truth boxes of each sample ``[N, 7]``; N may be 0.
            labels: labels of each sample, int64 ``[N]``.
            velocity: velocities of each sample ``[N, 2]`` in meters per second, NaN where unknown.
        """
        return transfusion_losses(outputs[0], boxes, labels, velocity, self.grid, **self.loss_options)

    @torch.no_grad()
    def predict(self, outputs: Sequence[dict[str, Tensor]]) -> list[BEVDetections]:
        """Decode the proposals of `forward` into detections, one `BEVDetections` for each sample.

        The class is that of the peak; the score is the product of the heatmap's and the proposal's scores for it.
        """
        out = outputs[0]
        boxes, labels = decode_proposals(out, self.grid), out["query_labels"]
        scores = out["heatmap"].float().sigmoid().gather(1, labels[:, None])[:, 0] * out["query_scores"]
        iou = out["iou"][:, 0].float() if "iou" in out else None
        return [
            self.decoding.select(
                boxes[number], scores[number], labels[number], None if iou is None else iou[number], self.num_classes
            )
            for number in range(len(boxes))
        ]


def _branch(in_channels: int, channels: int, out_channels: int) -> nn.Sequential:
    block = nn.Sequential(nn.Conv1d(in_channels, channels, 1), nn.BatchNorm1d(channels), nn.ReLU())
    return nn.Sequential(block, nn.Conv1d(channels, out_channels, 1))
