"""Cut objects with image labels and boxes out of detection data, for weakly supervised localization.

    python benchmarks/object_crops.py data/coco128 data/raccoon --out data/objects

Each folder is in COCO format, with `*_train*.json` and `*_val*.json`, and images in `images/PART`. The classes are the
supercategories of COCO with the most objects; raccoons are animals. Each object with sides of at least 40 pixels gives
a crop of 1.3 to 2.5 times its size at a random place around it. Written are `OUT/{train,val}/CLASS/*.jpg`, as for
`cam_dinat-pico_folders_custom`, and `boxes.csv` with all boxes of the class in each crop. Crops for training and for
validation are from different photographs.
"""

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

GROUPS = {
    "animal": "bird cat dog horse sheep cow elephant bear zebra giraffe raccoon",
    "food": "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake",
    "furniture": "chair,couch,potted plant,bed,dining table,toilet",
    "kitchen": "bottle,wine glass,cup,fork,knife,spoon,bowl",
    "person": "person",
    "vehicle": "bicycle,car,motorcycle,airplane,bus,train,truck,boat",
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split("," if "," in names else None)}
LEAST = 40
INSIDE = 0.25
"""Smallest fraction of a box within a crop to count as an object in it."""


def place(start: float, length: float, window: float, limit: int, random: np.random.Generator) -> tuple[int, int]:
    """Return start and end of a window of the image that contains an object."""
    window = min(window, limit)
    low, high = max(0.0, start + length - window), min(start, limit - window)
    begin = random.uniform(low, high) if high > low else min(max(0.0, low), limit - window)
    return int(begin), int(begin + window)


def crops(folder: Path, part: str, random: np.random.Generator):
    """Yield class, crop and the boxes of the class in it (corners in pixels of the crop)."""
    (file,) = (path for path in folder.glob("*.json") if f"_{part}" in path.name and "polygons" not in path.name
               and (path.name.startswith("boxes") or not list(folder.glob("boxes_*"))))  # fmt: skip
    data = json.loads(file.read_text())
    names = {category["id"]: category["name"] for category in data["categories"]}
    subfolder = next(path for path in (folder / "images").iterdir() if path.name.startswith(part))
    for image in data["images"]:
        objects = [
            (GROUP_OF[names[a["category_id"]]], a["bbox"])
            for a in data["annotations"]
            if a["image_id"] == image["id"] and names[a["category_id"]] in GROUP_OF
        ]
        pixels = cv2.imread(str(subfolder / image["file_name"])) if objects else None
        for group, (x, y, width, height) in objects:
            if min(width, height) < LEAST:
                continue
            side = max(width, height) * random.uniform(1.3, 2.5)
            left, right = place(x, width, side, pixels.shape[1], random)
            top, bottom = place(y, height, side, pixels.shape[0], random)
            boxes = []
            for other, (x0, y0, w, h) in objects:
                x1, y1 = min(x0 + w, right), min(y0 + h, bottom)
                x2, y2 = max(x0, left), max(y0, top)
                if other == group and x1 > x2 and y1 > y2 and (x1 - x2) * (y1 - y2) >= INSIDE * w * h:
                    boxes.append([round(v) for v in (x2 - left, y2 - top, x1 - left, y1 - top)])
            yield group, pixels[top:bottom, left:right], boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("data/objects"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random = np.random.default_rng(args.seed)
    for part in ("train", "val"):
        rows, counts = [], Counter()
        for folder in args.folders:
            for group, pixels, boxes in crops(folder, part, random):
                name = f"{group}/{folder.name}-{counts[group]:04d}.jpg"
                counts[group] += 1
                path = args.out / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
                rows += [[name, *box] for box in boxes]
        with (args.out / part / "boxes.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        print(part, dict(sorted(counts.items())))


if __name__ == "__main__":
    main()
