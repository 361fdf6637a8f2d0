"""Scratch memory: who shares it, and that no mode, thread or size of call leaks into the next."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from visionattn.kernels import na2d, workspace
from visionattn.kernels.neighborhood.torch import dense as torch_dense

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh():
    workspace.release()
    yield
    workspace.release()


def test_one_name_shares_memory_across_shapes():
    memory = workspace.scratch(CPU)
    large = memory.take(("a", (4, 6), torch.float32))
    small = memory.take(("a", (3, 2), torch.float32))
    assert small.data_ptr() == large.data_ptr()
    assert memory.take(("a", (4, 6), torch.float32)) is large
    assert memory.take(("b", (4, 6), torch.float32)).data_ptr() != large.data_ptr()
    assert memory.take(("a", (3, 2), torch.float64)).data_ptr() != large.data_ptr()


def test_growing_gives_every_view_the_new_memory():
    memory = workspace.scratch(CPU)
    memory.take(("a", (2, 2), torch.float32))
    large = memory.take(("a", (50,), torch.float32))
    assert memory.take(("a", (2, 2), torch.float32)).data_ptr() == large.data_ptr()


def test_large_buffers_are_not_kept(monkeypatch):
    monkeypatch.setattr(workspace, "KEPT_BYTES", 100)
    memory = workspace.scratch(CPU)
    first, second = (memory.take(("a", (1000,), torch.float32)) for _ in range(2))
    assert first.data_ptr() != second.data_ptr()


def test_threads_have_their_own():
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(workspace.scratch, CPU).result()
    assert other is not workspace.scratch(CPU)


def test_attention_in_threads_and_modes(monkeypatch):
    monkeypatch.setattr(torch_dense, "choose", lambda *problem: None)
    inputs = [torch.randn(3, 1, 12 + i, 17, 2, 8).unbind() for i in range(8)]
    expected = [na2d(*x, 5, backend="reference") for x in inputs]

    def many(i: int) -> torch.Tensor:
        return [na2d(*inputs[i], 5) for _ in range(20)][-1]

    with torch.inference_mode():
        torch.testing.assert_close(many(0), expected[0])
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(many, range(8)), expected, strict=True):
            torch.testing.assert_close(got, want)
    q = inputs[0][0].clone().requires_grad_()  # memory first used under inference mode serves a backward pass
    na2d(q, *inputs[0][1:], 5).sum().backward()
    assert q.grad.isfinite().all()
