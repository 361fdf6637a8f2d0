"""Compare runs of the CamVid configs: results/camvid.csv, docs/camvid_curves.png, tables for docs/trained.md.

python tools/train.py configs/segmentation/semantic_fpn/semantic-fpn_dinat-pico_camvid.py --seed 0 --work-dir runs/d0
...                                 # and so on, for each model and seed; then
python benchmarks/camvid.py runs/*
"""

import argparse
import csv
import re
import statistics
import time
from collections import defaultdict
from pathlib import Path

import matplotlib
import torch
from mmengine.structures import PixelData
from torch.utils.flop_counter import FlopCounterMode

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common import RESULTS, machine

from visionattn.engine.model import find_run, load_model
from visionattn.engine.train.curve import read_records

DOCS = Path(__file__).parents[1] / "docs"
COLOURS = ("#2b6cb0", "#dd8452", "#3a923a", "#8172b2")
COLUMNS = ("model", "seed", "measure", "class", "iteration", "value")
CROP = (4, 3, 192, 256)  # a training batch of the configs
IMAGE = (1, 3, 256, 320)  # a 240x320 image, padded to whole strides


def read_run(folder: Path) -> list[dict]:
    """Every number of a run that its own files hold."""
    config, checkpoint = find_run(folder)
    meta = torch.load(checkpoint, weights_only=True, map_location="cpu")["meta"]
    base = {"model": config.stem, "seed": meta["seed"], "class": ""}
    rows = []
    for record in read_records(folder):
        if "loss" in record:
            rows.append({**base, "measure": "loss", "iteration": record["iter"], "value": round(record["loss"], 4)})
        for name, value in (record.get("val") or {}).items():
            rows.append({**base, "measure": name, "iteration": record["iter"], "value": round(value, 2)})
    end = rows[-1]["iteration"]
    log = max(folder.glob("2*/*.log")).read_text()
    table = re.findall(
        r"^\| +(\w+) +\| +([\d.]+) +\| +[\d.]+ +\|$", log.rsplit("per class results", 1)[1], re.MULTILINE
    )
    ious = {name: float(value) for name, value in table}
    mean = next(row["value"] for row in rows if (row["iteration"], row["measure"]) == (end, "mIoU"))
    if abs(statistics.mean(ious.values()) - mean) > 0.01:
        raise SystemExit(f"{folder}: the classes' IoU in its log do not give its mIoU, {mean}")
    for name, value in ious.items():
        rows.append({**base, "measure": "IoU", "class": name, "iteration": end, "value": value})
    return rows


def cost(folder: Path, rounds: int = 5) -> list[dict]:
    """Parameters, operations for one image, and the time of a training step, its data left out."""
    config, checkpoint = find_run(folder)
    model = load_model(config, checkpoint).model
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.decode_head(model.extract_feat(torch.zeros(IMAGE)))
    model.train()
    images = torch.randn(CROP)
    samples = [type("Sample", (), {"gt_sem_seg": PixelData(data=torch.randint(0, 11, (1, *CROP[2:])))})()] * CROP[0]
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        model.decode_head.loss(model.extract_feat(images), samples, {})["loss_ce"].backward()
        times.append(time.perf_counter() - start)
    values = {
        "parameters (M)": sum(p.numel() for p in model.parameters()) / 1e6,
        "GMACs": counter.get_total_flops() / 2e9,
        "seconds per step": statistics.median(times[1:]),
    }
    base = {"model": config.stem, "seed": "", "class": "", "iteration": ""}
    return [{**base, "measure": name, "value": round(value, 3)} for name, value in values.items()]


def draw(rows: list[dict], path: Path) -> None:
    """Training loss and validation mIoU of every run, a colour for each model."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), dpi=120, layout="constrained")
    for colour, model in zip(COLOURS, dict.fromkeys(row["model"] for row in rows), strict=False):
        seeds = sorted({row["seed"] for row in rows if row["model"] == model and row["seed"] != ""})
        for number, seed in enumerate(seeds):
            for axis, measure in zip(axes, ("loss", "mIoU"), strict=True):
                points = [
                    (row["iteration"], row["value"])
                    for row in rows
                    if (row["model"], row["seed"], row["measure"]) == (model, seed, measure)
                ]
                label = f"{short(model)}, {len(seeds)} seeds" if number == 0 else None
                marker = "o" if measure == "mIoU" else None
                axis.plot(
                    *zip(*points, strict=True), color=colour, alpha=0.75, label=label, marker=marker, linewidth=1.3
                )
    for axis, title in zip(axes, ("training loss", "mIoU on val, 101 frames (%)"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("iteration")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path)


def short(model: str) -> str:
    return model.split("_")[1]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def print_tables(rows: list[dict]) -> None:
    """Markdown: a row for each measure and class, a column for each model, means with the range of the seeds."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    last = max(row["iteration"] for row in rows if row["measure"] == "mIoU")
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["iteration"] in ("", last):
            found[row["measure"], row["class"]][row["model"]].append(row["value"])
    print(f"| | {' | '.join(map(short, models))} |\n|---|{'---|' * len(models)}")
    for (measure, name), values in found.items():
        if measure in ("loss", "mAcc"):
            continue
        cells = [spread(values[m]) if len(values[m]) > 1 else f"{values[m][0]:g}" for m in models]
        print(f"| {name or measure} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work dir of a run")
    rows = []
    seen = set()
    runs = parser.parse_args().runs
    for folder in runs:
        rows += read_run(folder)
    for folder in runs:
        config = find_run(folder)[0].stem
        if config not in seen:
            seen.add(config)
            rows += cost(folder)
    rows.sort(key=lambda row: (row["model"], str(row["seed"])))
    with (RESULTS / "camvid.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, DOCS / "camvid_curves.png")
    print(f"time of a step on {machine()}")
    print_tables(rows)


if __name__ == "__main__":
    main()
