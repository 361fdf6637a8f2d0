"""How the Triton kernels are launched: settings, device, specializations. A fake driver stands in for the GPU."""

import pytest
import torch
from fixtures.fake_gpu import CURRENT, TENSORS

from visionattn.kernels import bilevel_routing_attention, na2d, scattered_linear_attention


def _map(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(*shape).to(dtype).requires_grad_() for _ in range(3)]


def _routing(dtype=torch.float32):
    return bilevel_routing_attention(*_map(1, 8, 8, 2, 16, dtype=dtype), 4, 2, backend="triton")


def _scattered(dtype=torch.float32):
    q, k, v = _map(600, 2, 16, dtype=dtype)
    return scattered_linear_attention(q, k, v, torch.tensor([0, 100, 600]), backend="triton")


def _neighborhood(dtype=torch.float32):
    return na2d(*_map(1, 8, 8, 2, 16, dtype=dtype), 3, backend="triton")


CALLS = {"routing": _routing, "scattered": _scattered, "neighborhood": _neighborhood}


@pytest.mark.parametrize("name", CALLS)
def test_launches_on_the_device_of_the_tensors(name, fake_gpu):
    """The current device may be another one than that of the tensors."""
    out = CALLS[name]()
    forward = len(fake_gpu.launches)
    out.sum().backward()
    assert 0 < forward < len(fake_gpu.launches)
    assert {launched.device for launched in fake_gpu.launches} == {TENSORS}
    assert fake_gpu.current == CURRENT


@pytest.fixture
def precision():
    """Set the precision of float32 products by the new API of PyTorch, which later rejects the old one."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("needs PyTorch 2.9")
    before = matmul.fp32_precision
    yield lambda value: setattr(matmul, "fp32_precision", value)
    matmul.fp32_precision = before


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_float32_precision_set_by_the_new_api(name, value, precision, fake_gpu):
    precision(value)
    CALLS[name]().sum().backward()
    other = {"ieee": "tf32", "tf32": "ieee"}[value]
    keys = [launched.key for launched in fake_gpu.launches]
    assert any(f"'{value}'" in key for key in keys)
    assert not any(f"'{other}'" in key for key in keys)
    CALLS[name](torch.bfloat16).sum().backward()


@pytest.mark.parametrize(("value", "expected"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
def test_float32_precision_set_by_the_old_api(value, expected):
    from visionattn.kernels.precision import float32_precision

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(value)
        assert float32_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)
