"""The parts ``convert`` and ``stats`` of ``visionattn data``, for folders with annotations of any known format."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visionattn.errors import DataError

if TYPE_CHECKING:
    from visionattn.data.formats.finish import Dataset, Picture

__all__ = ["print_statistics", "run_convert"]

TILE = 360
"""Size of the images of the sheet in pixels, along their longer side."""
COLUMNS, ROWS = 4, 4


def run_convert(args: argparse.Namespace) -> None:
    """Convert a folder to COCO files, and masks of Pascal VOC also to index masks."""
    from visionattn.data.formats.convert import REPORT, convert
    from visionattn.data.formats.detect import detect
    from visionattn.data.formats.masks import convert_masks

    if args.out is None:
        raise DataError("convert requires `out`")
    kind = args.kind or detect(args.folder).kind
    if kind == "voc-masks" and not _has_objects(Path(args.folder)):
        print(*convert_masks(args.folder, args.out, val=args.val, seed=args.seed), sep="\n")
        print(f"index masks: {args.out}\ntrain: visionattn train semantic-fpn_dinat-pico_masks_custom --cfg-options \\")
        print(f"    custom_data.root={args.out}")
        return
    made = convert(args.folder, args.out, kind=args.kind, val=args.val, seed=args.seed, copy=args.copy)
    print(*made.lines, sep="\n")
    print(f"COCO files: {made.folder}; all changes are listed in {made.folder / REPORT}")
    if {"train", "val"} <= made.annotations.keys():
        config = "mask-rcnn_dinat-pico_fpn_coco_custom" if "masks" in made.tasks else "atss_dinat-pico_fpn_coco_custom"
        files = [f"custom_data.{s}_ann={p.name}" for s, p in made.annotations.items() if s in ("train", "val", "test")]
        inside = all(folder.is_relative_to(made.folder) for folder in made.images.values())
        files += (
            []
            if inside
            else [f"custom_data.{s}_img={p}" for s, p in made.images.items() if s in ("train", "val", "test")]
        )
        print(
            f"train: visionattn train {config} --cfg-options \\\n    custom_data.root={made.folder} {' '.join(files)}"
        )
    elif "train" in made.annotations:
        print("there are no validation images; --val 0.2 draws a fifth of the training images")


def _has_objects(folder: Path) -> bool:
    return any(path.name == "SegmentationObject" for path in folder.rglob("SegmentationObject"))


def print_statistics(args: argparse.Namespace) -> None:
    """Print the statistics of a folder, and write a sheet of images with their annotations."""
    from visionattn.data.formats.detect import detect, read_folder
    from visionattn.data.formats.stats import describe, near_duplicates

    reason = detect(args.folder).reason if args.kind is None else "as given"
    dataset = read_folder(args.folder, args.kind)
    print(f"{args.folder}: {dataset.kind} ({reason}); {' and '.join(dataset.tasks())}")
    print(*describe(dataset), *near_duplicates(dataset), sep="\n")
    if lines := dataset.report.lines():
        print("dropped, changed or remarkable:", *(f"  {line}" for line in lines), sep="\n")
    if args.out is not None:
        if args.out.suffix.lower() not in (".jpg", ".jpeg"):
            raise DataError(f"`out` must be a .jpg file for stats, got {args.out}")
        _write_sheet(dataset, args.out)
        print(f"pictures: {args.out}")


def _write_sheet(dataset: "Dataset", out: Path) -> None:
    import cv2

    from visionattn.data.formats.stats import sample

    tiles = [_tile(picture, dataset) for picture in sample(dataset, COLUMNS * ROWS)]
    columns = min(COLUMNS, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), np.concatenate(rows), [cv2.IMWRITE_JPEG_QUALITY, 90]):
        raise DataError(f"{out}: cannot be written")


def _tile(picture: "Picture", dataset: "Dataset") -> np.ndarray:
    """Return an image with its annotations in a white square, BGR uint8 ``[TILE, TILE, 3]``."""
    import cv2

    from visionattn.inference.results import Prediction

    image, (width, height) = _pixels(picture), (picture.width, picture.height)
    scale = (TILE - 8) / max(width, height)
    small = cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    labels = {c["id"]: index for index, c in enumerate(dataset.categories)}
    boxes = np.array([o["bbox"] for o in picture.objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    drawn = Prediction(
        small.shape[:2],
        tuple(c["name"] for c in dataset.categories),
        boxes=boxes * scale,
        scores=np.full(len(boxes), np.nan, np.float32),
        labels=np.array([labels[o["category_id"]] for o in picture.objects], np.int64),
        masks=_masks(picture, small.shape[:2], scale),
    ).draw(small)
    tile = np.full((TILE, TILE, 3), 255, np.uint8)
    top, left = (TILE - drawn.shape[0]) // 2, (TILE - drawn.shape[1]) // 2
    tile[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return tile


def _pixels(picture: "Picture") -> np.ndarray:
    from visionattn.io.images import read_image

    if picture.embedded is None:
        return read_image(picture.path)
    with tempfile.NamedTemporaryFile(suffix=picture.path.suffix) as file:
        file.write(picture.embedded())
        file.flush()
        return read_image(file.name)


def _masks(picture: "Picture", size: tuple[int, int], scale: float):
    """Return the masks of the objects at the size of the tile, or None if there are none."""
    import cv2

    from visionattn.data.formats.geometry import decode
    from visionattn.inference.results import InstanceMasks

    if not picture.objects or not all(o["segmentation"] for o in picture.objects):
        return None
    masks = np.zeros((len(picture.objects), *size), np.uint8)
    for mask, item in zip(masks, picture.objects, strict=True):
        if isinstance(item["segmentation"], dict):
            full = decode(item["segmentation"], picture.width, picture.height).astype(np.uint8)
            mask[:] = cv2.resize(full, size[::-1], interpolation=cv2.INTER_AREA)
        else:
            parts = [
                np.rint(np.array(p, np.float64).reshape(-1, 2) * scale).astype(np.int32) for p in item["segmentation"]
            ]
            for part in parts:
                cv2.fillPoly(mask, [part], 1)
    return InstanceMasks.from_dense(masks.astype(bool))
