"""Whole models on a GPU: images per second and peak memory, eager, as a CUDA graph and compiled.

    python benchmarks/models.py [--only dinat_mini,swin_tiny_patch4_window7_224] [--batch 128] [--dtype bf16] [--again]
    python benchmarks/models.py --tiny      tries the script on a CPU with small images; times mean nothing

Inference (weights and images in the dtype) and a training step (autocast, AdamW). The modes of a model alternate. Rows
are written one by one; those that are in the file without an error are skipped, unless --again. `visionattn benchmark
--model` measures in the same way.
"""

import argparse
import gc
from pathlib import Path

import timm
import torch
from common import RESULTS, machine, read_rows, summary, write_csv

from visionattn import __version__
from visionattn.cli.benchmark.measure import MODES, Setup, alternate, make_step, peak_memory

MODELS = ["dinat_mini", "dinat_tiny", "biformer_small", "swin_tiny_patch4_window7_224"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KEY = ("model", "pass", "mode", "batch", "size", "dtype")


def measure(setups: list[Setup], rounds: int) -> list[dict]:
    """Time the modes of one model in turn; a mode that fails has a row with its error and no times."""
    steps, rows = {}, []
    for setup in setups:
        row = {
            "model": setup.name, "pass": "train" if setup.train else "inference", "mode": setup.mode,
            "batch": setup.batch, "size": setup.input_shape[-1], "dtype": str(setup.dtype).removeprefix("torch."),
            "images_per_s": "", "median_ms": "", "quartile1_ms": "", "quartile3_ms": "", "peak_mib": "", "error": "",
        }  # fmt: skip
        rows.append(row)
        try:
            steps[setup.mode] = make_step(setup)
            steps[setup.mode]()
        except Exception as error:  # such as a graph that cannot be captured, or too little memory
            steps.pop(setup.mode, None)
            row["error"] = " ".join(str(error).split())[:200]
    times = alternate(steps, setups[0].device, rounds)
    for row in rows:
        if row["mode"] in times:
            figures = summary(times[row["mode"]])
            row |= figures | {
                "images_per_s": round(setups[0].batch / figures["median_ms"] * 1e3, 1),
                "peak_mib": round(peak_memory(steps[row["mode"]], setups[0].device), 1),
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", default=",".join(MODELS), help="names, separated by commas")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--again", action="store_true", help="measure again what is in the file")
    parser.add_argument("--tiny", action="store_true", help="small images on the CPU, not compiled")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu" / "models.csv")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny tries the script without one")
    device = torch.device("cpu" if args.tiny else "cuda")
    modes = ["eager", "graph"] if args.tiny else args.modes.split(",")
    batch, size, rounds = (2, args.size or 64, 2) if args.tiny else (args.batch, args.size, args.rounds)
    described = dict(machine=machine(), torch=torch.__version__, timm=timm.__version__, visionattn=__version__)
    rows = [] if args.again else [row for row in read_rows(args.out) if not row["error"]]
    done = {tuple(row[name] for name in KEY) for row in rows}
    for name in args.only.split(","):
        for train in (False, True):
            setups = [Setup(name, mode, train, batch, size, DTYPES[args.dtype], device) for mode in modes]
            setups = [setup for setup in setups if _key(setup) not in done]
            if not setups:
                continue
            torch.compiler.reset()
            for row in measure(setups, rounds):
                rows.append(row | described)
                print(*(f"{key}={value}" for key, value in row.items() if value != ""), flush=True)
                write_csv(args.out, rows)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _key(setup: Setup) -> tuple[str, ...]:
    values = (
        setup.name, "train" if setup.train else "inference", setup.mode, setup.batch, setup.input_shape[-1],
        str(setup.dtype).removeprefix("torch."),
    )  # fmt: skip
    return tuple(map(str, values))


if __name__ == "__main__":
    main()
