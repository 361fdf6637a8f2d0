"""Time of the host for calls of the Triton kernels, with prepared launches and with Triton's launcher; needs no GPU.

    python benchmarks/launch_time.py [--rounds 15] [--out FILE]

A driver that launches nothing takes the place of the GPU, so that the time of a call is that of Python, PyTorch and
the launcher: either Triton's, which inspects all arguments, or prepared launches (`kernels.triton_launch`). Tensors are
allocated on the CPU, which takes about as long as by PyTorch's allocator for GPUs.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

import pytest
import torch
import triton
from common import RESULTS, machine, summary, write_csv

from visionattn import __version__
from visionattn.kernels import bilevel_routing_attention, na2d, scattered_linear_attention
from visionattn.kernels.triton_launch import Launch, Prepared

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from fixtures.fake_gpu import running


def routing(grad: bool):
    qkv = torch.randn(1, 14, 14, 3, 8, 32, dtype=torch.bfloat16).requires_grad_(grad)
    index = torch.zeros(1, 49, 16, dtype=torch.long)
    return qkv, lambda: bilevel_routing_attention(*qkv.unbind(3), 7, 16, key_regions=index, backend="triton")


def scattered(grad: bool):
    qkv = torch.randn(600, 3, 4, 32, dtype=torch.bfloat16).requires_grad_(grad)
    offsets = torch.tensor([0, 100, 600])
    return qkv, lambda: scattered_linear_attention(*qkv.unbind(1), offsets, backend="triton")


def neighborhood(grad: bool):
    qkv = torch.randn(1, 14, 14, 3, 8, 32, dtype=torch.bfloat16).requires_grad_(grad)
    rpb = torch.randn(8, 13, 13, dtype=torch.bfloat16)
    return qkv, lambda: na2d(*qkv.unbind(3), 7, rpb=rpb)


@contextlib.contextmanager
def triton_launcher():
    """Let prepared launches call Triton's launcher each time."""

    def call(self, tensors, grid=None, numbers=None):
        arguments = {name: tensors.get(name) for name in self.tensors} | self.others | (numbers or {})
        Launch(self.kernel, grid or self.grid, arguments, self.options["num_warps"], self.options["num_stages"]).run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prepared, "__call__", call)
        yield


def cpu_times(functions: dict, rounds: int, repeats: int = 20) -> dict[str, list[float]]:
    """Milliseconds of CPU time per call of each visit, in turn; other processes affect it less than the wall clock."""
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(repeats):
                function()
            times[name].append((time.process_time() - start) / repeats * 1e3)
    return {name: visits[1:] for name, visits in times.items()}  # the first visit compiles


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "launch_time.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with pytest.MonkeyPatch.context() as patch, running(patch) as gpu:
        gpu.records = False
        patch.setenv("VISIONATTN_BACKEND", "triton")
        operators = {
            "na2d": neighborhood, "bilevel_routing_attention": routing, "scattered_linear_attention": scattered
        }  # fmt: skip
        for name, make in operators.items():
            for direction in ("forward without gradients", "forward", "forward+backward"):
                qkv, call = make(direction != "forward without gradients")
                upstream = torch.ones_like(call()) if direction == "forward+backward" else None

                def prepared(call=call, qkv=qkv, upstream=upstream):
                    out = call()
                    if upstream is not None:
                        torch.autograd.grad(out, qkv, upstream)

                def launcher(step=prepared):
                    with triton_launcher():
                        step()

                times = cpu_times({"prepared": prepared, "Triton's launcher": launcher}, args.rounds)
                found = {way: summary(t) for way, t in times.items()}
                text = ", ".join(f"{way} {t['median_ms'] * 1e3:.0f}" for way, t in found.items())
                print(f"{name:<28} {direction:<26} us: {text}")
                described = dict(operator=name, direction=direction, machine=machine())
                versions = dict(torch=torch.__version__, triton=triton.__version__, visionattn=__version__)
                rows += [described | dict(way=way, **t) | versions for way, t in found.items()]
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
