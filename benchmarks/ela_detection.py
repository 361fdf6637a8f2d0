"""Train detectors with and without ELA on BCCD: results/ela_detection.csv and a table.

python benchmarks/ela_detection.py data/bccd --out runs/ela             # trains; continues where it was stopped
python benchmarks/ela_detection.py data/bccd --out runs/ela --collect   # only reads the runs that exist

ResNet-18 from random weights, images of 160x120 pixels. Runs with the same seed have the same data order and schedule.
Times are those of the iterations, without validations, and depend on what else the machine does.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import torch
from common import RESULTS, machine, spread

from visionattn import __version__
from visionattn.engine.config.load import load_config
from visionattn.engine.parts.backbone import Backbone
from visionattn.engine.train.curve import read_records

CONFIG = "configs/detection/atss/atss_resnet18-ela_fpn_bccd.py"
MODELS: dict[str, list[str]] = {"plain": ["model.backbone.plugins=[]"], "ela": []}
COLUMNS = (
    "model", "seed", "iteration", "of", "AP", "AP50", "AP75", "seconds", "backbone_parameters", "machine", "torch",
    "visionattn",
)  # fmt: skip
EVERY = 100  # iterations between checkpoints
LOGGED = 10  # interval of the records with times, from the base config


def train(model: str, seed: int, folder: Path, data: Path, iterations: int) -> None:
    """Train, or continue, unless the run is complete."""
    if any(r["iter"] == iterations and "val" in r for r in read_records(folder)):
        return
    options = [
        f"custom_data.root={data}",
        f"max_iters={iterations}",
        f"train_cfg.val_interval={iterations // 2}",
        f"default_hooks.checkpoint.interval={EVERY}",
        *MODELS[model],
    ]
    words = [CONFIG, "--work-dir", str(folder), "--resume", "--seed", str(seed), "--cfg-options", *options]
    subprocess.run([sys.executable, "-m", "visionattn", "train", *words], check=True)


def collect(model: str, seed: int, folder: Path, iterations: int) -> list[dict]:
    """The validations of a run, and the time of its iterations until then."""
    rows, seconds = [], 0.0
    for record in read_records(folder):
        if record.get("seconds"):
            seconds += LOGGED * record["seconds"]
        if record.get("val"):
            values = {key: round(record["val"].get(key, 0.0), 4) for key in ("AP", "AP50", "AP75")}
            row = {"model": model, "seed": seed, "iteration": record["iter"], "of": iterations, **values}
            rows.append(row | {"seconds": round(seconds), "backbone_parameters": parameters(model)})
    return [row | {"machine": machine(), "torch": torch.__version__, "visionattn": __version__} for row in rows]


def parameters(model: str) -> int:
    backbone = dict(load_config(CONFIG, MODELS[model], resolve_data=False).model.backbone)
    backbone.pop("type")
    return sum(p.numel() for p in Backbone(**backbone).parameters())


def write(rows: list[dict]) -> None:
    with (RESULTS / "ela_detection.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict]) -> str:
    """A Markdown table of the last validations: mean and range over the seeds, and differences of equal seeds."""
    last = {(row["model"], row["seed"]): row for row in rows if row["iteration"] == row["of"]}
    lines = ["| model | seeds | AP | AP50 | AP75 | backbone, M parameters |", "|---|---|---|---|---|---|"]
    for model in MODELS:
        found = [row for (name, _), row in last.items() if name == model]
        if found:
            cells = [spread([row[key] for row in found]) for key in ("AP", "AP50", "AP75")]
            size = found[0]["backbone_parameters"] / 1e6
            lines.append(f"| {model} | {len(found)} | {' | '.join(cells)} | {size:.3f} |")
    pairs = [
        (row, last["plain", seed])
        for (name, seed), row in last.items()
        if (name, ("plain", seed) in last) == ("ela", True)
    ]
    if pairs:
        cells = [spread([a[key] - b[key] for a, b in pairs], "+") for key in ("AP", "AP50", "AP75")]
        lines.append(f"| difference | {len(pairs)} | {' | '.join(cells)} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path, help="folder of BCCD")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/ela"), help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--iterations", type=int, default=400, help="length of each run (default: 400)")
    parser.add_argument("--collect", action="store_true", help="do not train")
    args = parser.parse_args()
    rows: list[dict] = []
    for seed in range(args.seeds):
        for model in MODELS:
            folder = args.out / f"{model}-{seed}"
            if not args.collect:
                train(model, seed, folder, args.data, args.iterations)
            rows += collect(model, seed, folder, args.iterations)
            write(rows)
    if not rows:
        parser.error(f"{args.out}: contains no runs; leave out --collect")
    print(f"{table(rows)}\n\n{machine()}")


if __name__ == "__main__":
    main()
