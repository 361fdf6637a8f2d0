"""The interface of NATTEN: each function against the reference, the modules, and the registration."""

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from types import ModuleType

import pytest
import torch

from visionattn import kernels
from visionattn.compat import natten
from visionattn.compat.natten import context, functional, modules, registration

OPS = {1: kernels.na1d, 2: kernels.na2d, 3: kernels.na3d}
MAPS = {1: (11,), 2: (7, 9), 3: (4, 6, 5)}
pytestmark = pytest.mark.skipif(registration.installed_version() is not None, reason="NATTEN itself is installed")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def installed():
    """Register the interface as a version of NATTEN; undone after the test."""

    def install(version: str = natten.VERSION) -> ModuleType:
        assert natten.install(version)
        return importlib.import_module("natten")

    yield install
    natten.uninstall()


def draw(rank: int, heads: int = 2, dim: int = 4, count: int = 3) -> list[torch.Tensor]:
    """Tensors ``[batch, heads, *map, dim]`` in float64 with gradients."""
    return [torch.randn(2, heads, *MAPS[rank], dim, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -2)


def compare(out: torch.Tensor, expected: torch.Tensor, *inputs: torch.Tensor) -> None:
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    pairs = zip(torch.autograd.grad(out, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extra", [0, 3])
def test_separate_operators(rank, causal, extra):
    q, k, v = draw(rank)
    kernel, dilation = (3,) * rank, (*(1,) * (rank - 1), 1 if rank == 3 else 2)
    rpb = None if causal else torch.randn(2, *(5,) * rank, dtype=torch.float64, requires_grad=True)
    more = {}
    if extra:
        more = {name: torch.randn(2, 2, extra, 4, dtype=torch.float64, requires_grad=True) for name in "kv"}
    qk, av = getattr(natten, f"na{rank}d_qk"), getattr(natten, f"na{rank}d_av")
    scores = qk(q * 0.5, k, kernel, dilation, more.get("k"), causal, rpb)
    assert scores.shape == (*q.shape[:-1], 3**rank + extra)
    out = av(scores.softmax(-1), v, kernel, dilation, more.get("v"), causal)
    expected = OPS[rank](
        last(q), last(k), last(v), kernel, dilation=dilation, is_causal=causal, scale=0.5, rpb=rpb,
        additional_keys=more["k"].transpose(1, 2) if extra else None,
        additional_values=more["v"].transpose(1, 2) if extra else None, backend="reference",
    )  # fmt: skip
    compare(out, expected.movedim(-2, 1), q, k, v, *([] if rpb is None else [rpb]), *more.values())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_old_names(rank):
    """The names up to 0.15, with positional arguments; those of 3D have the depth separately."""
    q, k, v = draw(rank)
    rpb = torch.randn(2, *((5,) * rank if rank < 3 else (3, 5, 5)), dtype=torch.float64, requires_grad=True)
    size, arguments = (3, (3, 2)) if rank < 3 else ((2, 3, 3), (2, 3, 2, 1))
    dilation = 2 if rank < 3 else (2, 1, 1)
    functions = [getattr(natten, f"natten{rank}d{name}") for name in ("qkrpb", "qk", "av")]
    scores = functions[0](q, k, rpb, *arguments) if rank < 3 else functions[1](q, k, *arguments)
    plain = functions[1](q, k, *arguments)
    assert plain.shape == scores.shape
    assert torch.equal(scores, plain) == (rank == 3)
    out = functions[2](scores.softmax(-1), v, *arguments)
    expected = OPS[rank](last(q), last(k), last(v), size, dilation=dilation, scale=1.0,
                         rpb=rpb if rank < 3 else None, backend="reference")  # fmt: skip
    compare(out, expected.movedim(-2, 1), q, k, v, *([rpb] if rank < 3 else []))


def test_bias_of_3d_by_its_old_name():
    q, k, v = draw(3)
    rpb = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="`rpb` must have shape"):
        natten.natten3dqkrpb(q, k, rpb[:, :3], 3, 2, 1, 2)
    rpb = torch.randn(2, 5, 9, 9, dtype=torch.float64, requires_grad=True)[:, :, :5, :5]
    scores = natten.natten3dqkrpb(q, k, rpb, 3, 3, 1, 1)
    expected = OPS[3](last(q), last(k), last(v), 3, scale=1.0, rpb=rpb, backend="reference")
    compare(natten.natten3dav(scores.softmax(-1), v, 3, 3, 1, 1), expected.movedim(-2, 1), q, k, v)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fused_operators_have_the_order_of_their_version(rank, installed):
    q, k, v = (last(x) for x in draw(rank))
    expected = OPS[rank](q, k, v, 3, dilation=(1,) * rank, is_causal=True, scale=0.3, stride=2, backend="reference")
    name = f"na{rank}d"
    old = getattr(natten, name)(q, k, v, 3, 1, True, None, 0.3, stride=2)
    new = getattr(installed("0.21.0"), name)(q, k, v, 3, 2, 1, True, 0.3)
    torch.testing.assert_close(old, expected)
    torch.testing.assert_close(new, expected)
    rpb = torch.randn(2, *(5,) * rank, dtype=torch.float64)
    torch.testing.assert_close(getattr(natten, name)(q, k, v, 3, 1, False, rpb), OPS[rank](q, k, v, 3, rpb=rpb))
    torch.testing.assert_close(
        natten.neighborhood_attention_generic(q, k, v, 3, 2, scale=0.0), OPS[rank](q, k, v, 3, stride=2)
    )


def test_additional_keys_equal_merged_attentions():
    q, k, v = (last(x) for x in draw(2))
    extra = [torch.randn(2, 4, 2, 4, dtype=torch.float64) for _ in range(2)]
    out, lse = natten.na2d(q, k, v, 3, additional_keys=extra[0], additional_values=extra[1], return_lse=True)
    near = natten.na2d(q, k, v, 3, return_lse=True)
    dense = natten.attention(q.flatten(1, 2), *extra, return_lse=True)
    near = [x.flatten(1, 2) for x in near]
    merged, total = natten.merge_attentions([near[0], dense[0]], [near[1], dense[1]], torch_compile=False)
    torch.testing.assert_close(merged, out.flatten(1, 2))
    torch.testing.assert_close(total, lse.flatten(1, 2))
    torch.testing.assert_close(natten.attention(q.flatten(1, 2), *extra), dense[0])
    with pytest.raises(ValueError, match="2 or more"):
        natten.merge_attentions([out], [lse])
    with pytest.raises(NotImplementedError, match="packed"):
        natten.attention(q.flatten(1, 2), *extra, seqlens_Q=torch.tensor([1]))


def test_causal_dense_attention_with_shared_heads():
    q = torch.randn(1, 6, 4, 8)
    k, v = torch.randn(2, 1, 6, 2, 8).unbind()
    out, _ = natten.attention(q, k, v, is_causal=True, return_lse=True)
    torch.testing.assert_close(out, kernels.na1d(q, k, v, 6, is_causal=True))
    torch.testing.assert_close(natten.attention(q, k, v, is_causal=True), out)


def test_tuning_arguments_warn_once_and_others_are_refused(monkeypatch):
    monkeypatch.setattr(context, "_WARNED", set())
    q, k, v = (last(x) for x in draw(2))
    with pytest.warns(UserWarning, match="`backend` has no effect"):
        natten.na2d(q, k, v, 3, backend="cutlass-fna", run_persistent_kernel=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        natten.na2d(q, k, v, 3, backend="cutlass-fna")
    with pytest.raises(TypeError, match="tile_shape"):
        natten.na2d(q, k, v, 3, tile_shape=(8, 8))


def test_bad_arguments():
    q, k, v = draw(2)
    with pytest.raises(ValueError, match="at most the size of the map"):
        natten.na2d_qk(q, k, 5, 2)
    with pytest.raises(ValueError, match="5 dimensions"):
        natten.na2d_qk(q[0], k[0], 3)
    with pytest.raises(ValueError, match="`key` must have"):
        natten.na2d_qk(q, k.float(), 3)
    with pytest.raises(ValueError, match="9 weights"):
        natten.na2d_av(torch.zeros(*q.shape[:-1], 8, dtype=q.dtype), v, 3)
    with pytest.raises(NotImplementedError, match="causal"):
        natten.na2d_qk(q, k, 3, is_causal=True, rpb=torch.zeros(2, 5, 5))


def test_autocast():
    q, k, v = (x.detach().float().requires_grad_() for x in draw(2))
    with torch.autocast("cpu", torch.bfloat16):
        scores = natten.na2d_qk(q, k, 3)
        assert scores.dtype == torch.bfloat16
        out = natten.na2d_av(scores.softmax(-1), v, 3)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


@pytest.mark.filterwarnings("error:.*lru_cache")
def test_one_graph():
    """A module with dropout of probabilities, and the older operators, under torch.compile."""
    module = natten.NeighborhoodAttention2D(8, 2, 3, 2, rel_pos_bias=True, attn_drop=0.5).train()
    x = torch.randn(1, 7, 9, 8)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    out = compiled(x)
    torch.manual_seed(1)
    torch.testing.assert_close(out, module(x))
    out.sum().backward()
    assert module.rpb.grad.abs().sum() > 0
    with torch.device("meta"):
        assert natten.na2d_qk(torch.empty(1, 2, 9, 8, 4), torch.empty(1, 2, 9, 8, 4), 3).shape == (1, 2, 9, 8, 9)


@pytest.mark.parametrize(("version", "options"), [
    ("0.14.6", {}), ("0.17.5", {"rel_pos_bias": True}), ("0.17.5", {"is_causal": True}), ("0.21.0", {"stride": 2}),
])  # fmt: skip
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_modules(version, options, rank, installed):
    """Parameters and results; dropout of probabilities keeps the mean, and is not applied in evaluation."""
    cls = getattr(installed(version), f"NeighborhoodAttention{rank}D")
    torch.manual_seed(0)
    module = cls(8, 2, 3, **options)
    names = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    biased = version == "0.14.6" or "rel_pos_bias" in options
    assert set(module.state_dict()) == names | ({"rpb"} if biased else set())
    x = torch.randn(2, *MAPS[rank], 8)
    q, k, v = module.qkv(x).unflatten(-1, (3, 2, 4)).unbind(-3)
    kernel = {name: options[name] for name in ("stride", "is_causal") if name in options}
    expected = OPS[rank](q, k, v, 3, rpb=module.rpb, **kernel, backend="reference")
    torch.testing.assert_close(module(x), module.proj(expected.flatten(-2)))
    if version.startswith("0.2"):
        return
    dropped = cls(8, 2, 3, attn_drop=0.5, **options)
    dropped.load_state_dict(module.state_dict())
    assert torch.equal(dropped.eval()(x), module(x))
    dropped.train()
    assert not torch.allclose(dropped(x), module(x), atol=1e-3)
    with torch.no_grad():
        mean = torch.stack([dropped(x) for _ in range(300)]).mean(0)
    torch.testing.assert_close(mean, module(x).detach(), atol=0.15, rtol=0)
    small = torch.randn(1, *(2,) * rank, 8)
    dropped.attn_drop.p = 1e-12
    torch.testing.assert_close(dropped(small), module(small))  # padded to the window


def test_positional_arguments_of_modules():
    old = modules.modules_of((0, 14))["NeighborhoodAttention2D"](8, 2, 3, 2, False, False, 0.5, 0.1, 0.2)
    assert (old.dilation, old.rpb, old.qkv.bias, old.scale) == ([2, 2], None, None, 0.5)
    assert (old.attn_drop.p, old.proj_drop.p) == (0.1, 0.2)
    middle = natten.NeighborhoodAttention2D(8, 2, 3, 2, True, False, False, None, 0.1, 0.2)
    assert (middle.is_causal, middle.rpb, middle.qkv.bias, middle.attn_drop.p) == ([True, True], None, None, 0.1)
    assert natten.NeighborhoodAttention1D(8, 2, 3, bias=True).rpb is not None
    new = modules.modules_of((0, 20))["NeighborhoodAttention2D"](8, 2, 3, 2, 4, True, False, None, 0.2)
    assert (new.stride, new.dilation, new.is_causal) == ([2, 2], [4, 4], [True, True])


def test_switches_do_nothing_and_say_so_once(monkeypatch):
    monkeypatch.setattr(context, "_WARNED", set())
    monkeypatch.setattr(context, "_SWITCHES", {})
    assert not natten.is_fused_na_enabled()
    with pytest.warns(UserWarning, match="`use_fused_na` has no effect"):
        natten.use_fused_na(True, kv_parallel=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        natten.use_fused_na(True)
        natten.use_fused_na(False)
        natten.disable_autotuner()
        natten.set_memory_usage_preference("default")
    assert not natten.is_fna_enabled()
    with pytest.warns(UserWarning, match="VISIONATTN_AUTOTUNE"):
        natten.use_autotuner(forward_pass=True, thorough_mode_forward=True)
    assert natten.is_autotuner_enabled_for_forward()
    with pytest.warns(UserWarning, match="memory"):
        natten.set_memory_usage_preference("strict")
    assert natten.is_memory_usage_strict()
    with pytest.raises(ValueError, match="strict"):
        natten.set_memory_usage_preference("little")
    assert natten.has_cuda() == torch.cuda.is_available()
    assert not natten.has_bfloat() or torch.cuda.is_available()


def test_every_name_is_exported():
    for module in (context, functional, natten.dense, natten.old_names, natten.types):
        assert {name for name in module.__all__ if not hasattr(module, name)} == set()
        missing = set(module.__all__) - set(dir(natten))
        assert module is natten.types or not missing


def test_install(installed):
    assert importlib.util.find_spec("natten") is None
    module = installed("0.14.6")
    assert installed("0.14.6").__version__ == module.__version__ == "0.14.6"
    assert importlib.util.find_spec("natten") is not None
    assert importlib.util.find_spec("natten.functional") is not None
    assert importlib.metadata.version("natten") == "0.14.6"
    assert "natten" in {d.metadata["Name"] for d in importlib.metadata.distributions()}
    assert importlib.metadata.version("pytest") == pytest.__version__
    from natten.functional import natten2dav, natten2dqkrpb  # noqa: F401
    from natten.natten2d import NeighborhoodAttention2D

    assert NeighborhoodAttention2D is module.NeighborhoodAttention2D
    natten.uninstall()
    assert importlib.util.find_spec("natten") is None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("natten")


@pytest.mark.parametrize("version", ["new", "0.13.2", "0"])
def test_versions_that_are_refused(version):
    with pytest.raises(ValueError, match=r"0\.14 or later"):
        natten.install(version)


def test_the_library_itself_stays_in_use(tmp_path):
    package = tmp_path / "natten"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.21.6'\nreal = True\n")
    code = (
        f"import sys, warnings; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from visionattn.compat.natten import install\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always'); assert install() is False\n"
        "assert 'stays in use' in str(caught[0].message)\n"
        "import natten; assert natten.real"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
