"""A large picture in tiles against the same picture whole: what differs, time, and peak memory.

The picture is put together from a folder's images, enlarged, as a mosaic. Each way runs in a process of its own, so
that its peak memory (resident set, all of the process) is its own; the whole picture is compared with every tiling.

    python benchmarks/tiling.py --run WORK_DIR --images FOLDER --zoom 2.78 --name camvid
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import RESULTS, machine, write_csv


def mosaic(folder: Path, height: int, width: int, zoom: float) -> np.ndarray:
    """BGR uint8 ``[height, width, 3]``: the folder's images in order, row by row, each enlarged."""
    import cv2

    from visionattn.io.images import read_image
    from visionattn.io.inputs import IMAGE_SUFFIXES

    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    canvas = np.zeros((height, width, 3), np.uint8)
    y, number = 0, 0
    while y < height:
        x, row = 0, 0
        while x < width:
            image = cv2.resize(read_image(paths[number % len(paths)]), None, fx=zoom, fy=zoom)
            part = image[: height - y, : width - x]
            canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
            x, row, number = x + image.shape[1], row or image.shape[0], number + 1
        y += row
    return canvas


def predict(args: argparse.Namespace) -> None:
    """In a child process: one prediction, pickled, and the peak memory on standard output."""
    from visionattn.inference import Predictor

    options = {"tile": args.tile, "overlap": args.overlap} if args.tile else {}
    predictor = Predictor.from_run(args.run, args.device, score_thr=args.score_thr, **options)
    image = np.load(args.picture)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = predictor(image)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {name: getattr(result, name) for name in ("boxes", "scores", "labels", "semantic")}
    np.savez(args.into, **{name: value for name, value in found.items() if value is not None})
    print(json.dumps({"seconds": result.seconds, "before_mib": before / 1024, "peak_mib": peak / 1024}))


def lacking(one: dict, other: dict, sure: float) -> tuple[int, int]:
    """How many boxes one prediction is sure of, and how many of them the other lacks (IoU of 0.7, same class)."""
    keep = one["scores"] >= sure
    boxes, labels = one["boxes"][keep], one["labels"][keep]
    if not len(other["boxes"]):
        return len(boxes), len(boxes)
    missing = 0
    for box, label in zip(boxes, labels, strict=True):
        low, high = np.maximum(box[:2], other["boxes"][:, :2]), np.minimum(box[2:], other["boxes"][:, 2:])
        common = (high - low).clip(min=0).prod(1)
        areas = (box[2:] - box[:2]).prod() + (other["boxes"][:, 2:] - other["boxes"][:, :2]).prod(1)
        missing += not ((common / (areas - common) >= 0.7) & (other["labels"] == label)).any()
    return len(boxes), missing


def main() -> None:
    """Run the whole picture and each tiling, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--run", required=True, help="work dir of a trained model")
    parser.add_argument("--images", type=Path, help="folder of images for the mosaic")
    parser.add_argument("--name", help="of the table: results/tiling_<name>.csv")
    parser.add_argument("--size", type=int, nargs=2, default=(3000, 4000), metavar=("H", "W"))
    parser.add_argument("--zoom", type=float, default=1.0, help="how much the images are enlarged")
    parser.add_argument("--tiles", type=int, nargs="+", default=[1024, 512])
    parser.add_argument("--score-thr", type=float, default=0.3)
    parser.add_argument("--sure", type=float, default=0.5, help="boxes with this score must be found in both ways")
    parser.add_argument("--device", default="cpu")
    for name in ("--picture", "--into"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--tile", "--overlap"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.picture:
        predict(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "picture.npy")
        np.save(picture, mosaic(args.images, *args.size, args.zoom))
        rows, whole = [], {}
        for tile in (None, *args.tiles):
            into = Path(folder, "result.npz")
            command = [sys.executable, __file__, "--run", args.run, "--picture", str(picture), "--into", str(into)]
            command += ["--score-thr", str(args.score_thr), "--device", args.device]
            command += [] if tile is None else ["--tile", str(tile)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            result = dict(np.load(into))
            whole = whole or result
            row = {"model": args.name, "picture": f"{args.size[1]}x{args.size[0]}", "tile": tile or "whole"}
            row |= {"overlap": tile // 4 if tile else ""}
            row |= {"seconds": round(measured["seconds"], 1), "peak_rss_mib": round(measured["peak_mib"])}
            row |= {"rss_before_mib": round(measured["before_mib"])}
            if "semantic" in result:
                row["pixels_that_differ"] = round(float((result["semantic"] != whole["semantic"]).mean()), 5)
            else:
                row["objects"], row["objects_not_in_whole"] = lacking(result, whole, args.sure)
                row["objects_of_whole"], row["objects_of_whole_lacking"] = lacking(whole, result, args.sure)
            rows.append(row | {"machine": machine()})
            print({key: value for key, value in row.items() if key != "model"}, flush=True)
    write_csv(RESULTS / f"tiling_{args.name}.csv", rows)


if __name__ == "__main__":
    main()
