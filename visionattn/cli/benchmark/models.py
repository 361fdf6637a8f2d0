"""Whole models: images per second and peak memory."""

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from visionattn.cli.benchmark.measure import MODES, Setup, Step, alternate, make_step, peak_memory
from visionattn.errors import ConfigError

__all__ = ["add_arguments", "run"]

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
DEFAULT_SIZE = 640  # of the images for trained models


def add_arguments(parser: Any) -> None:
    """Add the arguments that only models have."""
    parser.add_argument(
        "--model", nargs="+", metavar="NAME",
        help="names of timm models, such as dinat_mini, or of trained models of visionattn models, of which the whole "
        "prediction is timed, with pre- and postprocessing",
    )  # fmt: skip
    parser.add_argument(
        "--modes", nargs="+", choices=MODES,
        help="eager, compile (torch.compile) or graph (CUDA graph) (default: eager, and graph on CUDA)",
    )  # fmt: skip
    parser.add_argument("--train", action="store_true", help="also time a training step")
    parser.add_argument("--size", type=int, metavar="N", help="image size (default: that of the model)")
    parser.add_argument("--json", action="store_true", help="write the results as JSON")
    parser.add_argument("--csv", metavar="FILE", help="also write the results to a CSV file")


def run(args: argparse.Namespace) -> int:
    """Time the models and return 0."""
    if args.size is not None and args.size < 32:
        raise ConfigError(f"`size` must be at least 32, got {args.size}")
    if args.csv and not Path(args.csv).absolute().parent.is_dir():
        raise ConfigError(f"{args.csv}: the folder does not exist")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("PyTorch has no CUDA device available")
    modes = args.modes or (["eager", "graph"] if device.type == "cuda" else ["eager"])
    rows = []
    for train in (False, True) if args.train else (False,):
        rows += _measure(args, device, modes, train)
    if args.csv:
        with Path(args.csv).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if args.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
    else:
        _print(rows)
    return 0


def _steps(args: argparse.Namespace, device: torch.device, modes: list[str], train: bool) -> dict[tuple, Step]:
    """Return the step of each model and mode; of trained models the prediction only."""
    import timm

    import visionattn.backbones  # noqa: F401  registers the models
    from visionattn.cli.source import is_trained
    from visionattn.zoo import similar

    steps: dict[tuple, Step] = {}
    for name in dict.fromkeys(args.model):
        if timm.is_model(name.split(".")[0]):
            for mode in modes:
                setup = Setup(name, mode, train, args.batch, args.size, TYPES[args.dtype], device)
                steps[name, mode] = make_step(setup)
        elif not is_trained(name):
            raise ConfigError(f"{name}: no such `model`; {similar(name)}")
        elif not train:
            steps[name, "predict"] = _prediction(name, args, device)
    return steps


def _prediction(name: str, args: argparse.Namespace, device: torch.device) -> Step:
    """Return a call that predicts on a batch of images of random colors with a trained model."""
    from visionattn.engine import compat
    from visionattn.errors import require
    from visionattn.inference import Predictor
    from visionattn.inference.image_job import ImageJob

    require("mmengine")
    compat.install()
    if args.dtype not in ("fp32", "bf16"):
        raise ConfigError(f"trained models run in fp32 or, with autocast, in bf16, got `dtype` {args.dtype}")
    predictor = Predictor.from_pretrained(name, device, batch_size=args.batch, amp=args.dtype == "bf16")
    if not isinstance(predictor.job, ImageJob):
        raise ConfigError(f"{name}: only models for images can be timed as `model`")
    size = args.size or DEFAULT_SIZE
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (args.batch, size, size, 3), generator=generator, dtype=torch.uint8).numpy()
    return lambda: predictor(list(images))


def _measure(args: argparse.Namespace, device: torch.device, modes: list[str], train: bool) -> list[dict[str, Any]]:
    steps = _steps(args, device, modes, train)
    named = {" ".join(key): step for key, step in steps.items()}
    times = alternate(named, device, args.rounds)
    rows = []
    first: dict[str, float] = {}
    for (name, mode), step in steps.items():
        low, median, high = statistics.quantiles(times[f"{name} {mode}"], n=4)
        rate = args.batch / median * 1e3
        base = first.setdefault(mode, rate)
        rows.append(
            {
                "model": name, "pass": "training step" if train else "inference", "mode": mode, "batch": args.batch,
                "size": args.size or "", "dtype": args.dtype, "device": _name(device),
                "images_per_s": round(rate, 2), "median_ms": round(median, 3), "quartile1_ms": round(low, 3),
                "quartile3_ms": round(high, 3), "times_first": round(rate / base, 3),
                "peak_mib": round(peak_memory(step, device), 1),
            }
        )  # fmt: skip
    return rows


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    for kind in dict.fromkeys(row["pass"] for row in rows):
        found = [row for row in rows if row["pass"] == kind]
        title = f"{kind}: batch {found[0]['batch']}, {found[0]['dtype']}, {found[0]['device']}"
        table = Table("model", "mode", "images/s", "relative", "median ms", "peak MiB", title=title)
        for column in table.columns[:2]:
            column.no_wrap = True
        for column in table.columns[2:]:
            column.justify = "right"
        for row in found:
            table.add_row(
                row["model"], row["mode"], f"{row['images_per_s']:.1f}", f"{row['times_first']:.2f}",
                f"{row['median_ms']:.2f}", f"{row['peak_mib']:.0f}",
            )  # fmt: skip
        console.print(table)
    console.print("relative: images per second relative to the first model in the same mode;")
    console.print("peak: memory allocated at most during a call, beyond the model and its inputs.")
