"""``backend="natten"`` with a module that stands in for the NATTEN library and records its calls."""

import sys
from types import ModuleType

import pytest
import torch

from visionattn.errors import BackendError
from visionattn.kernels import backends, na1d, na2d, natten


@pytest.fixture
def library(monkeypatch):
    """A module ``natten`` of version 0.21 that computes with the reference, also on the CPU."""
    module = ModuleType("natten")
    module.__spec__ = sys.__spec__
    module.__version__ = "0.21.6"
    module.calls = []

    def function(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None,
                 additional_keys=None, additional_values=None):  # fmt: skip
        options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation, is_causal=is_causal, scale=scale,
                       additional_keys=additional_keys, additional_values=additional_values)  # fmt: skip
        module.calls.append(options)
        return na2d(query, key, value, **options, backend="reference")

    module.na2d = function
    monkeypatch.setitem(sys.modules, "natten", module)
    monkeypatch.setattr(natten, "DEVICES", ("cpu", "cuda"))
    return module


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [x.requires_grad_() for x in torch.randn(3, 2, 8, 9, 2, 4).to(dtype).unbind()]


def test_calls_the_library(library):
    q, k, v = inputs()
    extra = torch.randn(2, 3, 2, 4)
    options = dict(kernel_size=(3, 4), stride=(2, 1), dilation=(2, 1), is_causal=(False, True), scale=0.3)
    extras = dict(additional_keys=extra, additional_values=extra)
    out = na2d(q, k, v, **options, **extras, backend="natten")
    (call,) = library.calls
    assert {name: call[name] for name in options} == options
    assert call["additional_keys"] is extra
    torch.testing.assert_close(out, na2d(q, k, v, **options, **extras))
    assert all(x is not None for x in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("backend", [None, "auto"])
def test_used_automatically_only_if_asked_for(backend, library, monkeypatch):
    q, k, v = inputs()
    na2d(q, k, v, 3, backend=backend)
    assert not library.calls
    monkeypatch.setenv("VISIONATTN_NATTEN", "1")
    na2d(q, k, v, 3, backend=backend)
    assert len(library.calls) == 1
    rpb = torch.zeros(2, 5, 5)
    na2d(q, k, v, 3, rpb=rpb, backend=backend)
    na2d(q, k, v, 3, return_lse=True, backend=backend)
    na2d(*inputs(torch.float64), 3, backend=backend)
    na2d(q, k, v, 3, backend="torch")
    assert len(library.calls) == 1


def test_what_it_cannot_run(library, monkeypatch):
    q, k, v = inputs()
    with pytest.raises(BackendError, match="no relative position bias"):
        na2d(q, k, v, 3, rpb=torch.zeros(2, 5, 5), backend="natten")
    with pytest.raises(BackendError, match="log-sum-exp"):
        na2d(q, k, v, 3, return_lse=True, backend="natten")
    with pytest.raises(BackendError, match="at least 2"):
        na2d(q, k, v, (3, 1), backend="natten")
    with pytest.raises(BackendError, match="`scale` of 0"):
        na2d(q, k, v, 3, scale=0.0, backend="natten")
    with pytest.raises(BackendError, match="float64"):
        na2d(*inputs(torch.float64), 3, backend="natten")
    monkeypatch.setattr(library, "__version__", "0.17.5")
    with pytest.raises(BackendError, match=r"older than 0\.20"):
        na2d(q, k, v, 3, backend="natten")
    monkeypatch.setattr(natten, "DEVICES", ("cuda",))
    with pytest.raises(BackendError, match="needs a CUDA device, got cpu"):
        na2d(q, k, v, 3, backend="natten")
    assert not library.calls


def test_not_installed(monkeypatch):
    from visionattn.compat import natten as interface

    monkeypatch.setattr(natten, "DEVICES", ("cpu",))
    if interface.registration.installed_version() is not None:
        pytest.skip("NATTEN is installed")
    x = torch.zeros(1, 6, 1, 4)
    for registered in (False, True):  # the interface of this package is not the library
        if registered:
            interface.install()
        try:
            with pytest.raises(BackendError, match="not installed"):
                na1d(x, x, x, 3, backend="natten")
        finally:
            interface.uninstall()
    choice = {c.backend: c for c in backends.explain("na1d", "cpu", torch.float32)}["natten"]
    assert not choice.can_run
    assert "not installed" in choice.reason
