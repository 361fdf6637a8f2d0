"""Convert public datasets from their published formats to folders with COCO JSON or index masks.

Each converter reads an unpacked source, checks all images and annotations it uses, writes a new folder and returns the
number of images of each split, with notes on what was changed or omitted.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.console import track
from visionattn.io.folders import write_json
from visionattn.io.images import open_image

__all__ = ["BCCD_CLASSES", "CAMVID_CLASSES", "Converted", "convert_bccd", "convert_camvid", "convert_nuclei"]

BCCD_CLASSES = ("RBC", "WBC", "Platelets")
CAMVID_CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign_symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
"""The 11 classes in the order of their indices, with the RGB colors of the palette."""

_SPLITS = ("train", "val", "test")
_MAX_PIXELS = 50_000_000
_AGAIN = "the archive is incomplete or has changed; download it again"


@dataclass
class Converted:
    """Result of a converter."""

    images: dict[str, int]
    """Number of images by split."""
    notes: list[str] = field(default_factory=list)
    """Description of the changes and omissions."""


def convert_bccd(source: Path, target: Path) -> Converted:
    """Convert BCCD (blood cells): ``JPEGImages``, VOC XML in ``Annotations``, published lists in ``ImageSets/Main``.

    Writes ``images/<split>/*.jpg`` (unchanged), ``annotations_voc/<split>/*.xml``, ``instances_<split>.json`` and
    ``<split>.txt``. COCO boxes are ``[xmin, ymin, xmax - xmin, ymax - ymin]``. Boxes of zero size are omitted; boxes up
    to a pixel outside their image are clipped, boxes further outside are an error.

    Raises:
        DataError: a list, image or annotation is missing, unreadable or inconsistent.
    """
    root = _find(source, "JPEGImages", "Annotations", "ImageSets/Main/train.txt")
    result, dropped, clipped = Converted({}), 0, 0
    for split in _SPLITS:
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            continue
        stems = [_plain_name(name, listed) for name in _words(listed)]
        images_dir, voc_dir = _make(target / "images" / split), _make(target / "annotations_voc" / split)
        images, annotations = [], []
        for image_id, stem in enumerate(track(stems, f"blood cells, {split}", len(stems)), 1):
            photo = root / "JPEGImages" / f"{stem}.jpg"
            height, width = _read(photo, "RGB").shape[:2]
            tree, boxes = _read_voc(root / "Annotations" / f"{stem}.xml", width, height)
            images.append({"id": image_id, "file_name": photo.name, "width": width, "height": height})
            for name, box, was_clipped in boxes:
                if box[2] == 0 or box[3] == 0:
                    dropped += 1
                    continue
                clipped += was_clipped
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": BCCD_CLASSES.index(name) + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                        "segmentation": [],
                    }
                )
            shutil.copyfile(photo, images_dir / photo.name)
            try:
                tree.write(voc_dir / f"{stem}.xml", encoding="utf-8")
            except RecursionError:
                raise DataError(f"annotation {stem}.xml is nested too deeply; {_AGAIN}") from None
        categories = [{"id": n, "name": name, "supercategory": "cell"} for n, name in enumerate(BCCD_CLASSES, 1)]
        _write_coco(target, split, f"BCCD {split}", "MIT", images, annotations, categories)
        _write_list(target, split, stems)
        result.images[split] = len(stems)
    if dropped:
        result.notes.append(f"boxes of zero size, omitted: {dropped}")
    if clipped:
        result.notes.append(f"boxes clipped by up to a pixel: {clipped}")
    return result


def _read_voc(file: Path, width: int, height: int) -> tuple[ElementTree.ElementTree, list]:
    """The XML without boxes of zero size and local paths, and `(class, [x, y, w, h], clipped)` of each object."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise DataError(f"{file} declares XML entities, which are not allowed; {_AGAIN}")
        root = ElementTree.fromstring(text)
    except OSError as error:
        raise DataError(f"annotation {file} cannot be read ({error.strerror}); {_AGAIN}") from error
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:  # entities could be hidden in UTF-16
        raise DataError(f"annotation {file} is not valid XML in UTF-8 ({error}); {_AGAIN}") from error
    for element in root.findall("path"):
        root.remove(element)
    boxes = []
    for element in root.findall("object"):
        name = element.findtext("name", "").strip()
        if name not in BCCD_CLASSES:
            raise DataError(f"{file}: class {name!r} is not one of {', '.join(BCCD_CLASSES)}; {_AGAIN}")
        try:
            corners = [int(element.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            raise DataError(f"{file}: a box of {name} has values that are not integers; {_AGAIN}") from None
        x0, y0, x1, y1 = corners
        if x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1 or x1 < x0 or y1 < y0:
            raise DataError(f"{file}: box {corners} is outside its {width}x{height} image; {_AGAIN}")
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        boxes.append((name, [x0, y0, x1 - x0, y1 - y0], corners != [x0, y0, x1, y1]))
        if x1 == x0 or y1 == y0:
            root.remove(element)
    return ElementTree.ElementTree(root), boxes


def convert_nuclei(source: Path, target: Path, seed: int = 0) -> Converted:
    """Convert nuclei images: ``stage1_train/<id>/images/<id>.png`` and one PNG per nucleus in ``masks``.

    Writes ``images/<split>/<id>.jpg`` (RGB, quality 95), ``masks/<split>/<id>.png`` (16-bit labels, 0 is background),
    ``instances_<split>.json`` (RLE masks equal to the labels) and ``<split>.txt``. Pixels in several nuclei are
    assigned to the smallest. The source has no official split; a random split of 70/10/20 within each stain and image
    size is drawn with `seed`.

    Raises:
        DataError: an image or mask is missing, unreadable or inconsistent.
    """
    root = _find(source, "stage1_train") / "stage1_train"
    result, shared, lost = Converted({}), 0, 0
    ids = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    groups: dict[tuple, list[str]] = {}
    stains: dict[str, str] = {}
    for name in track(ids, "nuclei, images", len(ids)):
        pixels = _read(root / name / "images" / f"{name}.png", "RGB")
        stains[name] = _stain(pixels)
        groups.setdefault((stains[name], pixels.shape[:2]), []).append(name)
    for split, names in _split(groups, seed).items():
        images_dir, masks_dir = _make(target / "images" / split), _make(target / "masks" / split)
        images, annotations = [], []
        for image_id, name in enumerate(track(names, f"nuclei, {split}", len(names)), 1):
            pixels = _read(root / name / "images" / f"{name}.png", "RGB")
            labels, overlap, hidden = _label_map(root / name / "masks", pixels.shape[:2])
            shared, lost = shared + overlap, lost + hidden
            height, width = labels.shape
            record = {"id": image_id, "file_name": f"{name}.jpg", "width": width, "height": height}
            images.append({**record, "stain": stains[name]})
            for fields in _instances(labels):
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, **fields})
            image = require("PIL.Image").fromarray(pixels)
            image.save(images_dir / f"{name}.jpg", quality=95, subsampling=0)
            require("PIL.Image").fromarray(labels).save(masks_dir / f"{name}.png")
        categories = [{"id": 1, "name": "nucleus", "supercategory": "cell"}]
        title = f"DSB2018 stage1_train (fixed annotations), {split}"
        _write_coco(target, split, title, "CC0 1.0", images, annotations, categories)
        _write_list(target, split, names)
        result.images[split] = len(names)
    if shared:
        result.notes.append(f"pixels in several nuclei, assigned to the smallest: {shared}")
    if lost:
        result.notes.append(f"masks that were empty or entirely covered by smaller ones, omitted: {lost}")
    return result


def _stain(pixels: np.ndarray) -> str:
    """Type of microscopy, from the colors and the brightness of the background."""
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    if spread.mean() > 2:
        return "histology_colour"
    return "brightfield_grey" if np.median(pixels) > 127 else "fluorescence_grey"


def _split(groups: dict[tuple, list[str]], seed: int) -> dict[str, list[str]]:
    """Split each group 70/10/20, rounded in favor of train; the result does not depend on the order of the ids."""
    parts: dict[str, list[str]] = {split: [] for split in _SPLITS}
    rng = np.random.default_rng(seed)
    for key in sorted(groups):
        names = [sorted(groups[key])[i] for i in rng.permutation(len(groups[key]))]
        test, val = int(0.2 * len(names)), int(0.1 * len(names))
        parts["test"] += names[:test]
        parts["val"] += names[test : test + val]
        parts["train"] += names[test + val :]
    return {split: sorted(names) for split, names in parts.items()}


def _label_map(folder: Path, shape: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Labels `[H, W]` uint16 in the order of the files, number of pixels in several masks, number of lost masks."""
    files = sorted(folder.glob("*.png"))
    if not files or len(files) > 65535:
        raise DataError(f"{folder} must contain 1 to 65,535 masks, got {len(files)}; {_AGAIN}")
    masks = []
    for file in files:
        mask = _read(file, "L") > 0
        if mask.shape != shape:
            raise DataError(f"mask {file} is {mask.shape[::-1]}, its image {shape[::-1]} (w, h); {_AGAIN}")
        masks.append(np.flatnonzero(mask))
    labels = np.zeros(shape[0] * shape[1], dtype=np.uint16)
    for number in sorted(range(len(masks)), key=lambda number: -masks[number].size):  # smallest last
        labels[masks[number]] = number + 1
    overlap = sum(mask.size for mask in masks) - np.count_nonzero(labels)
    values, dense = np.unique(labels, return_inverse=True)
    first = 0 if values[0] == 0 else 1  # nuclei may cover the whole image
    kept = values.size - (1 - first)
    return (dense.reshape(shape) + first).astype(np.uint16), int(overlap), len(masks) - kept


def _instances(labels: np.ndarray) -> Iterator[dict[str, Any]]:
    coco_mask = require("pycocotools.mask")
    for value in range(1, int(labels.max()) + 1):
        rle = coco_mask.encode(np.asfortranarray(labels == value, dtype=np.uint8))
        yield {
            "segmentation": {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")},
            "area": int(coco_mask.area(rle)),
            "bbox": [float(n) for n in coco_mask.toBbox(rle)],
            "iscrowd": 0,
            "label_value": value,
        }


def convert_camvid(source: Path, target: Path) -> Converted:
    """Convert CamVid with 11 classes: ``CamVid/<split>`` and ``<split>annot``, with the published ``<split>.txt``.

    Writes ``images/<split>/*.jpg`` (quality 92), ``annotations/<split>/*.png`` (one channel, 0 to 10; 11, unlabeled in
    the source, becomes 255), ``classes.json`` and ``<split>.txt``.

    Raises:
        DataError: a list, image or mask is missing, unreadable or inconsistent.
    """
    root = _find(source, "train.txt", "train", "trainannot")
    result, sizes = Converted({}), set()
    counts: dict[str, dict[str, int]] = {}
    for split in _SPLITS:
        listed = root / f"{split}.txt"
        if not listed.is_file():
            continue
        paths = _words(listed)
        if len(paths) % 2:
            raise DataError(f"{listed} does not list pairs of image and mask; {_AGAIN}")
        images_dir, masks_dir = _make(target / "images" / split), _make(target / "annotations" / split)
        pairs = [
            [_plain_name(PurePosixPath(p).name, listed) for p in paths[i : i + 2]] for i in range(0, len(paths), 2)
        ]
        pixels_of = np.zeros(256, dtype=np.int64)
        for image_name, mask_name in track(pairs, f"CamVid, {split}", len(pairs)):
            image = _read(root / split / image_name, "RGB")
            mask = _read(root / f"{split}annot" / mask_name, None)
            if mask.shape != image.shape[:2]:
                raise DataError(f"{split}/{mask_name}: mask {mask.shape} and image {image.shape} differ; {_AGAIN}")
            if mask.dtype != np.uint8 or mask.max() > len(CAMVID_CLASSES):
                raise DataError(f"{split}/{mask_name} contains the index {mask.max()}, greater than 11; {_AGAIN}")
            labels = np.where(mask == len(CAMVID_CLASSES), 255, mask).astype(np.uint8)
            pixels_of += np.bincount(labels.ravel(), minlength=256)
            sizes.add(labels.shape)
            stem = Path(image_name).stem
            require("PIL.Image").fromarray(image).save(images_dir / f"{stem}.jpg", quality=92)
            require("PIL.Image").fromarray(labels).save(masks_dir / f"{stem}.png")
        counts[split] = {name: int(pixels_of[n]) for n, name in enumerate(CAMVID_CLASSES)}
        counts[split]["ignored_255"] = int(pixels_of[255])
        _write_list(target, split, [Path(image_name).stem for image_name, _ in pairs])
        result.images[split] = len(pairs)
    classes = {
        "names": list(CAMVID_CLASSES),
        "palette": [list(colour) for colour in CAMVID_CLASSES.values()],
        "ignore_index": 255,
        "num_classes": len(CAMVID_CLASSES),
        "source_index_11": "unlabelled, stored here as 255",
        "pixel_counts": counts,
    }
    if len(sizes) == 1:
        height, width = sizes.pop()
        classes["image_size_wh"] = [width, height]
    write_json(target / "classes.json", classes)
    return result


def _find(source: Path, *marks: str) -> Path:
    """The shallowest folder in `source` that contains all of `marks`; archives differ in their top-level folders."""
    folders = [source, *sorted((p for p in source.rglob("*") if p.is_dir()), key=lambda p: (len(p.parts), p))]
    for folder in folders:
        if all((folder / mark).exists() for mark in marks):
            return folder
    raise DataError(f"the archive has no folder with {' and '.join(marks)}; it is incomplete or not the expected one")


def _words(listed: Path) -> list[str]:
    try:
        return listed.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed} cannot be read as a list of names ({error}); {_AGAIN}") from error


def _plain_name(name: str, listed: Path) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name or ":" in name or "\0" in name:
        raise DataError(f"{listed} lists {name!r}, which is not a plain file name; {_AGAIN}")
    return name


def _read(file: Path, mode: str | None) -> np.ndarray:
    """Decode an image with Pillow, which raises errors for truncated files; `mode` None keeps the stored values."""
    try:
        with open_image(file) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(
                    f"image {file} is {image.width}x{image.height}, larger than any in this dataset; {_AGAIN}"
                )
            return np.asarray(image if mode is None or image.mode == mode else image.convert(mode))
    except FileNotFoundError:
        raise DataError(f"image {file} is missing; {_AGAIN}") from None
    except DataError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ..., depending on the damage
        raise DataError(f"image {file} cannot be decoded ({error}); {_AGAIN}") from error


def _make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _write_list(target: Path, split: str, names: Iterable[str]) -> None:
    (target / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _write_coco(
    target: Path, split: str, title: str, licence: str, images: list, annotations: list, categories: list
) -> None:
    coco = {
        "info": {"description": title},
        "licenses": [{"id": 1, "name": licence}],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    write_json(target / f"instances_{split}.json", coco)
