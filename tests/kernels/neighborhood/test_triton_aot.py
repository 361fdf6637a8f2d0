"""The kernels compile for GPUs that are not here: type errors the interpreter lets pass, registers, shared memory.

``VISIONATTN_TRITON_AOT=1`` compiles every legal tile for every architecture, which takes hours.
"""

import importlib.util
import itertools
import os
import sys

import pytest
import torch
from fixtures.paths import REPO

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on, so that nothing compiles"
)

BENCHMARKS = REPO / "benchmarks"
EVERYTHING = os.environ.get("VISIONATTN_TRITON_AOT") == "1"
# Bytes of shared memory that one program may have, by compute capability.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


@pytest.fixture(scope="module")
def resources():
    """`benchmarks/na_resources.py`, which knows how to lay out problems without memory."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("na_resources", BENCHMARKS / "na_resources.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.mark.parametrize(
    ("shape", "kernel", "dim", "dtype", "extra", "capability"),
    [
        ((56, 56), 7, 32, torch.bfloat16, 0, 90),  # the kernels that loop over images
        ((56, 56), 7, 32, torch.bfloat16, 0, 100),
        ((56, 56), 7, 32, torch.float16, 0, 80),
        ((56, 56), 7, 32, torch.bfloat16, 16, 90),
        ((56, 56), 7, 32, torch.float32, 16, 120),
        ((16, 28, 28), 3, 64, torch.float16, 16, 100),
        ((4096,), 255, 128, torch.bfloat16, 16, 80),
    ],
)
def test_default_tiles_compile_without_spills(resources, shape, kernel, dim, dtype, extra, capability):
    from visionattn.kernels.triton_aot import compile_launch

    case = resources.Case(shape, kernel, dim=dim, dtype=dtype, extra=extra)
    for launch in resources.launches(resources.problem_of(case)):
        found = compile_launch(launch, capability)
        name = launch.kernel.__name__
        assert name.startswith("image") == (not extra)
        # The assembler parks single addresses at times, registers free or not.
        assert found.spill_bytes <= (8 if extra else 64), (name, found)
        assert 0 < found.registers <= 255
        assert found.shared_bytes <= SHARED[capability], (name, found)


@pytest.mark.parametrize(
    "options",
    [
        dict(batch=1, heads=1, rpb=True),
        dict(batch=1, heads=1, rpb=False),
        dict(batch=1, heads=1, rpb=True, extra=1),
        dict(batch=1, heads=1, rpb=True, dtype=torch.float32),
        dict(shape=(8, 9, 10), batch=1, heads=1, rpb=True),
    ],
)
def test_integers_of_any_kind_compile(resources, options):
    """One image and one head; kernels are not specialized for integers, whether 1, divisible by 16, or neither."""
    from visionattn.kernels.neighborhood.triton.common import RUNTIME
    from visionattn.kernels.triton_aot import compile_launch

    for launch in resources.launches(resources.problem_of(resources.Case(**dict(shape=(16, 20), kernel=3) | options))):
        assert compile_launch(launch, 90).registers > 0
        integers = [
            parameter for parameter in launch.kernel.params
            if type(launch.arguments[parameter.name]) is int and not parameter.is_constexpr
        ]  # fmt: skip
        assert {parameter.name for parameter in integers} <= set(RUNTIME)
        assert all(parameter.do_not_specialize for parameter in integers)
        assert 1 in [launch.arguments[parameter.name] for parameter in integers]


def test_options_compile(resources):
    """Causal, strided, grouped heads, odd dimensions, no table, TF32, offsets over 31 bits."""
    from visionattn.kernels.neighborhood.triton import launch as triton_launch
    from visionattn.kernels.triton_aot import compile_launch

    def draw(*shape):
        return torch.empty(shape, dtype=torch.float32, device="meta")

    q, k, v = draw(2, 40, 41, 4, 24), draw(2, 40, 41, 2, 24), draw(2, 40, 41, 2, 100)
    geometry = ((8, 6), (4, 3), (2, 3), (True, False), 0.2)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        case = triton_launch.Problem.of(q, k, v, None, None, None, *geometry)
        for launch in resources.launches(case):
            assert launch.arguments["PRECISION"] == "tf32"
            wide = triton_launch.Launch(
                launch.kernel, (1,), launch.arguments | {"WIDE": True}, launch.warps, launch.stages
            )  # fmt: skip
            assert compile_launch(wide, 90).registers > 0
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not EVERYTHING, reason="takes hours; set VISIONATTN_TRITON_AOT=1")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("capability", sorted(SHARED))
def test_every_tile_compiles(resources, capability):
    from visionattn.kernels.triton_aot import compile_launch

    for (shape, kernel, dilation), dim, dtype in itertools.product(
        resources.PROBLEMS, resources.DIMS, resources.DTYPES
    ):
        case = resources.Case(shape, kernel, dilation, dim=dim, dtype=dtype, extra=16)
        for launch in resources.every_tile(resources.problem_of(case)):
            assert compile_launch(launch, capability).shared_bytes <= SHARED[capability], launch
