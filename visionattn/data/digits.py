"""Sample data that needs no network: handwritten digits drawn onto photographs.

Both are part of scikit-learn: `load_digits` (1,797 digits of 8x8 pixels) and `load_sample_images` (two photographs of
640x427). A scene is a crop of a photograph with 4 to 8 digits, each scaled, rotated, colored and blended onto it.
Boxes and masks are exact, because they are computed from the drawn digits.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.folders import cache_dir, is_current, new_folder, write_json
from visionattn.io.images import decode_image

__all__ = ["CLASSES", "background", "build_digit_scenes", "draw_digit", "load_photos"]

CLASSES = tuple(str(digit) for digit in range(10))
"""Class names in the order of their category ids, 1 to 10."""

VERSION = 1  # increase it with every change to the drawing, so that cached scenes are rebuilt
_PHOTOS = ("china.jpg", "flower.jpg")
_TRAIN_DIGITS = 0.8  # fraction of the digits, by index, used for train; the rest is for test
_HALVES = {"train": "left", "test": "right"}
_MIN_CONTRAST = 70.0  # in luma, 0 to 255, between a digit and the mean of the background under it
_LUMA_BGR = np.array([0.114, 0.587, 0.299], dtype=np.float32)

_README = """Digit scenes: sample data for visionattn, created by `visionattn data samples`
============================================================================

images/{{train,test}}/*.jpg, instances_{{train,test}}.json (COCO, RLE masks; categories 1..10: digits 0..9).
{train} train and {test} test images of {size}x{size}, seed {seed}, recipe version {version}.
Train uses the left half of each photograph and the digits with index below {first_test}; test uses the right
halves and the other digits. Image records have the photograph and half (`photo`, `half`), annotations the index of
the digit in load_digits (`digit_index`). photo.jpg is one of the photographs in scikit-learn, unchanged.

Sources and licences
--------------------
Both sources are copied from the installed scikit-learn {sklearn} (BSD-3-Clause). Changes: photographs were
cropped, resized, mirrored and changed in brightness; digits were enlarged, rotated, coloured and drawn onto them.

Digits: sklearn.datasets.load_digits, a copy of the test set of
    Alpaydin, E. and Kaynak, C. (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, https://archive.ics.uci.edu/ml/datasets/Optical+Recognition+of+Handwritten+Digits
    scikit-learn's description states no separate licence for the digits; the page above has the UCI
    repository's terms (CC BY 4.0 to our knowledge; check them before you publish the data).

Photographs: sklearn.datasets.load_sample_images, both under CC BY 2.0,
    https://creativecommons.org/licenses/by/2.0/ ; the accompanying text in scikit-learn is:

{photo_terms}
"""


def build_digit_scenes(
    out_dir: str | Path | None = None, *, train: int = 600, test: int = 150, size: int = 256, seed: int = 0
) -> Path:
    """Create the digit scenes, unless they exist, and return their folder.

    The folder contains ``images/{train,test}/*.jpg``, ``instances_{train,test}.json``, ``photo.jpg`` (a photograph
    without digits) and ``README.txt`` (sources and licenses). Train and test use different digits and different halves
    of the photographs. The scenes are deterministic; an existing folder created with the same arguments is returned
    unchanged, and a killed process leaves no incomplete folder.

    Args:
        out_dir: the folder; with None, ``samples`` in `cache_dir`.
        train: number of train images, at least 1.
        test: number of test images, at least 1.
        size: image height and width in pixels, at least 128; the longer side of a digit is 24 to 72 pixels at
            256, and proportional at other sizes.
        seed: random seed, not negative.

    Raises:
        DataError: an argument is out of range, or the folder cannot be written or contains other files.
    """
    for name, value, least in (("train", train, 1), ("test", test, 1), ("size", size, 128), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DataError(f"`{name}` must be an integer of at least {least}, got {value!r}")
    target = Path(out_dir).expanduser() if out_dir is not None else cache_dir() / "samples"
    stamp = {
        "data": "digit scenes",
        "version": VERSION,
        "train": train,
        "test": test,
        "size": size,
        "seed": seed,
    }
    if is_current(target, stamp):
        return target

    sklearn = require("sklearn")
    datasets = require("sklearn.datasets")
    digits = datasets.load_digits()
    glyphs, labels = digits.images.astype(np.float32) / 16.0, digits.target
    photo_files, photos, terms = load_photos(Path(datasets.__file__).parent / "images")
    first_test = int(len(glyphs) * _TRAIN_DIGITS)
    parts = {"train": (train, np.arange(first_test)), "test": (test, np.arange(first_test, len(glyphs)))}

    with new_folder(target, stamp) as folder:
        for number, (split, (count, pool)) in enumerate(parts.items()):
            rng = np.random.default_rng([seed, number])
            scenes = _scenes(rng, count, size, split, photos, glyphs, labels, pool)
            _write_split(folder, split, scenes, seed)
        (folder / "photo.jpg").write_bytes(photo_files[0].read_bytes())
        readme = _README.format(**stamp, first_test=first_test, sklearn=sklearn.__version__, photo_terms=terms.strip())
        (folder / "README.txt").write_text(readme, encoding="utf-8")
    return target


def load_photos(folder: Path) -> tuple[list[Path], dict[str, np.ndarray], str]:
    """The photographs in scikit-learn: files, BGR arrays by name, and the text of their licenses."""
    files, readme = [folder / name for name in _PHOTOS], folder / "README.txt"
    missing = [file.name for file in (*files, readme) if not file.is_file()]
    if missing:
        raise DataError(
            f"scikit-learn's sample images in {folder} lack {missing[0]}; "
            "run: pip install --force-reinstall scikit-learn"
        )
    photos = {file.name: decode_image(file, require("cv2").IMREAD_COLOR) for file in files}
    return files, photos, readme.read_text(encoding="utf-8")


def _scenes(
    rng: np.random.Generator,
    count: int,
    size: int,
    split: str,
    photos: dict[str, np.ndarray],
    glyphs: np.ndarray,
    labels: np.ndarray,
    pool: np.ndarray,
) -> Iterator[tuple[np.ndarray, dict[str, Any], list[dict[str, Any]]]]:
    """Draw `count` scenes: the BGR image, its COCO record without id, and its annotations without ids."""
    queue: list[int] = []
    half = _HALVES[split]
    for _ in range(count):
        name = _PHOTOS[rng.integers(len(_PHOTOS))]
        image = background(rng, photos[name], half, size)
        annotations = []
        taken: list[tuple[int, int, int, int]] = []
        number = int(rng.integers(4, 9))
        extents = np.sort(np.exp(rng.uniform(np.log(24), np.log(72), number)))[::-1] * size / 256
        for extent in extents:  # largest first, because small ones fit into the remaining space
            if not queue:
                queue = rng.permutation(pool).tolist()  # each digit is used once before any is repeated
            index = queue.pop()
            mask = draw_digit(rng, image, glyphs[index], float(extent), taken)
            record = _annotation(mask)
            annotations.append({**record, "category_id": int(labels[index]) + 1, "digit_index": index})
        yield image, {"width": size, "height": size, "photo": name, "half": half}, annotations


def background(rng: np.random.Generator, photo: np.ndarray, half: str, size: int) -> np.ndarray:
    """A square crop of one half of a photograph, `[size, size, 3]` uint8."""
    cv2 = require("cv2")
    middle = photo.shape[1] // 2
    part = photo[:, :middle] if half == "left" else photo[:, middle:]
    largest = min(part.shape[:2])
    side = int(rng.integers(largest // 2, largest + 1))
    top = int(rng.integers(part.shape[0] - side + 1))
    left = int(rng.integers(part.shape[1] - side + 1))
    crop = part[top : top + side, left : left + side]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    gain, shift = rng.uniform(0.7, 1.1), rng.uniform(-20, 8)
    return np.clip(crop.astype(np.float32) * gain + shift, 0, 255).round().astype(np.uint8)


def draw_digit(
    rng: np.random.Generator,
    image: np.ndarray,
    glyph: np.ndarray,
    extent: float,
    taken: list[tuple[int, int, int, int]],
) -> np.ndarray:
    """Draw a digit at a random place of a square BGR image outside the boxes in `taken`, and add its box to them.

    Returns:
        The mask of the digit, ``[H, W]`` uint8 of 0 and 1. The image is changed in place.
    """
    alpha, (x, y) = _place(rng, glyph, extent, image.shape[0], taken)
    return _blend(rng, image, alpha, x, y)


def _place(
    rng: np.random.Generator,
    glyph: np.ndarray,
    extent: float,
    size: int,
    taken: list[tuple[int, int, int, int]],
) -> tuple[np.ndarray, tuple[int, int]]:
    """Render a digit and find a place outside the boxes in `taken`, shrinking the digit if there is none."""
    angle, level, shear = rng.uniform(-20, 20), rng.uniform(0.35, 0.5), rng.uniform(-0.15, 0.15)
    while True:
        alpha = _render(glyph, extent, angle, shear, level)
        height, width = alpha.shape
        for _ in range(80):
            x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
            gap = 2
            if all(
                x + width + gap <= left or right + gap <= x or y + height + gap <= top or bottom + gap <= y
                for left, top, right, bottom in taken
            ):
                taken.append((x, y, x + width, y + height))
                return alpha, (x, y)
        extent *= 0.85


def _render(glyph: np.ndarray, extent: float, angle: float, shear: float, level: float) -> np.ndarray:
    """Opacity of the enlarged digit, `[h, w]` float32 in [0, 1], cropped to its nonzero values.

    The 8x8 gray values are interpolated to a smooth surface and thresholded at `level` times its maximum; edges are
    about 1.5 pixels wide. `extent` is the longer side of the result, which is not smaller than the 8x8 digit.
    """
    cv2 = require("cv2")
    source = cv2.copyMakeBorder(glyph / glyph.max(), 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=0.0)
    centre = (source.shape[0] - 1) / 2
    scale = max(1.0, extent / glyph.shape[0])  # at smaller scales, strokes would disappear between pixels
    alpha = np.zeros((1, 1), dtype=np.float32)
    for _ in range(2):  # the second iteration corrects the scale
        side = int(np.ceil(source.shape[0] * scale * 1.5)) + 4
        turn = np.deg2rad(angle)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        linear = scale * rotation @ np.array([[1.0, shear], [0.0, 1.0]])
        offset = np.full(2, (side - 1) / 2) - linear @ np.full(2, centre)
        surface = cv2.warpAffine(
            source, np.column_stack([linear, offset]), (side, side), flags=cv2.INTER_CUBIC, borderValue=0.0
        )
        slope = max(scale / 1.5, 0.5 / level)  # the latter avoids a halo around small digits
        alpha = np.clip((surface - level) * slope + 0.5, 0, 1)
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        alpha = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        scale = max(1.0, scale * extent / max(alpha.shape))
    return alpha


def _blend(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, x: int, y: int) -> np.ndarray:
    """Draw the digit into `image` in a contrasting color and return its mask, `[H, W]` uint8."""
    height, width = alpha.shape
    window = image[y : y + height, x : x + width]
    inside = alpha >= 0.5
    colour = _contrasting_colour(rng, float((window[inside] @ _LUMA_BGR).mean()))
    opacity = (alpha * rng.uniform(0.88, 1.0))[..., None]
    window[:] = np.clip(window * (1 - opacity) + colour * opacity, 0, 255).round().astype(np.uint8)
    mask = np.zeros(image.shape[:2], dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = inside
    return mask


def _contrasting_colour(rng: np.random.Generator, luma: float) -> np.ndarray:
    """A random BGR color (float32, 0 to 255) that differs in luma by at least `_MIN_CONTRAST`."""
    for _ in range(50):
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if abs(float(colour @ _LUMA_BGR) - luma) >= _MIN_CONTRAST:
            return colour
    return np.full(3, 255.0 if luma < 128 else 0.0, dtype=np.float32)


def _annotation(mask: np.ndarray) -> dict[str, Any]:
    coco_mask = require("pycocotools.mask")
    rle = coco_mask.encode(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {
            "size": [int(side) for side in rle["size"]],
            "counts": rle["counts"].decode("ascii"),
        },
    }


def _write_split(folder: Path, split: str, scenes: Iterator[tuple], seed: int) -> None:
    cv2 = require("cv2")
    (folder / "images" / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (pixels, record, objects) in enumerate(scenes, 1):
        file_name = f"{image_id:06d}.jpg"
        _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
        (folder / "images" / split / file_name).write_bytes(encoded.tobytes())
        images.append({"id": image_id, "file_name": file_name, **record, "license": 1})
        for fields in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **fields})
    coco = {
        "info": {"description": f"digit scenes, {split}", "version": str(VERSION), "seed": seed},
        "licenses": [
            {
                "id": 1,
                "name": "photographs CC BY 2.0; digits and attribution: see README.txt",
                "url": "https://creativecommons.org/licenses/by/2.0/",
            }
        ],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "digit"} for number, name in enumerate(CLASSES, 1)
        ],
    }
    write_json(folder / f"instances_{split}.json", coco)
