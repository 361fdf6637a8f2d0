"""What is written is loaded again, by a process of its own too, and gives the model's numbers."""

import importlib.util
import json
import subprocess
import sys

import pytest
import timm
import torch

from visionattn.errors import BackendError, CheckpointError, ConfigError, MissingDependencyError
from visionattn.inference.export import Description, Network, export_model, timm_network
from visionattn.inference.export.network import image_size

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs onnx and onnxscript")
SHALLOW = {"depths": (1, 1, 1, 1), "dilations": [[1], [1], [1], [1]], "num_classes": 5}


def shallow(**options) -> Network:
    torch.manual_seed(0)
    return Network(timm.create_model("dinat_pico", **(SHALLOW | options)).eval())


@pytest.fixture(scope="module")
def model():
    import visionattn  # noqa: F401  registers dinat_pico

    return shallow()


def test_program_of_a_process_that_knows_no_model_code(model, tmp_path):
    done = export_model(model, tmp_path / "a.pt2", (64, 96), dynamic=("batch",))
    assert (done.inputs, done.outputs, done.dynamic) == ((2, 3, 64, 96), [(2, 5)], ("batch",))
    assert [shape[0] for shape in done.checked] == [2, 1, 3]
    assert done.difference < 1e-5
    image = torch.randn(4, 3, 64, 96)
    torch.save({"image": image, "expected": model(image)[0].detach()}, tmp_path / "case.pth")
    code = (
        "import torch, visionattn; case = torch.load('case.pth'); about = {'visionattn.json': ''};"
        "program = torch.export.load('a.pt2', extra_files=about).module();"
        "torch.testing.assert_close(program(case['image'])[0], case['expected']); print(about['visionattn.json'])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout)["input"] == [2, 3, 64, 96]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt2", "case.pth"]


def test_any_size(tmp_path):
    network = shallow(features_only=True, out_indices=(0, 1))
    done = export_model(network, tmp_path / "a.pt2", (96, 128), dynamic=("size",))
    assert done.outputs == [(1, 32, 24, 32), (1, 64, 12, 16)]
    assert (1, 3, 128, 192) in done.checked
    program = torch.export.load(tmp_path / "a.pt2").module()
    image = torch.randn(1, 3, 75, 201)
    for one, other in zip(program(image), network(image), strict=True):
        torch.testing.assert_close(one, other)


def test_one_that_computes_something_else_is_not_written(tmp_path):
    class Fickle(torch.nn.Module):
        def forward(self, x):
            return x * (2 if torch.compiler.is_compiling() else 3)

    with pytest.raises(BackendError, match="differs from the model"):
        export_model(Network(Fickle()), tmp_path / "a.pt2", (8, 8))
    assert not list(tmp_path.iterdir())


def test_one_that_cannot_be_followed_is_told_in_a_line(tmp_path):
    class Erratic(torch.nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(BackendError, match="cannot trace Erratic") as caught:
        export_model(Network(Erratic()), tmp_path / "a.pt2", (8, 8))
    assert "\n" not in str(caught.value)


class Bessel(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


@needs_onnx
def test_a_layer_without_onnx_operators_is_named(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), Bessel()).eval()
    words = r"cannot write Sequential \(1 \(Bessel\) uses the operator bessel_j0, which has no ONNX implementation\)"
    with pytest.raises(BackendError, match=words):
        export_model(Network(model), tmp_path / "a.onnx", (8, 8))
    assert not list(tmp_path.iterdir())


def test_normalisation_is_part_of_the_network(tmp_path):
    network = Network(
        torch.nn.Identity(), mean=[1.0, 2, 3], std=[2.0, 4, 5], description=Description("detection", ("a",))
    )
    image = torch.rand(1, 3, 8, 8) * 255
    expected = (image - torch.tensor([1.0, 2, 3])[:, None, None]) / torch.tensor([2.0, 4, 5])[:, None, None]
    export_model(network, tmp_path / "a.pt2", (8, 8))
    torch.testing.assert_close(torch.export.load(tmp_path / "a.pt2").module()(image)[0], expected)


@needs_onnx
def test_onnx(model, tmp_path):
    import onnx

    done = export_model(model, tmp_path / "a.onnx", (64, 64), dynamic=("batch",))
    assert done.difference < 1e-4
    stored = onnx.load(tmp_path / "a.onnx")
    assert {entry.domain for entry in stored.opset_import} <= {"", "ai.onnx"}
    assert {p.key: p.value for p in stored.metadata_props}["task"] == "features"


def test_without_onnx_the_command_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match="pip install onnx onnxscript onnxruntime"):
        export_model(model, tmp_path / "a.onnx", (64, 64))


def test_weights_of_a_timm_model(tmp_path):
    source = timm.create_model("resnet10t", num_classes=3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = timm_network("resnet10t", tmp_path / "w.pth", num_classes=3)
    torch.testing.assert_close(network.model.fc.weight, source.fc.weight)
    with pytest.raises(CheckpointError, match="does not fit resnet10t"):
        timm_network("resnet10t", tmp_path / "w.pth", num_classes=4)
    with pytest.raises(CheckpointError, match="checkpoint file does not exist"):
        timm_network("resnet10t", tmp_path / "gone.pth")
    with pytest.raises(ConfigError, match="resnet10x"):
        timm_network("resnet10x")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "a.pth"}, "must end in .pt2 or .onnx"),
        ({"size": (0, 8)}, "`size` must be at least 1"),
        ({"batch": 0}, "`batch` must"),
        ({"dynamic": ("width",)}, "`dynamic` must be batch or size, got 'width'"),
        ({"opset": 18}, "`opset` applies to .onnx files only"),
        pytest.param({"path": "a.onnx", "opset": 11}, "`opset` must be in .18, .*, got 11", marks=needs_onnx),
    ],
)
def test_arguments_out_of_range(options, words, tmp_path):
    arguments = {"path": "a.pt2", "size": (8, 8)} | options
    with pytest.raises(ConfigError, match=words):
        export_model(Network(torch.nn.Identity()), **(arguments | {"path": tmp_path / arguments["path"]}))


@pytest.mark.parametrize(
    ("steps", "prepare", "size"),
    [
        ([{"type": "Resize", "scale": (320, 240), "keep_ratio": True}], {"pad_size_divisor": 32}, (256, 320)),
        (
            [{"type": "mmseg.Resize", "scale": (2048, 512), "keep_ratio": True}],
            {"test_cfg": {"size_divisor": 32}},
            (512,) * 2,
        ),
        ([{"type": "Resize", "scale": (96, 64)}], None, (64, 96)),
        ([{"type": "Resize", "scale": 256}, {"type": "visionattn.TenCrop", "size": 224}], {}, (224, 224)),
        ([{"type": "LoadImageFromFile"}], {}, None),
    ],
)
def test_size_of_the_test_images(steps, prepare, size):
    dataset = {"type": "ConcatDataset", "dataset": {"pipeline": steps}}
    config = {"model": {"data_preprocessor": prepare}, "test_dataloader": {"dataset": dataset}}
    assert image_size(config) == size


def test_timm_names_have_the_size_of_their_cfg():
    assert timm_network("resnet10t").size == (176, 176)


@pytest.mark.parametrize("name", ["biformer_tiny", "biformer_stl"])
def test_regions_without_autocast_do_not_enter_a_program(name, tmp_path):
    """They cannot be read back from a file."""
    model = timm.create_model(name, embed_dim=8, depths=(1, 1, 1, 1), head_dim=8, num_classes=3).eval()
    assert export_model(Network(model), tmp_path / "a.pt2", (64, 64)).difference <= 1e-5


def test_sparse_convolutions_are_refused_in_words(tmp_path):
    model = timm.create_model(
        "scatterformer_pico", embed_dim=16, depths=(1, 1), stem_depth=1, num_heads=2, pool_heads=2, window_size=4
    )
    with pytest.raises(BackendError, match="cannot be traced or exported, since their shapes depend on the voxels"):
        export_model(Network(model.eval()), tmp_path / "a.pt2", (32, 32))
