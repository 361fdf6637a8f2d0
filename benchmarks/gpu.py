"""Everything that is measured on a GPU, in parts, each of them a process that is bounded in time.

    make gpu                                        all parts, in a virtual environment of its own
    make gpu PYTHON=python3 INSTALL=0               the same with an existing Python; installs nothing
    python benchmarks/gpu.py --part goals models    some parts
    python benchmarks/gpu.py --dry-run              prints the commands; needs no GPU

The parts are independent, and a part that ends early, by its time limit or an error, does not stop the others. Results
are in benchmarks/results/gpu, and the table of tiles in visionattn/kernels/tuned.csv. They are written as they are
measured, and a part that is run again continues where it was; --again starts it anew.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("benchmarks/results/gpu")  # relative to ROOT
TESTS = [f"tests/kernels/{name}/test_triton_kernels.py" for name in ("neighborhood", "routing", "scattered")]
LIMIT = 10.0  # minutes per part


@dataclass(frozen=True)
class Part:
    """A part: what it is, the arguments of Python, and those that continue an earlier run."""

    about: str
    arguments: tuple[str, ...]
    resume: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


def _script(about: str, name: str, *arguments: str, out: str = "", resume: tuple = (), again: tuple = ()) -> Part:
    target = ("--out", str(RESULTS / out)) if out else ()
    return Part(about, (f"benchmarks/{name}.py", *arguments, *target), resume, again)


PARTS = {
    "tests": Part(
        "the kernels against their definitions",
        ("-m", "pytest", "-q", "-n", "12", "--maxfail=15", "-p", "no:cacheprovider", *TESTS),
    ),
    "goals": _script(
        "neighborhood attention at the sizes of docs/gpu.md, against the peers", "na_gpu", "--goals",
        out="na_goals.csv", resume=("--resume",),
    ),
    "counters": _script("counters of the kernels, if ncu is installed", "counters", out="counters.csv"),
    "tune": _script("the fastest tile for each kind of problem", "tune", again=("--again",)),
    "routing": _script("bi-level routing attention", "routing_gpu", out="routing.csv"),
    "scattered": _script("scattered linear attention", "scattered_gpu", out="scattered.csv"),
    "models": _script("whole models", "models", out="models.csv", again=("--again",)),
}  # fmt: skip


def command(name: str, again: bool) -> list[str]:
    """The command of a part, relative to the root of the repository."""
    part = PARTS[name]
    return [sys.executable, *part.arguments, *(part.again if again else part.resume)]


def run(name: str, again: bool, minutes: float) -> str:
    """Run a part and return how it ended: "ok", "stopped after ..." or "failed ..."."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment.setdefault("VISIONATTN_TRITON_CASES", "60")
    (ROOT / RESULTS).mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command(name, again), cwd=ROOT, env=environment, start_new_session=True)
    try:
        status = process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        _stop(process)
        return f"stopped after {minutes:g} minutes"
    except KeyboardInterrupt:
        _stop(process)
        raise
    return "ok" if status == 0 else f"failed with status {status}"


def has_gpu() -> bool:
    """Return True if there is a CUDA device; the tests of the kernels would only be skipped without one."""
    import torch

    return torch.cuda.is_available()


def _stop(process: subprocess.Popen) -> None:
    """End the process and those that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all, in this order")
    parser.add_argument("--minutes", type=float, default=LIMIT, help=f"limit for each part (default: {LIMIT:g})")
    parser.add_argument("--again", action="store_true", help="do not continue earlier runs")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    args = parser.parse_args()
    if args.dry_run:
        for name in args.part:
            print(f"{name}: {PARTS[name].about}\n  {shlex.join(command(name, args.again))}")
        return 0
    if not has_gpu():
        parser.error("PyTorch has no CUDA device here; --dry-run prints the commands")
    ended = {}
    for name in args.part:
        print(f"\n== {name}: {PARTS[name].about}", flush=True)
        start = time.monotonic()
        ended[name] = run(name, args.again, args.minutes)
        print(f"== {name}: {ended[name]}, {time.monotonic() - start:.0f} s", flush=True)
    print("\n" + "\n".join(f"{name:<10} {state}" for name, state in ended.items()))
    return int(any(state != "ok" for state in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
