"""The path for TorchScript against the definition of the kernels."""

import random

import pytest
import torch

from visionattn.kernels import na1d, na2d, na3d
from visionattn.kernels.neighborhood.gather import gather_attention

OPS = {1: na1d, 2: na2d, 3: na3d}


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_reference_kernel(seed):
    """Even kernels, strides, dilations that do not divide, causal axes, biases and additional keys, mixed."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    rank = draw.choice([1, 2, 3])
    size = [draw.randint(5, 11) for _ in range(rank)]
    kernel = [draw.randint(2, 5) for _ in range(rank)]
    stride = [draw.randint(1, k) for k in kernel]
    dilation = [draw.randint(1, n // k) for n, k in zip(size, kernel, strict=True)]
    causal = [draw.random() < 0.3 for _ in range(rank)]
    q, k, v = torch.randn(3, 2, *size, 2, 4, dtype=torch.double)
    rpb = extra = None
    if not any(causal) and all(n % 2 for n in kernel):
        rpb = torch.randn(2, *(2 * n - 1 for n in kernel), dtype=torch.double)
    if seed % 2:
        extra = torch.randn(2, 2, 3, 2, 4, dtype=torch.double)
    extra_k, extra_v = extra if extra is not None else (None, None)
    expected = OPS[rank](
        q, k, v, kernel, stride, dilation, causal, scale=0.7, rpb=rpb,
        additional_keys=extra_k, additional_values=extra_v, backend="reference",
    )  # fmt: skip
    out, _ = gather_attention(q, k, v, kernel, stride, dilation, causal, 0.7, rpb, extra_k, extra_v)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
