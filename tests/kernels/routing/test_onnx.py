"""The ONNX implementation computes the same as the reference."""

import importlib.util

import pytest
import torch
from torch import nn

from visionattn.inference.export import Network, export_model
from visionattn.kernels import bilevel_routing_attention
from visionattn.layers import BiLevelRoutingAttention

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES), reason="needs onnx, onnxscript and onnxruntime"
)


class Attention(nn.Module):
    def __init__(self, regions, topk, mask):
        super().__init__()
        self.regions, self.topk, self.backend = regions, topk, None
        self.register_buffer("mask", mask)

    def forward(self, q, k, v, key_regions):
        return bilevel_routing_attention(
            q, k, v, self.regions, self.topk, key_regions=key_regions, padding_mask=self.mask, backend=self.backend
        )


def padding(height, width, rows, columns):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:rows], mask[:, width - columns :] = True, True
    return mask


@pytest.mark.parametrize(
    ("regions", "topk", "query_map", "key_map", "mask"),
    [
        ((2, 3), 2, (8, 9), (8, 9), None),
        ((3, 2), 3, (10, 9), (6, 5), None),
        ((3, 2), 1, (9, 8), (9, 8), padding(9, 8, 4, 1)),  # the first two regions contain only padding
    ],
)
def test_equals_the_reference_for_any_batch(regions, topk, query_map, key_map, mask, tmp_path):
    import onnxruntime

    from visionattn.kernels.onnx import translations

    def given(batch):
        generator = torch.Generator().manual_seed(batch)
        q = torch.randn(batch, *query_map, 2, 3, generator=generator)
        k, v = (torch.randn(batch, *key_map, 2, dim, generator=generator) for dim in (3, 5))
        order = torch.rand(batch, *[regions[0] * regions[1]] * 2, generator=generator).argsort(-1)
        return q, k, v, order[..., :topk].contiguous()

    module, axes = Attention(regions, topk, mask), {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, given(2), dynamic_shapes=(axes,) * 4)
    path = tmp_path / "a.onnx"
    torch.onnx.export(
        program, given(2), path, dynamo=True, opset_version=18, external_data=False, verbose=False, optimize=False,
        custom_translation_table=translations(),
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    reference = Attention(regions, topk, mask)
    reference.backend = "reference"
    for batch in (2, 1, 3):
        tensors = given(batch)
        result = session.run(None, {name: x.numpy() for name, x in zip(names, tensors, strict=True)})[0]
        expected = reference(*tensors)
        torch.testing.assert_close(torch.from_numpy(result), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"padding": "input", "kv_pool": "ada_avgpool", "kv_pool_size": 2}])
def test_layer(options, tmp_path):
    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = BiLevelRoutingAttention(8, 2, num_regions=3, topk=2, **options)

        def forward(self, image):
            return self.layer(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    torch.manual_seed(0)
    done = export_model(Network(Map().eval()), tmp_path / "a.onnx", (12, 14), channels=8, dynamic=("batch",))
    assert done.difference < 1e-5
