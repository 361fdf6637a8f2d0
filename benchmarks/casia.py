"""Prepare CASIA v1 for `visionattn.ForgeryDataset`, and score predictors on half of it: results/casia.csv.

    python benchmarks/casia.py data/casia1 --out data/casia
    python benchmarks/casia.py data/casia1 --out data/casia --models forgery fine-tuned=work_dirs/RUN

The folder has `pairs.csv`, `images`, `masks` and `authentic`. All files, forged and authentic, are decoded and saved
again as JPEG of quality 90, since the tables of the original files tell the classes apart. ``OUT/train`` and
``OUT/test`` get half of the authentic photographs each, with all forgeries made from them (layout ``mani``: Tp, Gt and
Au).

The scores are those of the test half, for spliced photographs (``Sp_D``), copy-move forgeries (``Sp_S``) and both:
pixel metrics are means over forged images at a threshold of 0.5, and the image AUC is that of the forged photographs
of the kind among the authentic ones. Three predictors learn nothing from images: one marks every pixel, one always
predicts the mean of the training masks, resized to the image, and one is the offset map of `SelfMatch`, with the mean
of its 20 highest values as the score of the image. ``--models`` scores models of the package and training runs
instead. An existing OUT is used as it is.
"""

import argparse
import csv
import datetime
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from common import RESULTS, machine, read_rows, write_csv

import visionattn
from visionattn.heads.forgery.matches import SelfMatch
from visionattn.heads.forgery.metrics import binary_auc, pixel_scores
from visionattn.heads.forgery.noise import MEAN, STD
from visionattn.inference import Predictor

CSV = RESULTS / "casia.csv"
QUALITY, SEED = 90, 0
SIDE = 64
KINDS = {"spliced": ("Sp_D",), "copy-move": ("Sp_S",), "both": ("Sp_D", "Sp_S")}
Method = Callable[[Path], tuple[np.ndarray, float]]
"""Returns the map of an image, with any size, and its score."""


def save(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), cv2.imread(str(source)), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def prepare(data: Path, out: Path) -> None:
    """Write both halves."""
    with (data / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["authentic"] for row in rows} - {""})
    order = np.random.default_rng(SEED).permutation(len(names))
    halves = {names[i]: ("train", "test")[place % 2] for place, i in enumerate(order)}
    for row in rows:
        folder, stem = out / halves.get(row["authentic"], "train"), Path(row["image"]).stem
        save(data / row["image"], folder / "Tp" / f"{stem}.jpg")
        mask = cv2.imread(str(data / row["mask"]), cv2.IMREAD_GRAYSCALE)
        (folder / "Gt").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "Gt" / f"{stem}.png"), np.where(mask > 127, 255, 0).astype(np.uint8))
    for name, half in halves.items():
        save(data / name, out / half / "Au" / f"{Path(name).stem}.jpg")


def read_mask(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127


def resize(prediction: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return cv2.resize(prediction, shape[::-1], interpolation=cv2.INTER_LINEAR)


def mean_mask(folder: Path) -> np.ndarray:
    """The mean of masks; the threshold with the best F1 on them becomes 0.5."""
    truths = [read_mask(path) for path in sorted(folder.glob("*.png"))]
    small = [cv2.resize(truth.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for truth in truths]
    mean = np.mean(small, axis=0)

    def f1(level: float) -> float:
        return float(np.nanmean([pixel_scores(resize(mean * 0.5 / level, t.shape), t)["f1"] for t in truths]))

    return np.clip(mean * 0.5 / max(np.linspace(0.05, 0.5, 10), key=f1), 0, 1).astype(np.float32)


def matches() -> Method:
    module = SelfMatch()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def method(path: Path) -> tuple[np.ndarray, float]:
        pixels = torch.from_numpy(cv2.imread(str(path))[:, :, ::-1].copy()).permute(2, 0, 1) / 255
        found = module(((pixels - mean) / std)[None])[0, 1].numpy()
        return found, float(np.sort(found.ravel())[-20:].mean())

    return method


def trained(source: str) -> Method:
    """A model of the package, or a training run."""
    predictor = Predictor.from_run(source) if Path(source).is_dir() else Predictor.from_pretrained(source)

    def method(path: Path) -> tuple[np.ndarray, float]:
        prediction = predictor(str(path))
        return prediction.heatmap, float(prediction.forgery_score)

    return method


def score(method: Method, folder: Path) -> dict[str, dict[str, float]]:
    """The metrics of each kind of forgery."""
    authentic = [method(path)[1] for path in sorted(folder.glob("Au/*.jpg"))]
    forged = {path: method(path) for path in sorted(folder.glob("Tp/*.jpg"))}
    found = {}
    for kind, starts in KINDS.items():
        paths = [path for path in forged if path.stem.startswith(starts)]
        truths = [read_mask(folder / "Gt" / f"{path.stem}.png") for path in paths]
        scores = [
            pixel_scores(resize(forged[path][0], truth.shape), truth) for path, truth in zip(paths, truths, strict=True)
        ]
        found[kind] = {f"pixel_{key}": float(np.nanmean([one[key] for one in scores])) for key in ("f1", "iou", "auc")}
        values = [forged[path][1] for path in paths] + authentic
        found[kind]["image_auc"] = binary_auc(np.array(values), np.array([1] * len(paths) + [0] * len(authentic)))
        found[kind]["forged"] = len(paths)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data/casia"))
    parser.add_argument("--models", nargs="*", default=[], metavar="[TEXT=]NAME_OR_RUN", help="only score these")
    args = parser.parse_args()
    if not args.out.exists():
        prepare(args.data, args.out)
    if args.models:
        named = [model.rsplit("=", 1) for model in args.models]
        methods = {words[0]: trained(words[-1]) for words in named}
    else:
        prior = mean_mask(args.out / "train/Gt")
        methods = {
            "all pixels": lambda path: (np.ones((SIDE, SIDE), np.float32), 0.5),
            "mean of the training masks": lambda path: (prior, 0.5),
            "patch matching": matches(),
        }
    rows: list[dict] = list(read_rows(CSV))
    for name, method in methods.items():
        rows = [row for row in rows if row["predictor"] != name]
        for kind, values in score(method, args.out / "test").items():
            numbers = {key: round(value, 3) for key, value in values.items()}
            print(f"{name}, {kind}:", *(f"{key} {value}" for key, value in numbers.items()), flush=True)
            constant = {"machine": machine(), "visionattn": visionattn.__version__, "quality": QUALITY}
            date = datetime.date.today().isoformat()
            rows.append({"predictor": name, "forgeries": kind} | numbers | constant | {"date": date})
    write_csv(CSV, rows)


if __name__ == "__main__":
    main()
