"""Localization from image labels on crops of photographs: SAT, class activation maps and centered boxes.

python benchmarks/object_crops.py data/coco128 data/raccoon --out data/objects
python benchmarks/object_localization.py data/objects --out runs/objects    # trains; continues where it was stopped

All models start from random weights and are evaluated at the last iteration. The config of SAT expects that objects
cover 0.3 of an image. The width and height of the centered box are the best ones for the training images; the threshold
on the maps is the best one for the validation images, as in MaxBoxAccV2 (Choe et al., CVPR 2020). Rows are added to
results/object_localization.csv.
"""

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from common import RESULTS, machine, read_rows, write_csv

from visionattn import __version__
from visionattn.engine.train.curve import read_records

CSV = RESULTS / "object_localization.csv"
CENTERED = "best centered box of the training images"
MODELS = {  # name of the runs, config, options
    "SAT, small vision transformer": ("sat", "sat_vit-pico_folders_custom", []),
    "class activation maps, dinat_nano": (
        "cam", "cam_dinat-pico_folders_custom",
        ["model.backbone.model_name=dinat_nano", "model.backbone.out_indices=[2]"],
    ),
}  # fmt: skip


def train(config: str, options: list[str], folder: Path, seed: int) -> dict[str, float]:
    """Train, or continue, and return the metrics of the last validation."""
    words = [config, "--work-dir", str(folder), "--resume", "--seed", str(seed), "--cfg-options", *options]
    subprocess.run([sys.executable, "-m", "visionattn", "train", *words], check=True)
    return next(record["val"] for record in reversed(read_records(folder)) if record.get("val"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/objects"), help="folder for the runs")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    length = [f"max_iters={args.iterations}", f"train_cfg.val_interval={args.iterations}"]
    common = {"machine": machine(), "visionattn": __version__, "date": datetime.date.today().isoformat()}
    rows: list[dict] = list(read_rows(CSV))
    for seed in range(args.seeds):
        for model, (short, config, options) in MODELS.items():
            if any(row["model"] == model and int(row["seed"]) == seed for row in rows):
                continue
            given = [f"custom_data.root={args.data}", *length, *options]
            values = train(config, given, args.out / f"{short}-{seed}", seed)
            scores = {key: round(values[key], 1) for key in ("MaxBoxAccV2", "BoxAcc50", "Top1")}
            rows.append({"model": model, "seed": seed, "iterations": args.iterations, **scores, **common})
            if not any(row["model"] == CENTERED for row in rows):
                box = {"MaxBoxAccV2": round(values["CentreBoxV2"], 1), "BoxAcc50": "", "Top1": ""}
                rows.append({"model": CENTERED, "seed": "", "iterations": "", **box, **common})
            write_csv(CSV, rows)


if __name__ == "__main__":
    main()
