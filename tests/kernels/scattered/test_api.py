"""`scattered_linear_attention`: semantics, gradients and refusals. The oracle is the definition in `reference.py`."""

import pytest
import torch
from scattered_cases import assert_agree, make_inputs, offsets_of, random_case, run

from visionattn.errors import BackendError
from visionattn.kernels import backends, scattered_linear_attention

BACKENDS = ["torch", "reference"]


def inputs(lengths, heads=2, dim=4, value_dim=None, dtype=torch.float32):
    """Queries, keys and values of these windows, with gradients, and the offsets."""
    generator = torch.Generator().manual_seed(sum(lengths) + dim)
    tokens = sum(lengths)
    q, k = torch.rand(2, tokens, heads, dim, generator=generator, dtype=dtype).unbind()
    v = torch.randn(tokens, heads, value_dim or dim, generator=generator, dtype=dtype)
    return *(x.requires_grad_() for x in (q, k, v)), offsets_of(lengths)


@pytest.mark.parametrize("block", range(4))
def test_random_sweep_float64(block, poisoned_memory):
    for seed in range(block * 50, block * 50 + 50):
        assert_agree(random_case(seed), torch.float64, "torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_sweep_by_type(dtype, poisoned_memory):
    for seed in range(1000, 1040):
        assert_agree(random_case(seed), dtype, "torch")


def test_many_small_blocks(monkeypatch, poisoned_memory):
    """Windows of one class in several blocks, windows read in place, and those in several pieces."""
    from visionattn.kernels.scattered.torch import long as torch_long
    from visionattn.kernels.scattered.torch import plan as torch_plan

    monkeypatch.setattr(torch_plan, "LONGEST", 20)
    monkeypatch.setattr(torch_plan, "BLOCK_TOKENS", 30)
    monkeypatch.setattr(torch_long, "PIECE_TOKENS", 16)
    for seed in range(300, 360):
        assert_agree(random_case(seed), torch.float64, "torch")


@pytest.mark.parametrize("shape", [(3, 9, 9), (9, 3, 3), (9, 3, 30)])
def test_both_ways_of_a_window(shape):
    """By pairs of tokens and by matrices; the first length is computed the first way, the others the second."""
    from visionattn.kernels.scattered.torch.products import _pairs_are_fewer

    length, dim, value_dim = shape
    assert _pairs_are_fewer(length, dim, value_dim) == (length == 3)
    case = random_case(1) | dict(lengths=[length] * 4, dim=dim, value_dim=value_dim)
    assert_agree(case, torch.float64, "torch")


def test_blocks_are_small(monkeypatch):
    """The copies of all windows never exist at once, and padding is at most a fifth of a window."""
    from visionattn.kernels.scattered.torch.plan import BLOCK_TOKENS, make_plan

    lengths = [n % 500 + 1 for n in range(0, 40_000, 97)] + [0, 600, 513, 512]
    blocks, long = make_plan(offsets_of(lengths))
    seen = []
    for block in blocks:
        assert block.token.numel() <= BLOCK_TOKENS
        assert block.token.shape[1] * 0.8 <= (block.token[:, -1] - block.token[:, 0] + 1).min()
        seen.append(block.token if block.real is None else block.token[block.real])
        assert torch.equal(block.destinations(-1)[block.destinations(-1) >= 0], seen[-1].flatten())
    seen = torch.cat([x.flatten() for x in seen] + [torch.arange(start, stop) for start, stop in long])
    assert torch.equal(seen.sort().values, torch.arange(sum(lengths)))
    assert sorted(stop - start for start, stop in long) == [513, 600]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    q, k, v, offsets = inputs([3, 0, 1, 9], dim=3, value_dim=2, dtype=torch.float64)

    def call(q, k, v):
        return scattered_linear_attention(q, k, v, offsets, backend=backend)

    assert torch.autograd.gradcheck(call, (q, k, v))


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_by_hand(backend):
    """One head, two channels: a token takes the mean of its window's values whose key has the channel of its query."""
    q = torch.tensor([[1.0, 0], [0, 3], [1, 0], [2, 2], [0, 0]])[:, None]
    k = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0], [0, 1]])[:, None]
    v = torch.tensor([[2.0], [4], [10], [20], [40]])[:, None]
    out = scattered_linear_attention(q, k, v, torch.tensor([0, 3, 3, 5]), backend=backend)
    expected = torch.tensor([3.0, 10, 3, 30, 0])
    torch.testing.assert_close(out.flatten(), expected)
    assert out[4] == 0  # exactly


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_do_not_see_each_other(backend):
    """Whatever another window holds; both in one block of the same length and in others."""
    q, k, v, offsets = inputs([5, 7, 5, 40, 5], dim=8)
    with torch.no_grad():
        expected = scattered_linear_attention(q, k, v, offsets, backend=backend)
        k[5:12], v[12:17], q[57:62] = torch.inf, torch.nan, torch.nan
        out = scattered_linear_attention(q, k, v, offsets, backend=backend)
    assert torch.equal(out[:5], expected[:5])
    assert torch.equal(out[17:57], expected[17:57])
    assert not out[5:17].isfinite().any()
    assert not out[57:].isfinite().any()


def test_order_in_a_window_does_not_matter():
    q, k, v, offsets = inputs([30, 600, 3], dim=8, dtype=torch.float64)
    order = torch.cat([torch.randperm(n) + start for n, start in ((30, 0), (600, 30), (3, 630))])
    out = scattered_linear_attention(q, k, v, offsets)
    torch.testing.assert_close(scattered_linear_attention(q[order], k[order], v[order], offsets), out[order])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [0, 1, 0]])
def test_no_tokens_and_one(lengths, backend):
    q, k, v, offsets = inputs(lengths)
    out = scattered_linear_attention(q, k, v, offsets, backend=backend)
    out.sum().backward()
    assert out.shape == v.shape
    assert all(x.grad.shape == x.shape for x in (q, k, v))
    torch.testing.assert_close(out, v.detach(), atol=1e-5, rtol=1e-5)  # alone, a token's output is its value


def test_crowded_window_among_small_ones():
    lengths = [3] * 20 + [50_000] + [0, 17]
    q, k, v, offsets = inputs(lengths, heads=1, dim=8)
    out = scattered_linear_attention(q, k, v, offsets)
    gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = scattered_linear_attention(*wide, offsets, backend="reference")
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)
    for got, want in zip(gradients, torch.autograd.grad(expected.square().sum(), wide), strict=True):
        torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layouts(dtype):
    """Parts of one projection, heads behind tokens, and a gradient with strides of zero."""
    qkv = torch.rand(64, 3, 2, 6).to(dtype)
    offsets = offsets_of([20, 1, 43])
    q, k, v = (x.requires_grad_() for x in qkv.unbind(1))
    other = v.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    out = scattered_linear_attention(q, k, v, offsets)
    assert out.is_contiguous()
    for value in (v, other):
        got = torch.autograd.grad(scattered_linear_attention(q, k, value, offsets).sum(), (q, k, value))
        want = torch.autograd.grad(
            scattered_linear_attention(q, k, value, offsets, backend="reference").sum(), (q, k, value)
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=2e-3 if dtype == torch.float16 else 1e-6, rtol=1e-3)


def test_same_bits_twice():
    tensors, others = make_inputs(random_case(5), torch.float32)
    first, second = run(tensors, others, "torch"), run(tensors, others, "torch")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_results_keep_no_scratch_memory():
    """The next call does not overwrite a result."""
    q, k, v, offsets = inputs([4, 4])
    with torch.no_grad():
        out = scattered_linear_attention(q, k, v, offsets)
        kept = out.clone()
        scattered_linear_attention(q, k, v + 1, offsets)
    assert torch.equal(out, kept)


def test_compile_without_graph_break():
    q, k, v, offsets = inputs([3, 0, 30], dim=8)

    def block(q, k, v, offsets):
        return scattered_linear_attention(q * 2, k, v, offsets) + 1

    eager = torch.autograd.grad(block(q, k, v, offsets).square().sum(), (q, k, v))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(eager, torch.autograd.grad(compiled(q, k, v, offsets).square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="got 0 and 33"):
        compiled(q[:20], k[:20], v[:20], offsets)


def test_export_with_any_number_of_tokens_and_windows():
    class Block(torch.nn.Module):
        def forward(self, x, offsets):
            return scattered_linear_attention(x, x, x, offsets)

    tokens, entries = torch.export.Dim("tokens"), torch.export.Dim("entries")
    x, offsets = torch.rand(12, 2, 4), offsets_of([5, 7])
    program = torch.export.export(Block(), (x, offsets), dynamic_shapes=({0: tokens}, {0: entries}))
    x, offsets = torch.rand(20, 2, 4), offsets_of([5, 7, 8])
    torch.testing.assert_close(program.module()(x, offsets), Block()(x, offsets))


@pytest.mark.parametrize("value_dim", [4, 5])
def test_operator_registration(value_dim):
    q, k, v, offsets = inputs([3, 0, 8], value_dim=value_dim)
    torch.library.opcheck(torch.ops.visionattn.scattered_linear_attention.default, (q, k, v, offsets, 1e-6))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    q, k, v, offsets = inputs([3, 0, 30], dim=8)
    expected = scattered_linear_attention(q, k, v, offsets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = scattered_linear_attention(q, k, v, offsets, backend=backend)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=0)
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_meta_tensors():
    q = torch.empty(7, 2, 4, device="meta")
    offsets = torch.empty(3, dtype=torch.int64, device="meta")
    assert scattered_linear_attention(q, q, q[..., :3], offsets, backend="torch").shape == (7, 2, 3)


def test_published_kernels(shared_dir):
    """Recorded values of the authors' kernels; they write un-normalised sums, so the output is their quotient."""
    path = shared_dir / "parity" / "scatterformer" / "scatterformer_sla_kernels.pt"
    case = torch.load(path, weights_only=True)
    q, k, v = (case["inputs"][name] for name in "qkv")
    offsets = torch.cat((case["inputs"]["offsets"], torch.tensor([len(q)])))
    for backend in BACKENDS:
        out = scattered_linear_attention(q, k, v, offsets, backend=backend)
        expected = case["outputs"]["y_fused"] / (case["outputs"]["z_fused"] + 1e-6)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        # Their gradients are those of the numerator: the output times its denominator.
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        numerator = torch.cat(
            [
                scattered_linear_attention(a, b, c, offsets_of([len(a)]), backend=backend)
                * (torch.einsum("nhd,hd->nh", a, b.sum(0))[..., None] + 1e-6)
                for a, b, c in zip(*(x.split(offsets.diff().tolist()) for x in leaves), strict=True)
            ]
        )
        torch.testing.assert_close(numerator, case["outputs"]["y"], atol=2e-4, rtol=1e-5)
        gradients = torch.autograd.grad(numerator, leaves, case["inputs"]["grad_out"])
        for name, gradient in zip("qkv", gradients, strict=True):
            expected = case["grads"][name]
            torch.testing.assert_close(gradient, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_published_layer(shared_dir):
    """The authors' layer: a projection, ReLU of queries and keys, the operator, a projection."""
    path = shared_dir / "parity" / "scatterformer" / "scatterformer_sla_layer.pt"
    case = torch.load(path, weights_only=True)
    weights = case["state_dict"]
    x = case["inputs"]["x"].clone().requires_grad_()
    offsets = torch.cat((case["inputs"]["offsets"], torch.tensor([len(x)])))
    q, k, v = (x @ weights["qkv.weight"].T).unflatten(1, (3, 4, -1)).unbind(1)
    y = scattered_linear_attention(q.relu(), k.relu(), v, offsets).flatten(1)
    y = y @ weights["proj.weight"].T + weights["proj.bias"]
    torch.testing.assert_close(y, case["outputs"]["y"], atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(y, x, case["inputs"]["grad_out"])
    torch.testing.assert_close(gradient, case["grads"]["x"], atol=1e-4, rtol=1e-4)


X = torch.zeros(6, 2, 4)
O = torch.tensor([0, 2, 6])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(query=X[0]), ["`query`", "got shape [2, 4]", "3 dimensions"]),
        (dict(key=X.double()), ["key", "float64", "float32"]),
        (dict(key=X[:5]), ["`key`", "6 and 2", "got 5 and 2"]),
        (dict(value=X[:, :1]), ["`value`", "6 and 2", "got 6 and 1"]),
        (dict(key=X[..., :3]), ["`key`", "head_dim of `query`, 4", "got 3"]),
        (dict(value=X[..., :0]), ["`value`", "[6, 2, 0]", "must not be empty"]),
        (dict(key=X.to("meta")), ["key", "meta", "cpu"]),
        (dict(query=X.long(), key=X.long(), value=X.long()), ["query", "int64", "float32"]),
        (dict(offsets=O[None]), ["`offsets`", "got [1, 3]", "[windows + 1]"]),
        (dict(offsets=O[:0]), ["`offsets`", "got [0]"]),
        (dict(offsets=O.float()), ["offsets", "float32", "int64"]),
        (dict(offsets=O.to("meta")), ["offsets", "meta", "cpu"]),
        (dict(offsets=torch.tensor([1, 2, 6])), ["`offsets`", "got 1 and 6", "start with 0"]),
        (dict(offsets=torch.tensor([0, 2, 5])), ["`offsets`", "tokens, 6", "got 0 and 5"]),
        (dict(offsets=torch.tensor([0])), ["`offsets`", "tokens, 6", "got 0 and 0"]),
        (dict(offsets=torch.tensor([0, 4, 3, 6])), ["`offsets`", "4 followed by 3", "position 2"]),
        (dict(eps=0), ["`eps`", "got 0.0", "positive"]),
        (dict(eps=float("nan")), ["`eps`", "got nan"]),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input_names_the_argument(backend, kwargs, words):
    arguments = dict(query=X, key=X, value=X, offsets=O, backend=backend) | kwargs
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        scattered_linear_attention(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_named_backend_is_never_replaced(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"`backend` must be .* got 'cuda'"):
        scattered_linear_attention(X, X, X, O, backend="cuda")
    with pytest.raises(BackendError, match="'triton' cannot run"):
        scattered_linear_attention(X, X, X, O, backend="triton")
    monkeypatch.setenv("VISIONATTN_BACKEND", "nonsense")
    with pytest.raises(BackendError, match="nonsense"):
        scattered_linear_attention(X, X, X, O)
    assert {c.backend for c in backends.explain("scattered_linear_attention")} == {"triton", "torch", "reference"}


def test_head_dimension_that_the_triton_kernels_do_not_hold(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reasons = {dim: backends.explain("scattered_linear_attention", head_dim=dim)[0] for dim in (128, 129)}
    assert reasons[128].can_run
    assert not reasons[129].can_run
    assert "129" in reasons[129].reason
    assert "128" in reasons[129].reason
    assert backends.explain("na2d", head_dim=129)[0].can_run
