"""Does pose help? Runs of the moving-figures configs on their test clips: results/pose_actions.csv and a table.

visionattn data moving-figures --out data/moving-figures
python tools/train.py configs/pose/moving_figures/timesformer_figures.py --seed 0 --work-dir runs/plain-0
...                                 # and so on, for each config and seed; then
python benchmarks/pose_actions.py runs/*

Models with pose-aware attention are measured twice: with the keypoints of the test clips, and without any.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, machine, write_csv
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from visionattn import __version__
from visionattn.engine.model import LoadedModel, find_run, load_model
from visionattn.engine.train.curve import read_records
from visionattn.heads.action.metrics import mean_class_accuracy, top_accuracy

BATCH = 50


def measure(loaded: LoadedModel, with_points: bool) -> dict[str, float]:
    """Top-1 and mean class accuracy on the test clips."""
    part = loaded.cfg.test_dataloader.dataset
    part.pipeline[0].points = with_points
    dataset = DATASETS.build(part)
    scores, labels = [], []
    for start in range(0, len(dataset), BATCH):
        batch = [dataset[i] for i in range(start, min(start + BATCH, len(dataset)))]
        labels += [int(item["data_samples"].gt_label) for item in batch]
        with torch.inference_mode():
            scores += [sample.pred_scores.numpy() for sample in loaded.model.test_step(pseudo_collate(batch))]
    scores, labels = np.stack(scores), np.array(labels)
    return {
        "Top1": top_accuracy(scores, labels),
        "MeanClass": mean_class_accuracy(scores, labels),
        "clips": len(labels),
    }


def read_run(folder: Path) -> list[dict]:
    """Rows of the curve of a run, and of what its last checkpoint reaches on the test clips."""
    config, _ = find_run(folder)
    checkpoint = max(folder.glob("iter_*.pth"), key=lambda path: int(path.stem.split("_")[1]))
    loaded = load_model(config, checkpoint)
    common = {
        "model": config.stem.removesuffix("_figures"),
        "seed": torch.load(checkpoint, weights_only=True, map_location="cpu")["meta"]["seed"],
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
    }
    about = {"machine": machine(), "torch": torch.__version__, "visionattn": __version__}
    rows = []
    for record in read_records(folder):
        if record.get("val"):
            figures = {"Top1": record["val"]["Top1"], "MeanClass": record["val"]["MeanClass"], "clips": ""}
            rows.append({**common, "split": "val", "points": "", "iteration": record["iter"], **figures, **about})
    aware = bool(loaded.model.backbone.net.paab)
    for points in (True, False) if aware else (True,):
        rows.append(
            {
                **common,
                "split": "test",
                "points": ("given" if points else "none") if aware else "",
                "iteration": int(checkpoint.stem.split("_")[1]),
                **measure(loaded, points),
                **about,
            }
        )
    return rows


def print_table(rows: list[dict]) -> None:
    """Markdown: mean over the seeds, and their range."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["split"] == "test":
            found[row["model"], row["points"]].append(row["Top1"])
    print("| model | keypoints in testing | top-1, mean (range) of the seeds |\n|---|---|---|")
    for (model, points), values in found.items():
        print(
            f"| {model} | {points or 'not used'} | {statistics.mean(values):.1f} "
            f"({min(values):.1f} to {max(values):.1f}), {len(values)} seeds |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work dir of a run")
    parser.add_argument("--out", type=Path, default=RESULTS / "pose_actions.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for folder in args.runs for row in read_run(folder)]
    rows.sort(key=lambda row: (row["model"], row["seed"]))
    write_csv(args.out, rows)
    print_table(rows)


if __name__ == "__main__":
    main()
