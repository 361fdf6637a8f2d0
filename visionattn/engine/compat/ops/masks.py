"""Point-wise spatial attention masks (PSANet) and convolution at selected pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import operator

__all__ = ["masked_col2im_forward", "masked_im2col_forward", "psamask_backward", "psamask_forward"]

COLLECT = 0  # psa_type; 1 is distribute


def _realign(values: Tensor, size: tuple[int, int], half: tuple[int, int], sign: int) -> Tensor:
    """Compute ``values[n, a + sign * h + shift_h, b + sign * w + shift_w, h, w]`` at ``[n, a, b, h, w]``, 0 outside.

    Sign -1 and shift `half` convert mask entries at positions relative to each pixel to absolute positions; sign +1 and
    shift -`half` do the reverse.
    """
    for axis, (length, reach) in enumerate(zip(size, half, strict=True)):
        pixels, limit = values.size(axis + 3), values.size(axis + 1)
        target = torch.arange(length, device=values.device)[:, None]
        index = target + sign * (torch.arange(pixels, device=values.device) - reach)
        view = [1, 1, 1, 1, 1]
        view[axis + 1], view[axis + 3] = length, pixels
        shape = list(values.shape)
        shape[axis + 1] = length
        inside = ((index >= 0) & (index < limit)).view(view)
        index = index.clamp(0, limit - 1).view(view).expand(shape)
        values = values.gather(axis + 1, index) * inside
    return values


@operator
def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Convert the masks centered at each pixel to masks over the whole map (PSANet, Zhao et al., 2018).

    Args:
        input: ``[num_, h_mask * w_mask, h_feature, w_feature]``.
        output: ``[num_, h_feature * w_feature, h_feature, w_feature]``. The mask value of pixel s at position t is
            written to channel t, pixel s (psa_type 0, collect) or to channel s, pixel t (1, distribute). Positions
            outside of a mask are 0.
    """
    masks = input.view(num_, h_mask, w_mask, h_feature, w_feature)
    spread = _realign(masks, (h_feature, w_feature), (half_h_mask, half_w_mask), -1)
    if psa_type != COLLECT:
        spread = spread.permute(0, 3, 4, 1, 2)
    output.copy_(spread.reshape(output.shape))


@operator
def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of `psamask_forward` to `grad_input`."""
    spread = grad_output.reshape(num_, h_feature, w_feature, h_feature, w_feature)
    if psa_type != COLLECT:
        spread = spread.permute(0, 3, 4, 1, 2)
    grad_input.copy_(_realign(spread, (h_mask, w_mask), (half_h_mask, half_w_mask), 1).view_as(grad_input))


@operator
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the input patches of a stride-1 convolution at selected output pixels to `col`.

    Args:
        im: ``[1, C, H, W]``.
        mask_h_idx, mask_w_idx: rows and columns of the output pixels, int64 ``[P]``.
        col: ``[C * kernel_h * kernel_w, P]``.
        kernel_h, kernel_w, pad_h, pad_w: kernel size and zero padding.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].reshape(col.shape))


@operator
def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write the columns of `col` ``[channels, P]`` to pixels (mask_h_idx, mask_w_idx) of `im`.

    Args:
        im: ``[1, channels, height, width]``; other pixels are unchanged.
    """
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im)
