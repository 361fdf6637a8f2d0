"""Files of reduced precision: which nodes change, how much the outputs change, and what is refused."""

import numpy as np
import pytest
from fixtures.programs import save_program

from visionattn.errors import BackendError, ConfigError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from visionattn.inference.onnx import reduced
from visionattn.inference.onnx.graph import network_nodes, simplified
from visionattn.inference.onnx.half import to_half
from visionattn.inference.onnx.int8 import Quantizer
from visionattn.inference.onnx.model import OnnxModel
from visionattn.inference.onnx.reduced import Comparison, reduce_file


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Normalization, three convolutions, and decoding to coordinates: 4,097 + the sum of the features of a pixel.

    One channel of the input of the last convolution is 1,000 times larger than the others.
    """
    generator = np.random.default_rng(0)
    weights = {
        "mean": np.float32(127.3), "std": np.float32(58.7), "offset": np.float32(4097), "axes": np.array([1]),
        "w1": generator.normal(size=(64, 3, 3, 3)).astype(np.float32) / 5,
        "w2": generator.normal(size=(64, 64, 3, 3)).astype(np.float32) / 24,
        "w3": generator.normal(size=(64, 64, 1, 1)).astype(np.float32) / 8,
        "gain": np.array([1000] + [1] * 63, np.float32).reshape(64, 1, 1),
    }  # fmt: skip
    weights["w3"][:, 0] /= 1000
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        (("Sub", ["image", "mean"], ["centered"]), {}),
        (("Div", ["centered", "std"], ["normal"]), {}),
        (("Conv", ["normal", "w1"], ["one"]), pads),
        (("Relu", ["one"], ["relu"]), {}),
        (("Conv", ["relu", "w2"], ["two"]), pads),
        (("Relu", ["two"], ["again"]), {}),
        (("Mul", ["again", "gain"], ["large"]), {}),
        (("Conv", ["large", "w3"], ["three"]), {}),
        (("ReduceSum", ["three", "axes"], ["sum"]), {"keepdims": 0}),
        (("Add", ["sum", "offset"], ["position"]), {}),
    ]
    path = tmp_path_factory.mktemp("onnx") / "a.onnx"
    return save_program(path, nodes, weights, {"position": (1, ["batch", "height", "width"])}, task="semantic")


@pytest.fixture(scope="module")
def images():
    return [np.random.default_rng(seed).integers(0, 256, (24, 20, 3), np.uint8) for seed in range(4)]


def outputs(path, image):
    return OnnxModel(path).infer(np.float32(image).transpose(2, 0, 1)[None])["position"]


def relative(one, other):
    return np.abs(one - other).max() / np.abs(one - 4097).max()


def test_network_is_between_the_first_and_the_last_layer(program):
    assert network_nodes(simplified(program)) == {"one", "relu", "two", "again", "large", "three"}


def test_boxes_are_no_features(tmp_path):
    """Regions come from a convolution too, but their path to the next one is through coordinates."""
    weights = {
        "w": np.ones((4, 3, 1, 1), np.float32), "v": np.ones((2, 4, 1, 1), np.float32), "batch": np.zeros(4, np.int64),
        "axes": np.array([2, 3]), "zero": np.array([0]), "ten": np.array([10], np.float32),
    }  # fmt: skip
    nodes = [
        (("Conv", ["image", "w"], ["features"]), {}),
        (("ReduceMean", ["features", "axes"], ["means"]), {"keepdims": 0}),
        (("Mul", ["means", "ten"], ["box"]), {}),
        (("Concat", ["box", "box", "box", "box"], ["boxes"]), {"axis": 0}),
        (("RoiAlign", ["features", "boxes", "batch"], ["regions"]), {"output_height": 2, "output_width": 2}),
        (("Conv", ["regions", "v"], ["logits"]), {}),
    ]
    path = save_program(tmp_path / "a.onnx", nodes, weights, {"logits": (1, [4, 2, 2, 2])})
    assert network_nodes(simplified(path)) == {"features", "regions", "logits"}


def test_float16(program, images, tmp_path):
    out = tmp_path / "half.onnx"
    to_half(program, out)
    expected, found = outputs(program, images[0]), outputs(out, images[0])
    assert found.dtype == np.float32
    assert 0 < relative(expected, found) < 2e-3
    assert len(np.unique(found % 1)) > 100  # in float16, 4,097 and larger values would be multiples of 4
    assert out.stat().st_size < 0.55 * program.stat().st_size
    model = onnx.load(out)
    assert {p.key: p.value for p in model.metadata_props}["precision"] == "float16"
    weights = [t for t in model.graph.initializer if len(t.dims) == 4]
    assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}
    kinds = {node.name: node.op_type for node in model.graph.node}
    assert sum(kind == "Cast" for kind in kinds.values()) == 2


def test_int8(program, images, tmp_path):
    out, partly = tmp_path / "int8.onnx", tmp_path / "partly.onnx"
    quantizer = Quantizer(program, images[1:])
    assert quantizer.layers[0] == "three"  # the large channel determines its range
    quantizer.write(out)
    quantizer.write(partly, in_float=1)
    expected = outputs(program, images[0])
    errors = [relative(expected, outputs(path, images[0])) for path in (out, partly)]
    assert errors[1] < 0.05 < errors[0]
    assert out.stat().st_size < 0.4 * program.stat().st_size
    model = onnx.load(out)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {p.key: p.value for p in model.metadata_props}["precision"] == "int8"
    quantized = [t for t in model.graph.initializer if len(t.dims) == 4]
    assert {t.data_type for t in quantized} == {onnx.TensorProto.INT8}
    assert max(abs(onnx.numpy_helper.to_array(t).astype(int)).max() for t in quantized) <= 64
    with pytest.raises(ConfigError, match="`calibrate` has no images"):
        Quantizer(program, [])


def comparison(before, after):
    return Comparison("int8", 0, 1, (1, 1), (1.0, 1.0), (before, after))


def test_loss_is_that_of_the_main_metrics():
    before = {"AP": 0.5, "AP50": 0.9, "mask AP": 0.4, "mask AP50": 0.8}
    assert comparison(before, before | {"AP": 0.51, "mask AP": 0.37, "AP50": 0.1}).loss == pytest.approx(0.03)
    assert comparison(before, before | {"AP": 0.6, "mask AP": 0.41}).loss == pytest.approx(-0.01)
    percent = {"aAcc": 90.0, "mIoU": 70.0}
    assert comparison(percent, {"aAcc": 60.0, "mIoU": 69.5}).loss == pytest.approx(0.005)
    assert Comparison("float16", 0, 0, (1, 1), (1.0, 1.0), None).loss is None


@pytest.mark.parametrize(("drops", "kept"), [((0.1, 0.005), 1), ((0.1, 0.09, float("nan")), None)])
def test_layers_remain_in_float_until_the_loss_is_small(program, images, tmp_path, monkeypatch, drops, kept):
    """Of three layers, none, then one (a tenth, or a quarter), then two (half)."""
    values = iter([0.5, *(0.5 - drop for drop in drops)])
    monkeypatch.setattr(reduced, "evaluate", lambda *_: ({"mIoU": next(values)}, images[:1]))
    written = []
    monkeypatch.setattr(Quantizer, "write", lambda self, out, count: (written.append(count), out.write_bytes(b"x")))
    monkeypatch.setattr(reduced, "compare_times", lambda *_: (1.0, 1.0))
    out = tmp_path / "new" / "out.onnx"
    attempts = reduce_file(program, out, images, object(), max_drop=0.01)
    if kept is None:
        with pytest.raises(BackendError, match=r"out.onnx: is not written, since int8 loses nan, more than `max_drop`"):
            list(attempts)
        assert written == [0, 1, 2]
    else:
        assert [done.in_float for done in attempts] == written == [0, 1]
        assert out.is_file()
    assert list(out.parent.iterdir()) == ([out] if kept else [])


def test_files_without_validation_data(program, images, tmp_path):
    done = list(reduce_file(program, tmp_path / "half.onnx"))
    assert len(done) == 1
    assert done[0].metrics is None
    assert min(done[0].seconds) > 0
    assert done[0].sizes == (program.stat().st_size, (tmp_path / "half.onnx").stat().st_size)
