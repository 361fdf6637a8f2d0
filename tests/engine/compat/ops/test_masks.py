"""PSA masks against loops over pixel pairs; masked convolution against the convolution of everything."""

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mmcv")
from visionattn.engine.compat.ops.masks import (
    masked_col2im_forward,
    masked_im2col_forward,
    psamask_backward,
    psamask_forward,
)


def slow_psamask(masks, psa_type, mask_size):
    batch, _, height, width = masks.shape
    output = masks.new_zeros(batch, height * width, height * width)
    for source in range(height * width):
        for target in range(height * width):
            i = target // width - source // width + (mask_size[0] - 1) // 2
            j = target % width - source % width + (mask_size[1] - 1) // 2
            if 0 <= i < mask_size[0] and 0 <= j < mask_size[1]:
                value = masks[:, i * mask_size[1] + j, source // width, source % width]
                if psa_type == 0:
                    output[:, target, source] = value
                else:
                    output[:, source, target] = value
    return output.view(batch, height * width, height, width)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("mask_size", [(5, 7), (3, 3), (9, 1), (2, 4)])  # whole map; part of it; beyond; even
@pytest.mark.parametrize("psa_type", [0, 1])
def test_psamask(psa_type, mask_size, dtype):
    masks = torch.randn(2, mask_size[0] * mask_size[1], 3, 4).to(dtype).requires_grad_()
    expected = slow_psamask(masks, psa_type, mask_size)
    arguments = {
        "psa_type": psa_type,
        "num_": 2,
        "h_feature": 3,
        "w_feature": 4,
        "h_mask": mask_size[0],
        "w_mask": mask_size[1],
        "half_h_mask": (mask_size[0] - 1) // 2,
        "half_w_mask": (mask_size[1] - 1) // 2,
    }
    output = torch.full_like(expected, math.nan)
    psamask_forward(masks.detach(), output, **arguments)
    assert torch.equal(output, expected.detach())
    grad_output, grad = torch.randn_like(output), torch.full_like(masks, math.nan)
    psamask_backward(grad_output, grad, **arguments)
    assert torch.equal(grad, torch.autograd.grad(expected, masks, grad_output)[0])


@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), (1, 1)), ((1, 3), (0, 0)), ((2, 5), (1, 3))])
def test_masked_convolution(kernel, padding):
    image = torch.randn(1, 3, 6, 7, dtype=torch.float64)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64)
    everywhere = F.conv2d(image, weight, padding=padding)
    rows, columns = (torch.rand(everywhere.shape[2:]) > 0.5).nonzero(as_tuple=True)
    patches = image.new_full((weight[0].numel(), len(rows)), math.nan)
    masked_im2col_forward(
        image,
        rows,
        columns,
        patches,
        kernel_h=kernel[0],
        kernel_w=kernel[1],
        pad_h=padding[0],
        pad_w=padding[1],
    )
    output = torch.full_like(everywhere, -7)
    masked_col2im_forward(
        weight.flatten(1) @ patches, rows, columns, output,
        height=output.size(2), width=output.size(3), channels=4,
    )  # fmt: skip
    expected = torch.full_like(everywhere, -7)
    expected[..., rows, columns] = everywhere[..., rows, columns]
    torch.testing.assert_close(output, expected)
