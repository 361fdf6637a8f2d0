"""Sample dataset of weakly supervised localization: images with one digit at a random position.

Digits and photographs are those of `visionattn.data.digits`. The training and validation splits share the left halves
of the photographs and the first digits; the test split uses the right halves and the remaining digits.
"""

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data import digits as samples
from visionattn.errors import DataError, require
from visionattn.io.folders import cache_dir, is_current, new_folder

__all__ = ["build_single_digits"]

VERSION = 1  # increase it whenever the drawing changes, so that caches are rebuilt

_README = """Single digits: sample data for localization from image labels, made by `visionattn data single-digits`
========================================================================================================

images/{{train,val,test}}/*.jpg: {train}, {val} and {test} images of {size}x{size}, one digit each, whose longer
side is {low:.0%} to {high:.0%} of the image. metadata/{{train,val,test}}/: labels, sizes, boxes (x0,y0,x1,y1; x1 and
y1 are exclusive). masks/test/*.png with metadata/test-masks/: the masks of the digits.
Seed {seed}, recipe version {version}.
Train and val use the left half of each photograph and the digits with index below {first_test}; test the rest.

Sources and licenses: scikit-learn {sklearn}, load_digits and load_sample_images.
{photo_terms}
"""


def build_single_digits(
    out_dir: str | Path | None = None,
    *,
    train: int = 2000,
    val: int = 200,
    test: int = 400,
    size: int = 128,
    extent: tuple[float, float] = (0.3, 0.55),
    seed: int = 0,
) -> Path:
    """Generate the images and their metadata unless they exist already, and return their folder.

    Args:
        out_dir: output folder. Defaults to ``single-digits`` in `cache_dir`.
        train: number of training images, at least 1.
        val: number of validation images, at least 1.
        test: number of test images, at least 1.
        size: height and width in pixels, at least 64.
        extent: minimum and maximum length of a digit's longer side, as fractions of ``size``.
        seed: random seed.

    Returns:
        The folder.

    Raises:
        DataError: if an argument is out of range, or the folder cannot be written or contains other files.
    """
    for name, value, least in (
        ("train", train, 1), ("val", val, 1), ("test", test, 1), ("size", size, 64), ("seed", seed, 0)
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DataError(f"single digits: `{name}` must be a whole number of at least {least}, got {value!r}")
    if not 0 < extent[0] <= extent[1] <= 0.9:
        raise DataError(f"single digits: `extent` must be two ascending numbers in (0, 0.9], got {extent}")
    target = Path(out_dir).expanduser() if out_dir is not None else cache_dir() / "single-digits"
    stamp = {
        "data": "single digits", "version": VERSION, "train": train, "val": val, "test": test, "size": size,
        "extent": list(extent), "seed": seed,
    }  # fmt: skip
    if is_current(target, stamp):
        return target
    sklearn, datasets = require("sklearn"), require("sklearn.datasets")
    digits = datasets.load_digits()
    glyphs, labels = digits.images.astype(np.float32) / 16.0, digits.target
    _, photos, terms = samples.load_photos(Path(datasets.__file__).parent / "images")
    first_test = int(len(glyphs) * 0.8)
    early, late = np.arange(first_test), np.arange(first_test, len(glyphs))
    parts = (("train", train, early), ("val", val, early), ("test", test, late))
    with new_folder(target, stamp) as folder:
        for number, (split, count, pool) in enumerate(parts):
            rng = np.random.default_rng([seed, 100 + number])
            half = "right" if split == "test" else "left"
            _write_split(folder, split, count, rng, half, photos, (glyphs, labels, pool), size, extent)
        (folder / "README.txt").write_text(
            _README.format(
                **{**stamp, "low": extent[0], "high": extent[1]}, first_test=first_test,
                sklearn=sklearn.__version__, photo_terms=terms.strip(),
            ),
            encoding="utf-8",
        )  # fmt: skip
    return target


def _write_split(
    folder: Path,
    split: str,
    count: int,
    rng: np.random.Generator,
    half: str,
    photos: dict[str, np.ndarray],
    digits: tuple[np.ndarray, np.ndarray, np.ndarray],
    size: int,
    extent: tuple[float, float],
) -> None:
    cv2 = require("cv2")
    glyphs, labels, pool = digits
    (folder / "images" / split).mkdir(parents=True)
    names = sorted(photos)
    rows: dict[str, list[str]] = {"image_ids": [], "class_labels": [], "image_sizes": [], "localization": []}
    masks: list[str] = []
    for number in range(1, count + 1):
        index = int(rng.choice(pool))
        image = samples.background(rng, photos[names[rng.integers(len(names))]], half, size)
        mask = samples.draw_digit(rng, image, glyphs[index], size * float(rng.uniform(*extent)), [])
        name = f"{split}/{number:05d}.jpg"
        (folder / "images" / name).write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
        rows["image_ids"].append(name)
        rows["class_labels"].append(f"{name},{labels[index]}")
        rows["image_sizes"].append(f"{name},{size},{size}")
        rows["localization"].append(",".join([name, *map(str, _box(mask))]))
        if split == "test":
            file = folder / "masks" / Path(name).with_suffix(".png")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(cv2.imencode(".png", mask * 255)[1].tobytes())
            masks.append(f"{name},{Path(name).with_suffix('.png')},")
    _write_rows(folder / "metadata" / split, rows)
    if masks:
        _write_rows(folder / "metadata" / f"{split}-masks", rows | {"localization": masks})


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _write_rows(folder: Path, rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    for name, lines in rows.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
