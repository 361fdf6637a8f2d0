"""Exported backbones in ONNX Runtime and the same models in PyTorch: time and peak memory on a CPU.

    python benchmarks/onnx_speed.py [--threads 2] [--rounds 5] [--only dinat_mini,davit_tiny]
        [--files exported] [--out benchmarks/results/onnx_speed.csv]

Each file is compared with its model before anything is timed. Timing alternates between both. The CPU time of a call is
given besides its duration, since it depends less on other programs. The peak memory of each is that of a process of its
own, less what it holds before the first call.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import timm
import torch
from common import RESULTS, machine, write_csv

from visionattn import __version__
from visionattn.inference.export import export_model, timm_network

CASES = [  # model, dynamic axes, size that is traced, (batch, height, width) that are measured
    ("dinat_mini", (), (800, 1088), [(1, 800, 1088)]),
    ("dinat_mini", ("batch", "size"), (64, 96), [(1, 800, 1088), (4, 224, 224)]),
    ("biformer_tiny", ("batch",), (224, 224), [(4, 224, 224)]),
    ("davit_tiny", ("batch",), (224, 224), [(4, 224, 224)]),
]
TOLERANCE = 1e-4  # of the largest output


def images(shape: list[int]) -> torch.Tensor:
    return torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(0))


def export(name: str, dynamic: tuple[str, ...], size: tuple[int, int], folder: Path) -> Path:
    """Export the features of a model with seeded weights, unless the file exists."""
    path = folder / f"{name}_{'_'.join(dynamic) or 'x'.join(map(str, size))}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        export_model(timm_network(name, features=True), path, size, dynamic=dynamic)
    return path


def torch_call(name: str, shape: list[int], threads: int) -> Callable[[], list[torch.Tensor]]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network, x = timm_network(name, features=True), images(shape)

    def call():
        with torch.inference_mode():
            return list(network(x))

    return call


def onnx_call(path: str, shape: list[int], threads: int) -> Callable[[], list[torch.Tensor]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # waiting threads would otherwise take time from PyTorch, which is measured in the same process
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = images(shape).numpy()
    return lambda: [torch.from_numpy(output) for output in session.run(None, {"image": x})]


MAKERS = {"torch": torch_call, "onnxruntime": onnx_call}


def check(call: Callable[[], list[torch.Tensor]], other: Callable[[], list[torch.Tensor]]) -> float:
    """Return the largest difference of the outputs, relative to the largest output; it must be within `TOLERANCE`."""
    worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(call(), other(), strict=True))
    assert worst < TOLERANCE, f"the outputs differ by {worst:.1e}"
    return worst


def alternate(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the medians of the duration and the CPU time of a call, in milliseconds."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            call()
            times[name].append(((time.perf_counter() - start[0]) * 1e3, (time.process_time() - start[1]) * 1e3))
    return {name: tuple(map(statistics.median, zip(*visits, strict=True))) for name, visits in times.items()}


def resident(entry: str) -> float:
    """MiB that this process holds (VmRSS), or has held at most (VmHWM)."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands a parent's ru_maxrss down to the processes it starts
        return int(status.read_text().split(f"{entry}:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def measure_memory(job: str) -> None:
    kind, source, shape, threads = json.loads(job)
    call = MAKERS[kind](source, shape, threads)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak while the model was loaded does not count
    before = resident("VmRSS")
    call()
    print(resident("VmHWM") - before)


def peak(*job) -> float:
    """MiB that the first call takes beyond the model, in a process of its own."""
    command = [sys.executable, __file__, "--measure-memory", json.dumps(job)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="names of models, separated by commas")
    parser.add_argument("--files", type=Path, help="folder of the exported files, which are used again")
    parser.add_argument("--out", type=Path, default=RESULTS / "onnx_speed.csv")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        measure_memory(arguments.measure_memory)
        return
    folder = arguments.files or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    common = dict(
        machine=machine(), torch=torch.__version__, onnxruntime=onnxruntime.__version__, timm=timm.__version__,
        visionattn=__version__,
    )  # fmt: skip
    rows = []
    for name, dynamic, size, shapes in CASES:
        if arguments.only and name not in arguments.only.split(","):
            continue
        path = export(name, dynamic, size, folder)
        for shape in shapes:
            jobs = {"torch": (name, shape, arguments.threads), "onnxruntime": (str(path), shape, arguments.threads)}
            calls = {kind: MAKERS[kind](*job) for kind, job in jobs.items()}
            difference = check(*calls.values())
            times = alternate(calls, arguments.rounds)
            del calls
            memory = {kind: peak(kind, *job) for kind, job in jobs.items()}
            row = dict(model=name, dynamic=" ".join(dynamic), batch=shape[0], height=shape[1], width=shape[2])
            for kind in jobs:
                row |= {f"{kind}_ms": round(times[kind][0], 1), f"{kind}_cpu_ms": round(times[kind][1], 1)}
                row[f"{kind}_peak_mib"] = round(memory[kind], 1)
            for unit in ("ms", "cpu_ms", "peak_mib"):
                row[f"{unit}_ratio"] = round(row[f"onnxruntime_{unit}"] / row[f"torch_{unit}"], 3)
            row["difference"] = f"{difference:.1e}"
            print(row, flush=True)
            rows.append(row | common)
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
