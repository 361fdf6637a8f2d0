"""What a forgery model finds of each operation, on forgeries that `visionattn forge` made.

    python benchmarks/forgery_operations.py RUN data/forged/val [--checkpoint FILE] [--tta]
        [--out benchmarks/results/forgery_operations.csv]

For each operation: how many forgeries, the mean pixel F1 at 0.5 and pixel AUC over them, and the AUC of the image score
between them and all untouched pictures. The rows ``all`` and ``spatial`` put operations together; the latter are
copy-move, splice, removal and resampling, which move or remove content. A run replaces the rows of its name and folder
in the file and keeps the others.
"""

import argparse
import csv
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from common import RESULTS, write_csv

from visionattn.heads.forgery.metrics import binary_auc, pixel_scores
from visionattn.inference import Predictor

SPATIAL = ("copy_move", "splice", "removal", "resample")


def measure(predictor: Predictor, folder: Path) -> list[dict]:
    """One row for each operation, and for the groups."""
    records = json.loads((folder / "manifest.json").read_text())["images"]
    operations, scores, pixels = [], [], []
    for record, found in zip(records, predictor.stream(folder / r["image"] for r in records), strict=True):
        scores.append(found.forgery_score)
        operations.append(record["steps"][0]["operation"] if record["label"] else "")
        if record["label"]:
            truth = cv2.imread(str(folder / record["mask"]), cv2.IMREAD_GRAYSCALE)
            one = pixel_scores(found.heatmap, truth)
            pixels.append((one["f1"], one["auc"]))
        else:
            pixels.append((np.nan, np.nan))
    operations, scores, pixels = np.array(operations), np.array(scores), np.array(pixels)
    untouched = operations == ""
    groups = {"all": ~untouched, "spatial": np.isin(operations, SPATIAL)}
    groups |= {name: operations == name for name in sorted(set(operations[~untouched]))}
    rows = []
    for name, members in groups.items():
        if not members.any():
            continue
        f1, area = np.nanmean(pixels[members], 0)
        compared = members | untouched
        image = binary_auc(scores[compared], members[compared])
        rows.append(
            dict(
                operation=name,
                forged=int(members.sum()),
                untouched=int(untouched.sum()),
                pixel_f1=round(float(f1), 4),
                pixel_auc=round(float(area), 4),
                image_auc=round(image, 4),
            )
        )
    return rows


def main() -> None:
    """Measure, print, and write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="work dir of a training run, or a config with --checkpoint")
    parser.add_argument("folder", type=Path, help="what `visionattn forge` wrote")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--tta", action="store_true", help="mirrored views too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", help="of the run in the file (default: the folder's name)")
    parser.add_argument("--data", help="name of the folder in the file (default: its own)")
    parser.add_argument("--out", type=Path, default=RESULTS / "forgery_operations.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.checkpoint:
        predictor = Predictor(args.run, args.checkpoint, tta=args.tta)
    else:
        predictor = Predictor.from_run(args.run, tta=args.tta)
    name = args.name or args.run.stem
    settings = json.loads((args.folder / "manifest.json").read_text())["settings"]
    views, quality = "mirrored too" if args.tta else "one", str(settings["quality"][-1])
    case = dict(run=name, data=args.data or args.folder.name, views=views, quality=quality)
    rows = [case | row for row in measure(predictor, args.folder)]
    kept = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if any(row[key] != value for key, value in case.items())]
    write_csv(args.out, [*kept, *rows])
    for row in rows:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()
