"""`na1d`, `na2d`, `na3d`: semantics, gradients and refusals. The oracle is the dense definition in `reference.py`."""

import pytest
import torch
from neighborhood_cases import FUNCTIONS, assert_agree, make_inputs, random_case, run

from visionattn.errors import BackendError
from visionattn.kernels import backends, na1d, na2d
from visionattn.kernels.neighborhood.torch import dense as torch_dense


@pytest.fixture
def only_tiles(monkeypatch):
    """Small maps are taken whole else."""
    monkeypatch.setattr(torch_dense, "choose", lambda *problem: None)


@pytest.mark.parametrize("block", range(20))
def test_random_sweep_float64(block, poisoned_memory, only_tiles):
    for seed in range(block * 25, block * 25 + 25):
        assert_agree(random_case(seed), torch.float64)


def test_random_sweep_of_small_maps(monkeypatch, poisoned_memory):
    used, choose = [], torch_dense.choose

    def watched(q, *rest):
        used.append(0 if choose(q, *rest) is None else q.shape[0])
        return choose(q, *rest)

    monkeypatch.setattr(torch_dense, "choose", watched)
    for seed in range(2000, 2060):
        case = random_case(seed)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            changes = dict(heads_kv=case["heads"], value_dim=None, dilation=[1] * case["rank"], extra=0)
            assert_agree(case | changes, dtype)
    assert used.count(1) > 10
    assert sum(images > 1 for images in used) > 10


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("size", [7, 12])
def test_results_stay_as_they_are(size, heads):
    """A result is no view of the memory that the next call uses, and is contiguous."""
    x, y = torch.randn(2, 1, size, size, heads, 16)
    first = na2d(x, x, x, 7)
    kept = first.clone()
    na2d(y, y, y, 7)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    assert first.is_contiguous()


def test_scratch_memory_carries_nothing_over(only_tiles):
    """Large, small, and large again: what a call leaves in kept buffers does not show in the next."""
    cases = [random_case(seed) for seed in (3, 4, 5, 3, 5, 4)]
    for case in cases:
        assert_agree(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_sweep_by_type(dtype, poisoned_memory):
    for seed in range(1000, 1030):
        assert_agree(random_case(seed), dtype)


def test_large_map_in_chunks(monkeypatch, poisoned_memory):
    from visionattn.kernels.neighborhood.torch import passes as torch_passes

    monkeypatch.setattr(torch_passes, "CHUNK_SCORES", 5_000)
    monkeypatch.setattr(torch_passes, "PASS_NUMBERS", 20_000)
    case = random_case(0) | dict(
        rank=2, shape=[37, 41], kernel=[7, 5], stride=[1, 1], dilation=[2, 3], causal=[False, False],
        batch=3, rpb=True, heads=2, heads_kv=2,
    )  # fmt: skip
    assert_agree(case, torch.float64)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradcheck(rank):
    case = random_case(7, rank) | dict(
        shape=[5] * rank, kernel=[3] * rank, stride=[1] * rank, dilation=[1] * rank, causal=[False] * rank,
        rpb=True, extra=2, batch=1, heads=2, heads_kv=1, dim=2, value_dim=3,
    )  # fmt: skip
    inputs = make_inputs(case, torch.float64)

    def call(*values):
        return FUNCTIONS[rank](
            **dict(zip(inputs, values, strict=True)), kernel_size=3, return_lse=True, backend="torch"
        )

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=rank > 1)


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "dilation", "causal", "position", "attended"),
    [  # worked by hand from the definition
        (10, 3, 1, 4, False, 0, None),  # groups 2 and 3 have two positions only: refused
        (10, 3, 1, 3, False, 0, [0, 3, 6]),
        (10, 3, 1, 3, False, 9, [3, 6, 9]),
        (10, 3, 1, 3, False, 4, [1, 4, 7]),
        (6, 4, 1, 1, False, 3, [1, 2, 3, 4]),
        (6, 4, 2, 1, False, 3, [1, 2, 3, 4]),
        (6, 4, 2, 1, False, 4, [2, 3, 4, 5]),
        (8, 4, 4, 1, False, 5, [4, 5, 6, 7]),
        (8, 3, 1, 1, True, 0, [0]),
        (8, 3, 1, 1, True, 5, [3, 4, 5]),
        (8, 3, 3, 1, True, 3, [3]),
        (8, 3, 3, 1, True, 4, [3, 4]),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_windows_by_hand(backend, length, kernel, stride, dilation, causal, position, attended):
    query = torch.zeros(1, length, 1, 1)
    value = torch.eye(length)[None, :, None, :]  # the output is the attention row itself
    if attended is None:
        with pytest.raises(ValueError, match="kernel_size"):
            na1d(query, query, value, kernel, stride, dilation, causal, backend=backend)
        return
    out = na1d(query, query, value, kernel, stride, dilation, causal, backend=backend)
    assert out[0, position, 0].nonzero().flatten().tolist() == attended
    torch.testing.assert_close(out[0, position, 0, attended], torch.full((len(attended),), 1 / len(attended)))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_bias_reads_the_entry_of_the_offset(backend):
    zero = torch.zeros(1, 9, 9, 1, 4)
    rpb = torch.zeros(1, 5, 5)
    rpb[0, 2 + 1, 2 - 1] = 50.0  # one row below, one column to the left
    value = torch.arange(81.0).reshape(1, 9, 9, 1, 1).expand(1, 9, 9, 1, 4)
    out = na2d(zero, zero, value, 3, rpb=rpb, backend=backend)
    assert out[0, 4, 4, 0, 0].item() == pytest.approx(5 * 9 + 3)
    assert out[0, 0, 4, 0, 0].item() == pytest.approx(1 * 9 + 3)
    dilated = na2d(zero, zero, value, 3, dilation=3, rpb=rpb, backend=backend)
    assert dilated[0, 4, 4, 0, 0].item() == pytest.approx(7 * 9 + 1)  # offsets count steps of the dilation


def test_zero_scale_is_not_the_default():
    q, k = torch.randn(2, 1, 9, 1, 4).unbind()
    value = torch.eye(9)[None, :, None, :]
    assert torch.allclose(na1d(q, k, value, 3, scale=0.0)[0, 4, 0, 3:6], torch.tensor(1 / 3))


def test_non_contiguous_inputs():
    qkv = torch.randn(2, 11, 3, 2, 8, 13, dtype=torch.float64).permute(2, 0, 1, 5, 3, 4)
    out = na2d(*qkv, kernel_size=(3, 5), dilation=(2, 1), backend="torch")
    expected = na2d(*(x.contiguous() for x in qkv), kernel_size=(3, 5), dilation=(2, 1), backend="reference")
    torch.testing.assert_close(out, expected)
    shared = torch.randn(1, 11, 13, 1, 8, dtype=torch.float64).expand(2, -1, -1, 2, -1).requires_grad_()
    out = na2d(shared, shared, shared, 3, backend="torch")
    (gradient,) = torch.autograd.grad(out.square().sum(), shared)
    expected = na2d(shared, shared, shared, 3, backend="reference")
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), shared)[0])


def test_same_bits_twice():
    case = random_case(3, 2)
    inputs = make_inputs(case, torch.float32)
    first, second = run(case, inputs, "torch"), run(case, inputs, "torch")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compile_without_graph_break():
    q, k, v = torch.randn(3, 1, 8, 8, 2, 8).unbind()
    rpb = torch.randn(2, 5, 5)

    def block(q, k, v, rpb):
        return na2d(q * 2, k, v, 3, dilation=2, rpb=rpb) + 1

    inputs = [x.requires_grad_() for x in (q, k, v, rpb)]
    eager = torch.autograd.grad(block(*inputs).square().sum(), inputs)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(eager, torch.autograd.grad(compiled(*inputs).square().sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_export():
    class Block(torch.nn.Module):
        def forward(self, x):
            return na2d(x, x, x, 3)

    x = torch.randn(1, 8, 8, 2, 8)
    torch.testing.assert_close(torch.export.export(Block(), (x,)).module()(x), Block()(x))


@pytest.mark.parametrize("return_lse", [True, False])
@pytest.mark.parametrize("rpb", [True, False])
def test_operator_registration(rpb, return_lse):
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 6, 7, 2, 4).unbind())
    table = torch.randn(2, 5, 5, requires_grad=True) if rpb else None
    geometry = ([3, 3], [1, 1], [2, 1], [False, False], 0.5, return_lse)
    torch.library.opcheck(torch.ops.visionattn.neighborhood_attention.default, (q, k, v, table, *geometry))


def test_autocast():
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 9, 9, 2, 8).unbind())
    rpb = torch.randn(2, 5, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = na2d(q, k, v, 3, rpb=rpb)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), na2d(q, k, v, 3, rpb=rpb), atol=5e-2, rtol=0)
    out.float().sum().backward()
    assert q.grad.dtype == rpb.grad.dtype == torch.float32


def test_empty_batch():
    x = torch.randn(0, 8, 8, 2, 4)
    assert na2d(x, x, x, 3).shape == x.shape


X = torch.zeros(1, 8, 8, 4, 6)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(kernel_size=9), ["`kernel_size`", "got kernel_size=(9, 9)", "axis 0, 8"]),
        (dict(kernel_size=3, dilation=3), ["`dilation`", "dilation=(3, 3)", "axis 0, 8"]),
        (dict(kernel_size=3, stride=4), ["`stride`", "got (4, 4)", "(3, 3)"]),
        (dict(kernel_size=3, stride=0), ["`stride`", "got (0, 0)"]),
        (dict(kernel_size=0), ["`kernel_size`", "got (0, 0)", "at least 1"]),
        (dict(kernel_size=3, dilation=0), ["`dilation`", "got (0, 0)"]),
        (dict(kernel_size=(3, 3, 3)), ["`kernel_size`", "got (3, 3, 3)", "2 axes"]),
        (dict(kernel_size=3.0), ["`kernel_size`", "got 3.0", "int"]),
        (dict(kernel_size=3, is_causal=1), ["`is_causal`", "got 1", "bool"]),
        (dict(query=X[0]), ["`query`", "[8, 8, 4, 6]", "5 dimensions"]),
        (dict(key=X.double()), ["key", "float64", "float32"]),
        (dict(key=X[:, :7]), ["`key`", "got [1, 7, 8]", "[1, 8, 8]"]),
        (dict(key=X[..., :5]), ["`key`", "head_dim of `query`, 6", "got 5"]),
        (dict(key=X[..., :3, :]), ["`value`", "as `key`, 3", "got 4"]),
        (dict(key=X[..., :3, :], value=X[..., :3, :]), ["`key`", "4 heads", "got 3"]),
        (dict(key=X.to("meta")), ["key", "meta", "cpu"]),
        (dict(query=X.long(), key=X.long(), value=X.long()), ["query", "int64", "float32"]),
        (dict(rpb=torch.zeros(4, 5, 7)), ["`rpb`", "got [4, 5, 7]", "[4, 5, 5]"]),
        (dict(kernel_size=4, rpb=torch.zeros(4, 7, 7)), ["rpb", "odd"]),
        (dict(is_causal=True, rpb=torch.zeros(4, 5, 5)), ["rpb", "is_causal"]),
        (dict(additional_keys=X[:, 0]), ["additional_values", "together"]),
        (dict(additional_keys=X[:, 0], additional_values=X[:, 0, :2]), ["additional_values", "extra"]),
    ],
)
def test_bad_input_names_the_argument(kwargs, words):
    arguments = dict(query=X, key=X, value=X, kernel_size=3) | kwargs
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        na2d(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_named_backend_is_never_replaced(monkeypatch):
    with pytest.raises(BackendError, match=r"`backend` must be .* got 'cuda'"):
        na2d(X, X, X, 3, backend="cuda")
    monkeypatch.setenv("VISIONATTN_BACKEND", "nonsense")
    with pytest.raises(BackendError, match="nonsense"):
        na2d(X, X, X, 3)
    assert na2d(X, X, X, 3, backend="torch").shape == X.shape


def test_explain_gives_reasons():
    choices = {c.backend: c for c in backends.explain("na2d", "cpu", torch.float32)}
    assert choices["torch"].can_run
    assert choices["reference"].can_run
    assert backends.select("na2d", torch.device("cpu"), torch.float32) == "torch"
    refused = backends.explain("na2d", "cpu", torch.int32)
    assert not any(c.can_run for c in refused)
    assert "int32" in refused[0].reason
    with pytest.raises(ValueError, match="na4d"):
        backends.explain("na4d")


def test_recorded_operator_cases(shared_dir):
    """Outputs and gradients of the published library, forward and backward."""
    paths = sorted((shared_dir / "parity" / "na").glob("natten_op_*.pt"))
    assert paths
    for path in paths:
        fixture = torch.load(path, weights_only=True)
        for backend in ("torch", "reference"):
            q, k, v = (fixture[name].clone().requires_grad_() for name in "qkv")
            out, lse = FUNCTIONS[len(fixture["shape"])](
                q, k, v, fixture["kernel_size"], fixture["stride"], fixture["dilation"], fixture["is_causal"],
                additional_keys=fixture["extra_k"], additional_values=fixture["extra_v"],
                return_lse=True, backend=backend,
            )  # fmt: skip
            (out * fixture["dout"]).sum().backward()
            pairs = dict(out=out, lse=lse, dq=q.grad, dk=k.grad, dv=v.grad)
            for name, got in pairs.items():
                error = (got - fixture[name]).abs().max().item()
                assert error <= 1e-5, f"{path.name} {backend} {name}: {error:.2e}"
