"""The ONNX implementation computes the same as the reference, without a copy of the keys for each query."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from visionattn.inference.export import Network, export_model
from visionattn.kernels import na1d, na2d, na3d
from visionattn.layers import NeighborhoodAttention2d

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES), reason="needs onnx, onnxscript and onnxruntime"
)
OPERATORS = {1: na1d, 2: na2d, 3: na3d}


class Attention(nn.Module):
    def __init__(self, rank, heads, kernel_size, bias=False, **options):
        super().__init__()
        self.run, self.options = OPERATORS[rank], {"kernel_size": kernel_size, **options}
        table = torch.randn(heads, *[2 * kernel_size - 1] * rank) if bias else None
        self.register_buffer("rpb", table)

    def forward(self, q, k, v):
        return self.run(q, k, v, rpb=self.rpb, **self.options)


def tensors(shape, heads, heads_kv, dim, value_dim):
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = ((heads, dim), (heads_kv, dim), (heads_kv, value_dim))
    return tuple(torch.randn(*shape, *size, generator=generator) for size in sizes)


def export(module, arguments, path):
    """Export with a dynamic batch and map; return a function that runs the file, and the file's session."""
    import onnx
    import onnxruntime

    from visionattn.kernels.onnx import translations

    axes = dict.fromkeys(range(arguments[0].dim() - 2), torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, arguments, dynamic_shapes=(axes, axes, axes))
    torch.onnx.export(
        program, arguments, path, dynamo=True, opset_version=18, external_data=False, verbose=False, optimize=False,
        custom_translation_table=translations(),
    )  # fmt: skip
    onnx.checker.check_model(onnx.load(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling, options.profile_file_prefix = True, str(path)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(given):
        outputs = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
        return [torch.from_numpy(x) for x in outputs]

    return SimpleNamespace(run=run, session=session)


def largest_output(session):
    """Bytes of the largest tensor of a run, those inside of loops included."""
    with open(session.end_profiling()) as file:
        events = json.load(file)
    return max(int(event["args"].get("output_size", 0)) for event in events if event["cat"] == "Node")


# maps of exact tiles, with overlapping tiles, of one tile, and as small as allowed; the first is traced
CASES = {
    "kernel 3": ((2, 3, False, {"return_lse": True}), (2, 2, 5, 5), [(2, 18, 13), (1, 3, 3), (3, 6, 40)]),
    "kernel 5, dilation": ((2, 5, True, {"dilation": (2, 4)}), (1, 1, 3, 7), [(2, 21, 30), (1, 10, 23), (3, 40, 65)]),
    "kernel 7, bias": ((2, 7, True, {}), (2, 2, 4, 4), [(2, 24, 31), (1, 7, 8), (3, 9, 10), (1, 10, 37)]),
    "kernel 13, dilation": ((2, 13, True, {"dilation": 2}), (2, 2, 4, 4), [(2, 40, 31), (1, 26, 27), (1, 33, 67)]),
    "even kernel, shared heads": ((2, 4, False, {"scale": 0.3}), (4, 2, 3, 3), [(2, 14, 9), (1, 4, 5), (3, 5, 23)]),
    "sequences": ((1, 5, True, {"dilation": 3}), (2, 2, 4, 4), [(2, 500), (1, 15), (3, 101)]),
    "volumes": ((3, 3, True, {"dilation": (1, 2, 1)}), (2, 2, 3, 3), [(2, 7, 9, 10), (1, 3, 6, 5)]),
    "causal": ((2, 5, False, {"stride": 2, "is_causal": (True, False)}), (2, 2, 4, 4), [(2, 12, 11), (3, 5, 8)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_for_any_batch_and_size(case, tmp_path):
    (rank, kernel_size, bias, options), sizes, shapes = CASES[case]
    module = Attention(rank, sizes[0], kernel_size, bias, **options)
    program = export(module, tensors(shapes[0], *sizes), tmp_path / "a.onnx")
    for shape in shapes:
        given = tensors(shape, *sizes)
        expected = module.run(*given, rpb=module.rpb, **module.options, backend="reference")
        expected = expected if isinstance(expected, tuple) else (expected,)
        for one, other in zip(program.run(given), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_no_copy_of_the_keys_for_each_query(tmp_path):
    """A gather of all neighbors has tensors of 49 times the keys; its implementation for strides shows it here."""
    given = tensors((2, 60, 84), 2, 2, 16, 16)
    keys = given[1].numel() * 4
    sizes = {}
    for stride in (1, 2):
        program = export(Attention(2, 2, 7, bias=True, stride=stride), given, tmp_path / f"{stride}.onnx")
        program.run(given)
        sizes[stride] = largest_output(program.session)
    assert sizes[1] < 3 * keys
    assert sizes[2] >= 49 * keys


@pytest.mark.parametrize("dilation", [2, "auto"])
def test_layer_reads_its_projection_in_place(dilation, tmp_path):
    """Maps smaller than the window are padded, whatever size was traced."""
    import onnx
    import onnxruntime

    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = NeighborhoodAttention2d(6, 2, 5, dilation)
            nn.init.normal_(self.layer.rpb)

        def forward(self, image):
            x = image.permute(0, 2, 3, 1)
            return self.layer(self.layer(x)).permute(0, 3, 1, 2)

    torch.manual_seed(0)
    network = Network(Map().eval())
    done = export_model(network, tmp_path / "a.onnx", (24, 31), channels=6, dynamic=("batch", "size"))
    assert done.difference < 1e-5
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert (
        sum(node.op_type in ("Slice", "Split") for node in graph.node) == 2
    )  # that the padding of each layer is cut off
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 6, 4, 9), (3, 6, 13, 50)):
        image = torch.randn(shape)
        with torch.no_grad():
            expected = network(image)[0]
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"image": image.numpy()})[0]), expected)


def test_keys_outside_of_the_window_have_no_weight_whatever_their_score(tmp_path):
    """Masked scores are raised to 60 below the largest allowed one, since lower ones give slow subnormal numbers."""
    q, k, v = (x.abs() for x in tensors((2, 24, 20), 1, 1, 4, 4))
    k[:, 12:] *= 1000  # queries of the upper half have masked scores in the thousands in their tiles
    program = export(Attention(2, 1, 5), (q, k, v), tmp_path / "a.onnx")
    expected = na2d(q, k, v, kernel_size=5, backend="reference")
    torch.testing.assert_close(program.run((q, k, v))[0], expected, rtol=1e-5, atol=1e-5)


def test_no_score_of_minus_infinity_reaches_the_softmax(tmp_path):
    import onnx

    export(Attention(2, 2, 3), tensors((2, 9, 12), 2, 2, 4, 4), tmp_path / "a.onnx")
    (scan,) = (node for node in onnx.load(tmp_path / "a.onnx").graph.node if node.op_type == "Scan")
    nodes = next(attribute.g.node for attribute in scan.attribute if attribute.name == "body")
    made_by = {name: node.op_type for node in nodes for name in node.output}
    assert [made_by[node.input[0]] for node in nodes if node.op_type == "Softmax"] == ["Max"]
