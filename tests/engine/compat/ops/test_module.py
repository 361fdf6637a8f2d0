"""When the stand-in is installed, what it answers, and that a compiled extension is left alone."""

import inspect
import sys
from types import ModuleType

import pytest
import torch

pytest.importorskip("mmcv")
import mmcv

from visionattn.engine.compat import ops
from visionattn.engine.compat.ops import common, module
from visionattn.errors import BackendError, VisionattnError


@pytest.fixture
def without_extension(monkeypatch):
    """The state before anything provides `mmcv._ext`; what a test puts there is taken away after it."""
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(mmcv, "_ext", None, raising=False)


def extension_file(monkeypatch, folder, text):
    """Make `import mmcv._ext` find a file of ours."""
    (folder / "_ext.py").write_text(text)
    monkeypatch.setattr(mmcv, "__path__", [*mmcv.__path__, str(folder)])


@pytest.mark.usefixtures("without_extension")
def test_install():
    assert not ops.is_compiled()
    assert ops.install() is True
    first = sys.modules["mmcv._ext"]
    assert mmcv._ext is first
    assert ops.install() is True
    assert sys.modules["mmcv._ext"] is first
    assert not ops.is_compiled()


@pytest.mark.usefixtures("without_extension")
def test_loaded_extension_is_left_alone(monkeypatch):
    compiled = ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    assert ops.install() is False
    assert ops.is_compiled()
    assert sys.modules["mmcv._ext"] is compiled


@pytest.mark.usefixtures("without_extension")
def test_extension_on_the_path_is_left_alone(monkeypatch, tmp_path):
    extension_file(monkeypatch, tmp_path, "nms = 'compiled'\n")
    assert ops.install() is False
    assert ops.is_compiled()
    assert sys.modules["mmcv._ext"].nms == "compiled"


@pytest.mark.usefixtures("without_extension")
def test_extension_that_does_not_load_is_reported(monkeypatch, tmp_path):
    extension_file(monkeypatch, tmp_path, "raise ImportError('undefined symbol: _ZN2at4')\n")
    with pytest.raises(BackendError, match=r"cannot be loaded \(undefined symbol: _ZN2at4\).*mmcv-lite") as caught:
        ops.install()
    assert "\n" not in str(caught.value)
    assert "mmcv._ext" not in sys.modules


@pytest.mark.usefixtures("without_extension")
def test_torchvision_that_does_not_fit_is_reported(monkeypatch):
    def broken(name):
        if name == "torchvision.ops":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(ops, "require", broken)
    with pytest.raises(BackendError, match=r"nms does not exist.*pip install --upgrade torch torchvision"):
        ops.install()
    assert "mmcv._ext" not in sys.modules


def test_missing_operator_raises_when_called():
    extension = module.build()
    assert hasattr(extension, "hard_voxelize_forward")
    with pytest.raises(VisionattnError, match=r"hard_voxelize_forward .*mmcv 2\.1 wheel") as caught:
        extension.hard_voxelize_forward(torch.zeros(1), max_points=3)
    assert isinstance(caught.value, BackendError)
    assert "\n" not in str(caught.value)
    for name in ("__path__", "__file__", "_private"):
        with pytest.raises(AttributeError, match=name):
            getattr(extension, name)


def test_versions_are_answered():
    """mmcv's environment report asks for them."""
    extension = module.build()
    assert "visionattn" in extension.get_compiler_version()
    assert "visionattn" in extension.get_compiling_cuda_version()


def test_every_operator_of_a_file_is_served():
    assert len(module.OPERATORS) == sum(len(file.__all__) for file in module._FILES)
    for name, function in module.OPERATORS.items():
        assert inspect.getdoc(function), name


def test_operators_record_no_gradient():
    @common.operator
    def double(x):
        return x * 2

    assert not double(torch.ones(2, requires_grad=True)).requires_grad
