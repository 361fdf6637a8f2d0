"""Prepare CASIA v1 for `visionattn.ForgeryDataset` and score predictors that do not look at the image.

    python benchmarks/casia.py data/casia1 --out data/casia

The folder has `pairs.csv`, `images`, `masks` and `authentic`. All files, forged and authentic, are decoded and saved
again as JPEG of quality 90, since the tables of the original files tell the classes apart. ``OUT/train`` and
``OUT/test`` get half of the authentic photographs each, with all forgeries made from them (layout ``mani``: Tp, Gt and
Au).

Printed are the scores on the test half of a predictor that marks every pixel, of one that always predicts the mean of
the training masks, resized to the image, and of the offset map of `SelfMatch`, with which nothing is learned. The last
one is scored on spliced photographs (``Sp_D``) and copy-move forgeries (``Sp_S``) apart, with the AUC of its 20 highest
values between these and the authentic photographs.
"""

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np
import torch

from visionattn.heads.forgery.matches import SelfMatch
from visionattn.heads.forgery.metrics import binary_auc, pixel_scores
from visionattn.heads.forgery.noise import MEAN, STD

SIDE = 64


def save(source: Path, target: Path, quality: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), cv2.imread(str(source)), [cv2.IMWRITE_JPEG_QUALITY, quality])


def prepare(data: Path, out: Path, quality: int, seed: int) -> None:
    """Write both halves."""
    with (data / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["authentic"] for row in rows} - {""})
    order = np.random.default_rng(seed).permutation(len(names))
    halves = {names[i]: ("train", "test")[place % 2] for place, i in enumerate(order)}
    for row in rows:
        folder, stem = out / halves.get(row["authentic"], "train"), Path(row["image"]).stem
        save(data / row["image"], folder / "Tp" / f"{stem}.jpg", quality)
        mask = cv2.imread(str(data / row["mask"]), cv2.IMREAD_GRAYSCALE)
        (folder / "Gt").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "Gt" / f"{stem}.png"), np.where(mask > 127, 255, 0).astype(np.uint8))
    for name, half in halves.items():
        save(data / name, out / half / "Au" / f"{Path(name).stem}.jpg", quality)


def masks(folder: Path) -> list[np.ndarray]:
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127 for path in sorted(folder.glob("*.png"))]


def mean_scores(prediction: np.ndarray, truths: list[np.ndarray]) -> dict[str, float]:
    """Means over images of a fixed map, which is resized to each of them."""
    scores = []
    for truth in truths:
        resized = cv2.resize(prediction, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        scores.append(pixel_scores(resized, truth))
    return {name: float(np.nanmean([score[name] for score in scores])) for name in ("f1", "iou", "auc")}


def consistency(paths: list[Path]) -> list[np.ndarray]:
    """Return the offset map of each image."""
    module, maps = SelfMatch(), []
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for path in paths:
        pixels = torch.from_numpy(cv2.imread(str(path))[:, :, ::-1].copy()).permute(2, 0, 1) / 255
        maps.append(module(((pixels - mean) / std)[None])[0, 1].numpy())
    return maps


def score_matches(folder: Path) -> None:
    """Print the scores of the offset map."""
    highest = [float(np.sort(found.ravel())[-20:].mean()) for found in consistency(sorted(folder.glob("Au/*.jpg")))]
    for kind in ("Sp_D", "Sp_S"):
        paths = sorted(folder.glob(f"Tp/{kind}*.jpg"))
        maps = consistency(paths)
        truths = [cv2.imread(str(folder / "Gt" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE) > 127 for path in paths]
        scores = [pixel_scores(cv2.resize(m, t.shape[::-1]), t) for m, t in zip(maps, truths, strict=True)]
        means = {key: np.nanmean([score[key] for score in scores]) for key in ("f1", "auc")}
        forged = [float(np.sort(found.ravel())[-20:].mean()) for found in maps]
        image_auc = binary_auc(np.array(forged + highest), np.array([1] * len(forged) + [0] * len(highest)))
        text = " ".join(f"{key} {value:.3f}" for key, value in means.items())
        print(f"matches, {kind}: {text} image auc {image_auc:.3f} ({len(paths)} photographs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data/casia"))
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prepare(args.data, args.out, args.quality, args.seed)
    train, test = (masks(args.out / half / "Gt") for half in ("train", "test"))
    small = [cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for mask in train]
    prior = np.mean(small, axis=0)
    # the threshold with the best F1 on the training half becomes 0.5
    best = max(np.linspace(0.05, 0.5, 10), key=lambda level: mean_scores(prior * 0.5 / level, train)["f1"])
    for name, fixed in (("all pixels", np.ones((SIDE, SIDE))), ("mean of the masks", prior * 0.5 / best)):
        scores = mean_scores(np.clip(fixed, 0, 1).astype(np.float32), test)
        print(f"{name:18}", *(f"{key} {value:.3f}" for key, value in scores.items()))
    score_matches(args.out / "test")
    print(f"{len(train)} forged photographs for training, {len(test)} for testing")


if __name__ == "__main__":
    main()
