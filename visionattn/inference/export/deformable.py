"""Deformable attention, its encoder and the pixel decoder of Mask2Former for export: sizes of maps are Python numbers.

The modules of mmcv and mmdet pass the sizes as tensors and read them, and count steps of ``torch.linspace`` by them,
which a trace for any size cannot do.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["cell_centers", "replace_deformable"]


def replace_deformable(model: nn.Module) -> None:
    """Replace the modules of a model by those of this file; they share the weights."""
    makers = {"MultiScaleDeformableAttention": DeformableAttention, "MSDeformAttnPixelDecoder": PixelDecoder}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if maker := makers.get(type(child).__name__):
                setattr(module, name, maker(child))
        if hasattr(module, "get_encoder_reference_points"):
            module.get_encoder_reference_points = _reference_points


def cell_centers(height: int, width: int, device: torch.device) -> Tensor:
    """Return the center (x, y) of each cell of a map, relative to its size, row by row, ``[height * width, 2]``."""
    y = (torch.arange(height, device=device) + 0.5)[:, None].expand(height, width) / height
    x = (torch.arange(width, device=device) + 0.5)[None].expand(height, width) / width
    return torch.stack([x, y], -1).flatten(0, 1)


def _reference_points(shapes: Sequence[Sequence[int]], ratios: Tensor, device: torch.device) -> Tensor:
    """Return the cell centers of all levels, ``[B, N, levels, 2]``; the images of a batch have the same size."""
    centers = torch.cat([cell_centers(*shape, device) for shape in shapes])
    return centers[None, :, None].expand(ratios.shape[0], -1, len(shapes), -1)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention of mmcv, except that ``spatial_shapes`` is a list of (height, width).

    Args:
        module: a ``MultiScaleDeformableAttention``, in eval mode.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Sequence[Sequence[int]] = (),
        **kwargs: Any,
    ) -> Tensor:
        """Compute attention; see mmcv for the arguments."""
        m = self.module
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not m.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        batch, queries = query.shape[:2]
        value = m.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        heads, levels, points = m.num_heads, m.num_levels, m.num_points
        offsets = m.sampling_offsets(query).reshape(batch, queries, heads, levels, points, 2)
        weights = m.attention_weights(query).reshape(batch, queries, heads, levels * points).softmax(-1)
        weights = weights.reshape(batch, queries, heads, levels, points)
        result, start = 0.0, 0
        for level, (height, width) in enumerate(spatial_shapes):
            offset, reference = offsets[:, :, :, level], reference_points[:, :, None, level, None]
            if reference.shape[-1] == 2:
                step = torch.stack([offset[..., 0] / width, offset[..., 1] / height], -1)
                location = reference + step
            else:
                location = reference[..., :2] + offset / points * reference[..., 2:] * 0.5
            part = value.narrow(1, start, height * width)
            start = start + height * width
            part = part.transpose(1, 2).reshape(batch * heads, -1, height, width)
            grid = (2 * location - 1).transpose(1, 2).reshape(batch * heads, queries, points, 2)
            found = F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
            result = result + (found * weight).sum(-1)
        out = result.reshape(batch, -1, queries).transpose(1, 2)
        out = m.output_proj(out)
        return (out if m.batch_first else out.transpose(0, 1)) + identity


class PixelDecoder(nn.Module):
    """The pixel decoder of Mask2Former.

    Args:
        module: an ``MSDeformAttnPixelDecoder`` of mmdet, in eval mode.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        replace_deformable(module)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the features for masks, and the features of several scales, lowest resolution first."""
        m = self.module
        batch, inputs, positions, references, shapes = maps[0].shape[0], [], [], [], []
        for index in range(m.num_encoder_levels):
            level = m.num_input_levels - index - 1
            feature = maps[level]
            height, width = feature.shape[2:]
            mask = feature.new_zeros((batch, height, width), dtype=torch.bool)
            position = m.postional_encoding(mask) + m.level_encoding.weight[index].view(1, -1, 1, 1)
            points = m.point_generator.single_level_grid_priors((height, width), level, device=feature.device)
            stride = m.strides[level]
            references.append(torch.stack([points[:, 0] / (width * stride), points[:, 1] / (height * stride)], -1))
            inputs.append(m.input_convs[index](feature).flatten(2).transpose(1, 2))
            positions.append(position.flatten(2).transpose(1, 2))
            shapes.append((height, width))
        reference = torch.cat(references)[None, :, None].expand(batch, -1, m.num_encoder_levels, -1)
        memory = m.encoder(
            query=torch.cat(inputs, 1), query_pos=torch.cat(positions, 1), key_padding_mask=None,
            spatial_shapes=shapes, reference_points=reference, level_start_index=None,
            valid_ratios=reference.new_ones(batch, m.num_encoder_levels, 2),
        )  # fmt: skip
        outs, start = [], 0
        for height, width in shapes:
            part = memory.narrow(1, start, height * width).transpose(1, 2)
            outs.append(part.reshape(batch, -1, height, width))
            start = start + height * width
        for index in range(m.num_input_levels - m.num_encoder_levels - 1, -1, -1):
            lateral = m.lateral_convs[index](maps[index])
            resized = F.interpolate(outs[-1], size=lateral.shape[2:], mode="bilinear", align_corners=False)
            outs.append(m.output_convs[index](lateral + resized))
        return m.mask_feature(outs[-1]), outs[: m.num_outs]
