"""`bilevel_routing_attention`: semantics, gradients and refusals. The oracle is the definition in `reference.py`."""

import pytest
import torch
import torch.nn.functional as F
from routing_cases import assert_agree, make_inputs, random_case, run

from visionattn.errors import BackendError
from visionattn.kernels import backends, bilevel_routing_attention, route_regions


@pytest.mark.parametrize("block", range(8))
def test_random_sweep_float64(block, poisoned_memory):
    for seed in range(block * 25, block * 25 + 25):
        assert_agree(random_case(seed), torch.float64, "torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_sweep_by_type(dtype, poisoned_memory):
    for seed in range(1000, 1030):
        assert_agree(random_case(seed), dtype, "torch")


def test_without_gradients():
    """The way around the operator, where nothing is recorded."""
    for seed in range(200, 240):
        tensors, others = make_inputs(random_case(seed), torch.float64)
        with torch.no_grad():
            out = bilevel_routing_attention(**tensors, **others, backend="torch")
        torch.testing.assert_close(out, run(tensors, others, "torch")["out"], rtol=0, atol=1e-12)


def test_routing_is_that_of_the_definition(poisoned_memory):
    """Masked and cut regions too; random products are never equal. Equal are only those of empty regions."""
    for seed in range(60):
        case = random_case(seed) | dict(key_map=None, dim=8)
        tensors, others = make_inputs(case, torch.float64)
        arguments = (tensors["query"], tensors["key"], case["regions"], case["topk"])
        index, logits = route_regions(*arguments, padding_mask=others["padding_mask"])
        wanted, products = route_regions(*arguments, padding_mask=others["padding_mask"], backend="reference")
        torch.testing.assert_close(logits, products)
        filled = products.isfinite()
        assert torch.equal(index[filled], wanted[filled])


@pytest.mark.parametrize("dense", [True, False])
def test_both_ways_of_the_portable_backend(dense, monkeypatch, poisoned_memory):
    """Small chunks of regions, or all tokens at once and a few images at a time."""
    from visionattn.kernels.routing.torch import chunks as torch_chunks
    from visionattn.kernels.routing.torch import dense as torch_dense

    monkeypatch.setattr(torch_chunks, "CHUNK_BYTES", 5_000)
    monkeypatch.setattr(torch_dense, "MASK_BYTES", 20_000)
    monkeypatch.setattr(torch_dense, "is_better", lambda *_: dense)
    for seed in range(300, 330):
        case = random_case(seed)
        assert_agree(case | dict(value_dim=case["dim"], batch=3), torch.float64, "torch")


def test_chunks_are_small(monkeypatch):
    """At no time do the copies of the keys of all regions exist."""
    from visionattn.kernels.routing.torch import chunks as torch_chunks

    sizes = []
    gather = torch_chunks._Problem.gather
    monkeypatch.setattr(
        torch_chunks._Problem, "gather", lambda *a, **k: sizes.append((x := gather(*a, **k)).numel()) or x
    )
    q = torch.randn(1, 56, 56, 2, 32, requires_grad=True)
    bilevel_routing_attention(q, q, q, 7, 16, backend="torch").sum().backward()
    everything = 49 * 16 * 64 * 2 * 32
    assert sum(sizes) == 4 * everything  # keys and values, forward and backward
    assert max(sizes) <= everything / 4


def test_gradcheck():
    case = random_case(3) | dict(
        map=(5, 7), regions=(2, 3), topk=2, batch=1, heads=2, dim=3, value_dim=2, mask="own", key_map=None
    )
    tensors, others = make_inputs(case, torch.float64)

    def call(query, key, value):
        return bilevel_routing_attention(query, key, value, **others, backend="torch")

    assert torch.autograd.gradcheck(call, tuple(tensors.values()))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_regions_by_hand(backend):
    """A 4 x 6 map in 2 x 3 regions: each query region is sent to the region with the same mark in its keys."""
    query, key = torch.zeros(2, 1, 4, 6, 1, 6).unbind()
    target = [3, 0, 5, 1, 4, 2]
    for region in range(6):
        y, x = region // 3 * 2, region % 3 * 2
        query[0, y : y + 2, x : x + 2, 0, target[region]] = 1
        key[0, y : y + 2, x : x + 2, 0, region] = 1
    value = torch.arange(24.0).reshape(1, 4, 6, 1, 1)
    out, routing = bilevel_routing_attention(
        query, key, value, (2, 3), 1, scale=0.0, return_routing=True, backend=backend
    )
    assert routing[0, :, 0].tolist() == target
    means = F.avg_pool2d(value.view(1, 1, 4, 6), 2).flatten()
    for region in range(6):
        y, x = region // 3 * 2, region % 3 * 2
        torch.testing.assert_close(out[0, y : y + 2, x : x + 2].flatten(), means[target[region]].expand(4))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_padding_changes_nothing(backend):
    """What is beyond the map, or masked, whatever it holds, is like not being there."""
    q, k, v = torch.randn(3, 1, 8, 12, 2, 4).unbind()
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[6:], mask[:, 10:] = True, True
    noise = [x.clone().masked_fill_(mask[None, :, :, None, None], 1e4) for x in (q, k, v)]
    cut = bilevel_routing_attention(*(x[:, :6, :10] for x in (q, k, v)), (2, 3), 2, backend=backend)
    # 6 rows in 2 regions are 3 and 3, and 10 columns in 3 are 4, 4 and 2; on the padded map those are 4 and 4 rows.
    same = bilevel_routing_attention(*(x[:, :6] for x in noise), (2, 3), 2, padding_mask=mask[:6], backend=backend)
    torch.testing.assert_close(same[:, :, :10], cut)
    published = bilevel_routing_attention(*(x[:, :6] for x in noise), (2, 3), 2, backend=backend)
    assert not torch.allclose(published[:, :, :10], cut)


def test_an_image_of_padding_alone_is_zero():
    q = torch.randn(2, 6, 6, 2, 4, requires_grad=True)
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[1] = True
    for backend in ("torch", "reference"):
        out = bilevel_routing_attention(q, q, q, 3, 4, padding_mask=mask, backend=backend)
        assert out[1].eq(0).all()
        assert out[0].ne(0).all()
        (gradient,) = torch.autograd.grad(out.sum(), q)
        assert gradient.isfinite().all()
        assert gradient[1].eq(0).all()


def test_more_regions_than_positions():
    q, k, v = torch.randn(3, 2, 3, 5, 2, 4, dtype=torch.float64).unbind()
    out = bilevel_routing_attention(q, k, v, 7, 49, backend="torch")  # all regions, most of them empty
    heads_first = [x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*heads_first).transpose(1, 2).reshape(q.shape)
    torch.testing.assert_close(out, expected)


def test_given_routing_is_followed():
    q, k, v = torch.randn(3, 1, 8, 8, 2, 4).unbind()
    out, routing = bilevel_routing_attention(q, k, v, 4, 3, return_routing=True)
    assert torch.equal(bilevel_routing_attention(q, k, v, 4, 3, key_regions=routing), out)
    other = (routing + 1) % 16
    assert not torch.allclose(bilevel_routing_attention(q, k, v, 4, 3, key_regions=other), out)


def test_non_contiguous_inputs():
    qkv = torch.randn(2, 11, 3, 2, 8, 13, dtype=torch.float64).permute(2, 0, 1, 5, 3, 4)
    for topk in (2, 15):
        out = bilevel_routing_attention(*qkv, (3, 5), topk, backend="torch")
        expected = bilevel_routing_attention(*(x.contiguous() for x in qkv), (3, 5), topk, backend="reference")
        torch.testing.assert_close(out, expected)
    shared = torch.randn(1, 11, 13, 1, 8, dtype=torch.float64).expand(2, -1, -1, 2, -1).requires_grad_()
    gradients = []
    for backend in ("torch", "reference"):
        out = bilevel_routing_attention(shared, shared, shared, 3, 2, backend=backend)
        gradients.append(torch.autograd.grad(out.square().sum(), shared)[0])
    torch.testing.assert_close(*gradients)


def test_same_bits_twice():
    tensors, others = make_inputs(random_case(5), torch.float32)
    first, second = run(tensors, others, "torch"), run(tensors, others, "torch")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_routing_gets_no_gradient_but_gives_one():
    q, k = (x.requires_grad_() for x in torch.randn(2, 1, 8, 8, 2, 4).unbind())
    index, logits = route_regions(q, k, 4, 3)
    assert not index.requires_grad
    for gradient in torch.autograd.grad(logits.sum(), (q, k)):
        assert gradient.abs().sum() > 0
    value = torch.randn(1, 8, 8, 2, 4)
    out = bilevel_routing_attention(q, k, value, 4, 3, scale=0.0)  # only the routing depends on q and k
    for gradient in torch.autograd.grad(out.sum(), (q, k)):
        assert gradient.eq(0).all()


def test_compile_without_graph_break():
    q, k, v = torch.randn(3, 1, 9, 8, 2, 8).unbind()

    def block(q, k, v):
        return bilevel_routing_attention(q * 2, k, v, 4, 3) + 1

    inputs = [x.requires_grad_() for x in (q, k, v)]
    eager = torch.autograd.grad(block(*inputs).square().sum(), inputs)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(eager, torch.autograd.grad(compiled(*inputs).square().sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_export():
    class Block(torch.nn.Module):
        def forward(self, x):
            return bilevel_routing_attention(x, x, x, 4, 3, return_routing=True)

    x = torch.randn(1, 9, 8, 2, 8)
    for got, expected in zip(torch.export.export(Block(), (x,)).module()(x), Block()(x), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("masked", [True, False])
def test_operator_registration(masked):
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 6, 7, 2, 4).unbind())
    mask = torch.rand(1, 6, 7) < 0.3 if masked else None
    index = torch.rand(1, 6, 6).argsort(-1)[..., :2].contiguous()
    torch.library.opcheck(torch.ops.visionattn.routing_attention.default, (q, k, v, index, mask, 2, 3, 0.5))


def test_autocast_routes_in_float32():
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 9, 9, 2, 8).unbind())
    expected, routing = bilevel_routing_attention(q, k, v, 3, 2, return_routing=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, same = bilevel_routing_attention(q, k, v, 3, 2, return_routing=True)
    assert out.dtype == torch.bfloat16
    assert torch.equal(same, routing)
    torch.testing.assert_close(out.float(), expected, atol=5e-2, rtol=0)
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_empty_batch():
    x = torch.randn(0, 8, 8, 2, 4)
    for topk in (3, 16):
        assert bilevel_routing_attention(x, x, x, 4, topk).shape == x.shape


X = torch.zeros(1, 8, 8, 4, 6)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(num_regions=0), ["`num_regions`", "got 0", "at least 1"]),
        (dict(num_regions=(4, 4, 4)), ["`num_regions`", "got (4, 4, 4)", "(rows, columns)"]),
        (dict(num_regions=4.0), ["`num_regions`", "got 4.0"]),
        (dict(topk=0), ["`topk`", "got 0", "from 1", "16"]),
        (dict(topk=17), ["`topk`", "got 17", "16"]),
        (dict(topk=True), ["`topk`", "got True"]),
        (dict(query=X[0]), ["`query`", "[8, 8, 4, 6]", "5 dimensions"]),
        (dict(key=X.double()), ["key", "float64", "float32"]),
        (dict(key=X[:, :7], value=X[:, :7]), ["`key`", "got [1, 7, 8, 4, 6]", "`key_regions`"]),
        (dict(value=X[:, :7]), ["`value`", "got [7, 8]", "[8, 8]"]),
        (dict(key=X[..., :5]), ["`key`", "head_dim of `query`, 6", "got 5"]),
        (dict(key=X[..., :3, :]), ["`key`", "1 and 4", "got 1 and 3"]),
        (dict(key=X.to("meta")), ["key", "meta", "cpu"]),
        (dict(query=X.long(), key=X.long(), value=X.long()), ["query", "int64", "float32"]),
        (dict(query=X[:, :0], key=X[:, :0], value=X[:, :0]), ["`query`", "must not be empty"]),
        (dict(padding_mask=torch.zeros(8, 8)), ["padding_mask", "float32", "torch.bool"]),
        (dict(padding_mask=torch.zeros(2, 8, 8, dtype=torch.bool)), ["`padding_mask`", "got [2, 8, 8]", "[1, 8, 8]"]),
        (dict(key_regions=torch.zeros(1, 16, 2, dtype=torch.long)), ["`key_regions`", "got [1, 16, 2]", "[1, 16, 3]"]),
        (dict(key_regions=torch.zeros(1, 16, 3)), ["key_regions", "float32", "int64"]),
    ],
)
def test_bad_input_names_the_argument(kwargs, words):
    arguments = dict(query=X, key=X, value=X, num_regions=4, topk=3) | kwargs
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        bilevel_routing_attention(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_named_backend_is_never_replaced(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"`backend` must be .* got 'cuda'"):
        bilevel_routing_attention(X, X, X, 4, 3, backend="cuda")
    with pytest.raises(BackendError, match="'triton' cannot run"):
        bilevel_routing_attention(X, X, X, 4, 3, backend="triton")
    monkeypatch.setenv("VISIONATTN_BACKEND", "nonsense")
    with pytest.raises(BackendError, match="nonsense"):
        bilevel_routing_attention(X, X, X, 4, 3)
    assert {c.backend for c in backends.explain("bilevel_routing_attention")} == {"triton", "torch", "reference"}
