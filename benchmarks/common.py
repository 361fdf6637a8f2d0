"""What the benchmarks share: alternating timing, the description of the machine, the CSV."""

import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from visionattn.kernels import workspace

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Processor or GPU, and threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability}), {torch.get_num_threads()} threads"


def alternate(functions: dict[str, Callable[[], object]], rounds: int, seconds: float = 0.02) -> dict[str, list]:
    """Time the functions in turn, ``rounds`` times; each visit repeats a call for about ``seconds``.

    Returns:
        Milliseconds per call of each visit. Alternating spreads a slow spell of the machine over all of them.
    """
    repeats = {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        function()
        repeats[name] = max(1, round(seconds / max(time.perf_counter() - start, 1e-7)))
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            times[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median and the quartiles, in milliseconds."""
    low, median, high = statistics.quantiles(times, n=4)
    return dict(median_ms=round(median, 4), quartile1_ms=round(low, 4), quartile3_ms=round(high, 4))


def peak_memory(function: Callable[[], object]) -> float:
    """Megabytes on the CPU that a call holds at most, beside what was there before; scratch memory counts."""
    function()
    workspace.release()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        out = function()
    del out
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of an earlier run that was interrupted; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows with a column for each key of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")


def spread(values: list[float], sign: str = "") -> str:
    """Mean over seeds, with the range of two and more; one decimal for percentages, three for fractions."""
    digits = 1 if max(values) > 2 else 3
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):{sign}.{digits}f} to {max(values):{sign}.{digits}f})"
