"""Show package versions, devices, and the backend that each operator uses on this machine, with reasons.

The exit status is 0 even if packages are missing; the table then shows how to install them.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from visionattn import __version__
from visionattn.errors import BackendError, VisionattnError, require
from visionattn.kernels import backends

PACKAGES = (
    "torch", "torchvision", "triton", "timm", "numpy", "mmengine", "mmcv", "mmcv-lite", "mmdet", "mmsegmentation",
    "pycocotools", "albumentations", "opencv-python", "opencv-python-headless", "rich", "tensorboard",
)  # fmt: skip
ONE_OF = {"mmcv": "mmcv-lite", "mmcv-lite": "mmcv"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn doctor``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print the report and return 0."""
    record = examine()
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        _print(record)
    return 0


def examine() -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "visionattn": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "packages": _packages(),
        "devices": _devices(),
        "operators": _operators(),
        "mmcv_operators": _mmcv_operators(),
    }


def _packages() -> list[dict[str, str | None]]:
    """Return name, version, required version and problem of each package."""
    wanted = _requirements()
    found = {name: _version(name) for name in PACKAGES}
    rows = []
    for name, version in found.items():
        needed = wanted.get(name)
        problem = None
        if version is None:
            if found.get(ONE_OF.get(name, "")):
                continue  # only one of the two is needed
            if needed is not None:
                problem = f"not installed; run: pip install '{_extra_of(name)}'"
        elif needed is not None and version not in needed:
            problem = f"untested version; run: pip install '{name}{needed}'"
        rows.append({"name": name, "version": version, "needed": str(needed or "") or None, "problem": problem})
    return rows


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> dict[str, Any]:
    """Return the version ranges that visionattn requires, by package; empty if it is not installed."""
    requirement = require("packaging.requirements").Requirement
    try:
        lines = importlib.metadata.requires("visionattn") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    parsed = [requirement(line) for line in lines]
    here = [r for r in parsed if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in ("", "openmmlab"))]
    return {r.name: r.specifier for r in here}


def _extra_of(name: str) -> str:
    return "visionattn" if name in ("torch", "timm", "numpy", "rich", "triton") else "visionattn[openmmlab]"


def _devices() -> list[dict[str, Any]]:
    devices = [
        {
            "device": "cpu",
            "name": _cpu_name(),
            "detail": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}",
        }
    ]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        detail = f"compute capability {facts.major}.{facts.minor}, {facts.total_memory / 2**30:.0f} GiB"
        devices.append({"device": f"cuda:{index}", "name": facts.name, "detail": detail})
    return devices


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _operators() -> list[dict[str, Any]]:
    """Return the selected backend and the reasons against others for each operator, device type and dtype."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [_choice(op, device, dtype) for op in backends.OPERATORS for device in kinds for dtype in backends.DTYPES]


def _choice(op: str, device: str, dtype: torch.dtype) -> dict[str, Any]:
    choices = backends.explain(op, device, dtype)
    try:
        uses, problem = backends.select(op, torch.device(device), dtype), None
    except BackendError as error:  # the backend in VISIONATTN_BACKEND cannot run
        uses, problem = None, str(error)
    others = {}
    for choice in choices:
        if choice.backend != uses:
            others[choice.backend] = choice.reason or _why_unused(choice.backend, device)
    kind = str(dtype).removeprefix("torch.")
    return {"operator": op, "device": device, "dtype": kind, "uses": uses, "problem": problem, "others": others}


def _why_unused(backend: str, device: str) -> str:
    if backend == "reference":
        return "reference implementation for tests; runs only if selected"
    if backend == "triton" and device != "cuda":
        return "Triton interpreter, for tests; runs only if selected"
    named = os.environ.get("VISIONATTN_BACKEND")
    return f"available, but VISIONATTN_BACKEND={named} is set" if named else "available, but slower"


def _mmcv_operators() -> dict[str, Any]:
    """Return the provider of the mmcv operators that mmdet and mmseg call."""
    try:
        from visionattn.engine.compat import ops
    except VisionattnError as error:
        return {"provider": None, "detail": " ".join(str(error).split())}
    if ops.is_compiled():
        return {"provider": "mmcv", "detail": "compiled operators of the installed mmcv"}
    from visionattn.engine.compat.ops.module import OPERATORS

    detail = f"no compiled mmcv; {len(OPERATORS)} operators are provided with torchvision and PyTorch"
    return {"provider": "visionattn", "detail": detail}


def _print(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(f"visionattn {record['visionattn']}, Python {record['python']}, {record['system']}", soft_wrap=True)
    console.print(record["executable"], markup=False, soft_wrap=True)
    for device in record["devices"]:
        line = f"{device['device']}: {device['name']}, {device['detail']}"
        console.print(line, markup=False, soft_wrap=True)
    if len(record["devices"]) == 1:
        console.print("no CUDA device available to PyTorch", soft_wrap=True)
    problems = any(row["problem"] for row in record["packages"])
    table = Table("package", "version", "needed", *(["problem"] if problems else []))
    for row in record["packages"]:
        cells = (row["name"], row["version"] or "-", row["needed"] or "", row["problem"] or "")
        table.add_row(*(Text(cell, overflow="fold") for cell in cells[: len(table.columns)]))
    console.print(table)
    table = Table("operator", "device", "dtypes", "backend", "other backends")
    for column in table.columns[:4]:
        column.no_wrap = True
    for row in _merged(record["operators"]):
        others = "\n".join(f"{name}: {reason}" for name, reason in row["others"].items())
        runs_on = row["uses"] or "none"
        if row["problem"]:
            others = f"{row['problem']}\n{others}"
        cells = ("\n".join(row["operators"]), row["device"], "\n".join(row["dtypes"]), runs_on, others)
        table.add_row(*(Text(cell, overflow="fold") for cell in cells), end_section=True)
    console.print(table)
    mmcv = record["mmcv_operators"]
    console.print(Text(f"mmcv operators: {mmcv['provider'] or 'none'} ({mmcv['detail']})"), soft_wrap=True)


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge rows of dtypes and operators with equal results."""
    merged: list[dict[str, Any]] = []
    by_operator: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        shared = (row["device"], row["uses"], row["problem"], tuple(row["others"].items()))
        by_operator.setdefault((row["operator"], *shared), {**row, "dtypes": []})["dtypes"].append(row["dtype"])
    for row in by_operator.values():
        same = ("device", "dtypes", "uses", "others") if row["uses"] else ("operator",)
        twin = next((m for m in merged if all(m[key] == row[key] for key in same)), None)
        if twin is None:
            merged.append({**row, "operators": [row["operator"]]})
        else:
            twin["operators"].append(row["operator"])
    return merged
