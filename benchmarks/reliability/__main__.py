"""Try every fault and write the table: ``python -m benchmarks.reliability [--quick]``."""

import argparse
import csv
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

import visionattn
from benchmarks.reliability import faults, kills, soak
from benchmarks.reliability.setting import Row
from visionattn.engine.compat import install

ROOT = Path(__file__).parents[2]
CSV = ROOT / "benchmarks" / "results" / "reliability.csv"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def main() -> int:
    """Run all; returns 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, to try this script; writes nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    install()
    share = 10 if args.quick else 1
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        kills.unbroken(folder)
        steps = [
            lambda: kills.killed_anywhere(folder, max(3, 40 // share)),
            lambda: kills.killed_while_writing(folder),
            lambda: kills.full_disk(folder),
            lambda: kills.damaged_files(folder, 200 // share),
            lambda: kills.stopped(folder),
            lambda: faults.not_finite(folder),
            lambda: faults.bad_images(folder),
            lambda: faults.twice_the_same(folder),
            lambda: soak.training(folder, 2000 // share),
            lambda: soak.predicting(folder, 2000 // share),
            faults.attacks,
        ]
        for step in steps:
            start = time.monotonic()
            made = step()
            for row in made if isinstance(made, list) else [made]:
                rows.append(row)
                print(f"{row.fault} | {row.tries} | {row.outcome} | lost: {row.lost}", flush=True)
            print(f"  ({time.monotonic() - start:.0f} s)", flush=True)
    if not args.quick:
        write(rows)
    return 0 if all(row.lost == "nothing" for row in rows) else 1


def write(rows: list[Row]) -> None:
    """The CSV, and the table of the page."""
    machine = f"{platform.system()} {platform.machine()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    with open(CSV, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["fault", "tries", "outcome", "lost", "machine", "visionattn"])
        writer.writerows([r.fault, r.tries, r.outcome, r.lost, machine, visionattn.__version__] for r in rows)
    table = ["| fault | tried | what happened | lost |", "|---|---|---|---|"]
    table += [f"| {r.fault} | {r.tries} | {r.outcome} | {r.lost} |" for r in rows]
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(table) + f"\n\n{machine}.\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    sys.exit(main())
