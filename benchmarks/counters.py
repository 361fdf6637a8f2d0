"""Hardware counters of the neighborhood attention kernels on a GPU, by Nsight Compute (ncu).

    python benchmarks/counters.py [--out benchmarks/results/gpu/counters.csv]
    python benchmarks/counters.py --parse FILE      reads a file of `ncu --csv --page raw` instead; needs no GPU

The forward and backward kernels at 56x56, batch 128, 2 heads of 32, window 7x7, bfloat16, with a position bias, are
profiled once after a warm-up: time, share of the cycles in which instructions are issued, bytes through the L2 cache
and of the memory, registers, occupancy. docs/gpu.md has the expected values.
"""

import argparse
import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

from common import RESULTS, write_csv

METRICS = {  # column: metric of ncu, factor to the unit of the column
    "time_us": ("gpu__time_duration.sum", 1e-3),
    "issue_percent": ("smsp__issue_active.avg.pct_of_peak_sustained_active", 1.0),
    "l2_mb": ("lts__t_bytes.sum", 1e-6),
    "memory_mb": ("dram__bytes.sum", 1e-6),
    "instructions": ("smsp__inst_executed.sum", 1.0),
    "registers": ("launch__registers_per_thread", 1.0),
    "shared_bytes": ("launch__shared_mem_per_block", 1.0),
    "occupancy_percent": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1.0),
    "local_loads": ("smsp__inst_executed_op_local_ld.sum", 1.0),
}
SCALES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
PROFILED = "profiled"  # NVTX range


def parse(text: str) -> list[dict]:
    """Rows of the kernels in the output of ``ncu --csv --page raw --print-units base``."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if not lines:
        raise ValueError("the output of ncu has no table; its last lines: " + " | ".join(text.splitlines()[-3:]))
    header, units, *records = csv.reader(io.StringIO("\n".join(lines)))
    rows = []
    for record in records:
        values, unit = dict(zip(header, record, strict=True)), dict(zip(header, units, strict=True))
        row: dict = {"kernel": values["Kernel Name"]}
        for column, (metric, factor) in METRICS.items():
            text = values.get(metric, "").replace(",", "")
            row[column] = round(float(text) * _base(unit[metric]) * factor, 3) if text else ""
        rows.append(row)
    return rows


def _base(unit: str) -> float:
    """Factor from a unit of ncu, such as "Mbyte" or "usecond", to nanoseconds, bytes or one."""
    unit = unit.split("/")[0]
    for name, base in (("second", 1e9), ("byte", 1.0)):
        if unit.endswith(name) and unit != name:
            return SCALES[unit.removesuffix(name)] * base
        if unit == name:
            return base
    return {"nsecond": 1.0, "ns": 1.0, "us": 1e3, "ms": 1e6}.get(unit, 1.0)


def run_kernels() -> None:
    """Run the kernels once in an NVTX range, after a warm-up."""
    import torch

    from visionattn.kernels import na2d

    q, k, v = (torch.randn(128, 56, 56, 2, 32, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    rpb = torch.randn(2, 13, 13, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for _ in range(3):
        out = na2d(q, k, v, 7, rpb=rpb, backend="triton")
        torch.autograd.grad(out, (q, k, v, rpb), torch.ones_like(out))
    torch.cuda.synchronize()
    torch.cuda.nvtx.range_push(PROFILED)
    out = na2d(q, k, v, 7, rpb=rpb, backend="triton")
    torch.autograd.grad(out, (q, k, v, rpb), torch.ones_like(out))
    torch.cuda.synchronize()
    torch.cuda.nvtx.range_pop()


def command() -> list[str]:
    metrics = ",".join(metric for metric, _ in METRICS.values())
    return [
        "ncu", "--csv", "--page", "raw", "--print-units", "base", "--nvtx", "--nvtx-include", f"{PROFILED}/",
        "--kernel-name", "regex:kernel", "--metrics", metrics, sys.executable, __file__, "--run",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu" / "counters.csv")
    parser.add_argument("--parse", type=Path, metavar="FILE", help="read this output of ncu")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_kernels()
        return
    if args.parse:
        text = args.parse.read_text()
    elif shutil.which("ncu") is None:
        print("ncu (Nsight Compute) is not installed; no counters were read")
        return
    else:
        done = subprocess.run(command(), capture_output=True, text=True, check=False)
        text = done.stdout
        if done.returncode:
            raise SystemExit(f"ncu failed: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    rows = parse(text)
    for row in rows:
        print(*(f"{name}={value}" for name, value in row.items()))
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
