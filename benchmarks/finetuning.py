"""Compare BCCD runs from random weights and from models of this package: results/finetuning_bccd.csv and a table.

python benchmarks/finetuning.py data/bccd --out runs/finetuning          # trains; continues where it was stopped
python benchmarks/finetuning.py data/bccd --out runs/finetuning --collect  # only reads the runs that exist

Runs have the same seed, data order and schedule. Times are those of the iterations, without validations, and depend on
what else the machine does.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from common import RESULTS, machine

from visionattn.engine.train.curve import read_records

CONFIG = "configs/detection/atss/atss_dinat-pico_fpn_bccd.py"
RUNS: dict[str, list[str]] = {
    "scratch": [],
    "nuclei": ["--from", "nuclei"],
    "digits": ["--from", "digits"],
    "digits-freeze1": ["--from", "digits", "--freeze", "1"],
    "digits-decay": ["--from", "digits", "--layer-decay", "0.8"],
}
COLUMNS = ("run", "arguments", "iteration", "of", "AP", "AP50", "AP75", "seconds")
EVERY = 50
LOGGED = 10  # interval of the records with times, from the base config


def train(name: str, data: Path, out: Path, iterations: int) -> None:
    """Train, or continue, unless the run is complete."""
    if any(r["iter"] == iterations and "val" in r for r in read_records(out / name)):
        return
    options = [
        f"custom_data.root={data}",
        f"max_iters={iterations}",
        f"train_cfg.val_interval={EVERY}",
        f"default_hooks.checkpoint.interval={EVERY}",
    ]
    words = [CONFIG, "--work-dir", str(out / name), *RUNS[name], "--resume", "--seed", "0", "--cfg-options", *options]
    subprocess.run([sys.executable, "-m", "visionattn", "train", *words], check=True)


def collect(name: str, folder: Path, iterations: int) -> list[dict]:
    """The validations of a run, and the time of its iterations until then."""
    rows, seconds = [], 0.0
    for record in read_records(folder):
        if record.get("seconds"):
            seconds += LOGGED * record["seconds"]
        if record.get("val"):
            values = {key: record["val"].get(key, 0.0) for key in ("AP", "AP50", "AP75")}
            row = {"run": name, "arguments": " ".join(RUNS[name]), "iteration": record["iter"], "of": iterations}
            rows.append({**row, **values, "seconds": round(seconds)})
    return rows


def table(rows: list[dict], measure: str) -> str:
    """A Markdown table of one metric by iteration."""
    points = sorted({row["iteration"] for row in rows})
    lines = ["| run | " + " | ".join(map(str, points)) + " |", "|---" * (len(points) + 1) + "|"]
    for name in dict.fromkeys(row["run"] for row in rows):
        found = {row["iteration"]: f"{row[measure]:.3f}" for row in rows if row["run"] == name}
        lines.append(f"| {name} | " + " | ".join(found.get(p, "") for p in points) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of BCCD")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/finetuning"), help="folder for the runs")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="names of runs (default: all)")
    parser.add_argument("--iterations", type=int, default=400, help="length of each run (default: 400)")
    parser.add_argument("--collect", action="store_true", help="do not train")
    args = parser.parse_args()
    for name in [] if args.collect else args.runs:
        train(name, args.data, args.out, args.iterations)
    rows = [row for name in args.runs for row in collect(name, args.out / name, args.iterations)]
    if not rows:
        parser.error(f"{args.out}: contains no runs; leave out --collect")
    with open(RESULTS / "finetuning_bccd.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for measure in ("AP", "AP50"):
        print(f"\n{measure}\n{table(rows, measure)}")
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
