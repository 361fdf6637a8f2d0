"""What CUDA graphs need of a model: no value of a tensor is read on the host, in the forward and the backward pass.

The models run with the launches of the Triton kernels, in a process with Triton's interpreter on, for which the tensors
may be on a CPU. The kernels themselves are skipped, so the results are arbitrary. Reading a value is an error.
"""

import os
import subprocess
import sys

import pytest
import torch
from fixtures.reduced import REPRESENTATIVES, family, image, small

from visionattn.backbones import pose_vit, timesformer
from visionattn.layers import pose_attention

READS = ("item", "cpu", "numpy", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WITH_KERNELS = ("dinat", "dinat_hybrid", "dinat_s", "dinat_isotropic", "biformer")
NAMES = [name for name in REPRESENTATIVES if family(name) != "scatterformer"]  # its shapes depend on the data


def forbid_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every method that waits for a value raise an error."""
    for name in READS:

        def read(*args, name=name, **kwargs):
            raise AssertionError(f"Tensor.{name} waits for the device")

        monkeypatch.setattr(torch.Tensor, name, read)
    monkeypatch.setattr(torch, "nonzero", lambda *args, **kwargs: pytest.fail("torch.nonzero waits for the device"))


def pose(model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    if isinstance(model, timesformer.TimeSformer):
        return (torch.ones(1, 1, 4, 4),)
    return (torch.ones(1, 4, 4),) if isinstance(model, pose_vit.PoseVisionTransformer) else ()


@pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_read(name, training, monkeypatch):
    from triton.runtime.interpreter import InterpretedFunction

    launches = []
    monkeypatch.setattr(pose_attention, "needs_fixed_shapes", lambda x: True)  # as while a graph is captured
    monkeypatch.setenv("VISIONATTN_BACKEND", "triton")
    monkeypatch.setattr(InterpretedFunction, "__getitem__", lambda self, grid: lambda *a, **k: launches.append(self))
    rates = {"drop_path_rate": 0.3} if training else {}
    model = small(name, num_classes=3, **rates).train(training)
    x = image(name, 64)
    x = x[..., :64, :64] if not model.default_cfg["fixed_input_size"] else x
    inputs = (x.requires_grad_(), *pose(model))
    model(*inputs)  # tables are made and moved to the device in the first call
    with monkeypatch.context() as patch:
        forbid_reads(patch)
        model(*inputs).sum().backward()
    assert x.grad is not None
    assert bool(launches) == (family(name) in WITH_KERNELS and not name.startswith("vitrpb"))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter is on")
def test_reads_are_noticed(monkeypatch):
    x = torch.ones(3)
    with monkeypatch.context() as patch:
        forbid_reads(patch)
        for read in (lambda: x.sum().item(), lambda: bool(x[0]), lambda: float(x[0]), lambda: x.cpu(), x.nonzero):
            with pytest.raises(AssertionError, match="waits for the device"):
                read()
    assert x.sum().item() == 3


@pytest.mark.skipif(INTERPRETED, reason="the interpreter is on")
def test_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_no_value_is_read", __file__]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
