"""What the launches of the Triton kernels are specialized for: few variants for many maps."""

import random
from collections import Counter

import pytest
import torch
from fixtures.fake_gpu import CURRENT

from visionattn.backbones import resolve_dilations

pytest.importorskip("triton")


def specialization(launch) -> str:
    """What Triton's launcher compiles a variant for, beside the options."""
    *_, bind = launch.kernel.device_caches[CURRENT]
    return f"{bind(**launch.arguments)[1]} {launch.warps} {launch.stages}"


def launches(shape, dilation, heads, batch=2, kernel=7, dtype=torch.bfloat16, rpb=True, dim=32):
    """Forward and backward of packed queries, keys and values without memory."""
    from visionattn.kernels.neighborhood.triton import launch as triton_launch

    q, k, v = torch.empty(batch, *shape, 3, heads, dim, dtype=dtype, device="meta").unbind(-3)
    table = torch.empty(heads, 2 * kernel - 1, 2 * kernel - 1, device="meta") if rpb else None
    per_axis = ((kernel,) * 2, (1, 1), (dilation,) * 2, (False, False))
    problem = triton_launch.Problem.of(q, k, v, table, None, None, *per_axis, dim**-0.5)
    out, lse, forward = triton_launch.forward(problem)
    return [forward, *triton_launch.backward(problem, out, None, out, lse)[1]]


def padded_size(draw: random.Random) -> tuple[int, int]:
    """Height and width of a batch of two images of COCO with a random short side, padded to a multiple of 32."""
    sizes = []
    for _ in range(2):
        width, height = draw.choice(
            [(640, 480), (480, 640), (640, 427), (427, 640), (640, 640), (500, 375), (640, 360)]
        )
        factor = min(draw.choice(range(480, 801, 32)) / min(width, height), 1333 / max(width, height))
        sizes.append((round(height * factor), round(width * factor)))
    return tuple(-(-max(axis) // 32) * 32 for axis in zip(*sizes, strict=True))


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 80), (torch.float32, 120)])
def test_detection_at_many_scales_compiles_few_kernels(dtype, most, fake_gpu):
    """DiNAT-mini on 200 batches of COCO, forward and backward; this took 824 kernels."""
    draw, variants, seen = random.Random(0), set(), set()
    schedule = resolve_dilations("detection", (3, 4, 6, 5))
    for _ in range(200):
        height, width = padded_size(draw)
        for level, dilations in enumerate(schedule):
            for dilation in set(dilations):
                shape = tuple(max(side >> (level + 2), 7 * dilation) for side in (height, width))
                if (shape, dilation) not in seen:
                    seen.add((shape, dilation))
                    for launch in launches(shape, dilation, 2 << level, dtype=dtype):
                        variants.add((launch.kernel.__name__, specialization(launch)))
    assert len(seen) > 400
    assert len(variants) <= most, Counter(name for name, _ in variants)
