"""Readers of forgery datasets: BR-Gen, the folder and JSON formats of IMDLBenCo, and folders of images and masks.

Each reader returns `ForgeryItem` records without reading pixels.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.images import decode_image, image_size
from visionattn.io.inputs import IMAGE_SUFFIXES
from visionattn.io.json import read_json as load_json
from visionattn.io.names import place

__all__ = [
    "BalancedSets",
    "ForgeryItem",
    "check_items",
    "read_benco",
    "read_brgen",
    "read_json",
    "read_mani",
    "read_pairs",
    "read_truth",
]

MASK_ENDINGS = ("_mask", "_gt", "_edgemask")
NEGATIVE = "Negative"


@dataclass(frozen=True)
class ForgeryItem:
    """One image of a forgery dataset.

    Attributes:
        image: image file.
        mask: mask file, bright where forged; None for authentic images.
        source: name of the source photograph, if known; for splits and balancing.
        kind: forgery method, if known, such as ``"MAT_Stuff"``.
    """

    image: Path
    mask: Path | None
    source: str | None = None
    kind: str | None = None


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: folder not found")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _by_stem(folder: Path, endings: Sequence[str] = MASK_ENDINGS) -> dict[str, Path]:
    """Masks by the stem of their image."""
    found: dict[str, Path] = {}
    for path in _files(folder):
        stem = path.stem
        for ending in endings:
            stem = stem.removesuffix(ending)
        if stem in found:
            raise DataError(f"{folder}: {found[stem].name} and {path.name} are both masks of {stem!r}; keep one")
        found[stem] = path
    return found


def _pair(images: list[Path], masks: dict[str, Path], folder: Path, authentic: bool) -> list[tuple[Path, Path | None]]:
    """Pair images and masks by stem; an image without a mask is authentic if allowed, and otherwise an error."""
    rest = dict(masks)
    pairs = [(path, rest.pop(path.stem, None)) for path in images]
    missing = [path for path, mask in pairs if mask is None]
    if missing and not authentic:
        raise DataError(f"{missing[0]}: has no mask in {folder} ({len(missing)} of {len(pairs)} images have none)")
    if rest:
        stray = next(iter(rest.values()))
        raise DataError(f"{stray}: has no image ({len(rest)} masks have none); the name may be misspelled")
    return pairs


def read_mani(folder: str | Path, with_authentic: bool = False) -> list[ForgeryItem]:
    """Read a ``ManiDataset`` folder of IMDLBenCo: images in ``Tp/`` and masks in ``Gt/``, paired by stem.

    IMDLBenCo pairs the two sorted lists by position, where one extra file shifts all following pairs; here it is an
    error.

    Args:
        folder: folder with ``Tp`` and ``Gt``, and ``Au`` if ``with_authentic``.
        with_authentic: whether to include the images of ``Au``, which IMDLBenCo ignores.

    Raises:
        DataError: if a folder, the mask of an image or the image of a mask is missing.
    """
    folder = Path(folder)
    pairs = _pair(_files(folder / "Tp"), _by_stem(folder / "Gt"), folder / "Gt", authentic=False)
    items = [ForgeryItem(image, mask) for image, mask in pairs]
    if with_authentic:
        items += [ForgeryItem(image, None) for image in _files(folder / "Au")]
    return items


def read_brgen(
    folder: str | Path, balanced: bool = False, seed: int = 0, names: str | Path | None = None
) -> list[ForgeryItem]:
    """Read a BR-Gen folder: ``Au/NAME``, ``Tp/METHOD_REGION_NAME``, ``Gt/METHOD_REGION_NAME_mask.png``.

    Args:
        folder: folder with ``Tp`` and ``Gt``, and optionally ``Au`` (BRGen-Stuff-Val has none).
        balanced: randomly draw as many forged images as there are authentic ones, as the authors do.
        seed: random seed of ``balanced``.
        names: list of the authentic images of a split, to which the images and their forgeries are restricted: a text
            file with one file name per line, as the ``*_image_list.txt`` of the dataset, a JSON list of names, or a
            folder of such files. Directories and suffixes of the names are ignored, and so is the prefix of the
            origin, such as ``COCO_``, if they have none. A warning tells how many names are not in the folder.

    Raises:
        DataError: if a folder, mask or list is missing or malformed, the name of a forged image has another format, or
            no image is in the list.
    """
    folder = Path(folder)
    authentic = _files(folder / "Au") if (folder / "Au").is_dir() else []
    forged = []
    for image, mask in _pair(_files(folder / "Tp"), _by_stem(folder / "Gt"), folder / "Gt", authentic=False):
        parts = image.stem.split("_", 2)
        if len(parts) < 3:
            raise DataError(f"{image}: forged images of BR-Gen must be named METHOD_REGION_<authentic image name>")
        forged.append(ForgeryItem(image, mask, source=parts[2], kind=f"{parts[0]}_{parts[1]}"))
    if names is not None:
        listed = _listed(Path(names))
        authentic = [path for path in authentic if _is_listed(path.stem, listed)]
        forged = [item for item in forged if _is_listed(item.source or "", listed)]
        if not forged and not authentic:
            raise DataError(f"{names}: none of its {len(listed)} names is an image of {folder}")
        stems = {*(path.stem for path in authentic), *(item.source or "" for item in forged)}
        absent = sorted(listed - stems - {stem.partition("_")[2] for stem in stems})
        if absent:
            warnings.warn(
                f"{names}: {len(absent)} of its {len(listed)} names are not images of {folder}, such as {absent[0]}",
                stacklevel=2,
            )
    if balanced and len(forged) > len(authentic):
        if not authentic:
            raise DataError(f"{folder}: `balanced` needs authentic images in Au/, got none")
        chosen = np.random.default_rng(seed).permutation(len(forged))[: len(authentic)]
        forged = [forged[i] for i in sorted(chosen)]
    return [*forged, *(ForgeryItem(path, None, source=path.stem, kind="authentic") for path in authentic)]


def _listed(path: Path) -> set[str]:
    """Return the names in a list, or in all lists of a folder, without directories and suffixes."""
    files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: contains no .txt or .json files")
    found: list[str] = []
    for file in files:
        if file.suffix == ".json":
            content = _read(file)
            found += list(content) if isinstance(content, (list, dict)) else [content]
        else:
            try:
                found += file.read_text(encoding="utf-8-sig").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{file}: cannot be read as a list of names ({error})") from error
    if wrong := next((name for name in found if not isinstance(name, str)), None):
        raise DataError(f"{path}: must contain names of images, got {str(wrong)[:60]}")
    names = {Path(name.strip().replace("\\", "/")).stem for name in found}
    return names - {""}


def _is_listed(stem: str, names: set[str]) -> bool:
    return stem in names or stem.partition("_")[2] in names


def read_json(file: str | Path, root: str | Path | None = None) -> list[ForgeryItem]:
    """Read a ``JsonDataset`` file of IMDLBenCo: ``[[image, mask], [image, "Negative"], ...]``.

    Args:
        file: the JSON file.
        root: root folder of the paths, which they must not leave. None uses the folder of the file or else the working
            directory, and also allows absolute paths.

    Raises:
        DataError: if the file is malformed, or a path does not exist or contains ``..``.
    """
    file = Path(file)
    content = _read(file)
    if not isinstance(content, list) or not all(
        isinstance(row, list) and len(row) == 2 and all(isinstance(p, str) for p in row) for row in content
    ):
        raise DataError(f'{file}: must be a list of [image, mask] pairs, with mask "{NEGATIVE}" for authentic images')
    return [
        ForgeryItem(_find(image, file, root), None if mask == NEGATIVE else _find(mask, file, root))
        for image, mask in content
    ]


def read_pairs(folder: str | Path, images: str = "images", masks: str = "masks") -> list[ForgeryItem]:
    """Read a folder with ``images/`` and ``masks/``, paired by stem; images without a mask are authentic.

    Args:
        folder: the folder.
        images: name of the subfolder of images.
        masks: name of the subfolder of masks; it may be missing.

    Raises:
        DataError: if the image folder is missing, or a mask has no image.
    """
    folder = Path(folder)
    found = _by_stem(folder / masks) if (folder / masks).is_dir() else {}
    pairs = _pair(_files(folder / images), found, folder / masks, authentic=True)
    return [ForgeryItem(image, mask) for image, mask in pairs]


def read_benco(path: str | Path, root: str | Path | None = None) -> list[ForgeryItem]:
    """Read a dataset path of IMDLBenCo's scripts: a folder is a ``ManiDataset``, a file is a ``JsonDataset``."""
    path = Path(path)
    return read_mani(path) if path.is_dir() else read_json(path, root)


class BalancedSets:
    """Concatenation of several datasets with the same number of random samples (with replacement) from each.

    As in IMDLBenCo's ``BalancedDataset``, item ``i`` is from dataset ``i // sample_number``. For reproducibility, the
    draw depends only on item, seed and epoch.

    Args:
        file: JSON file with ``[[class, path], ...]``; the class is ``ManiDataset`` or ``JsonDataset``.
        sample_number: number of samples of each dataset.
        seed: random seed.
        root: root folder of relative paths, see `read_json`.

    Raises:
        DataError: if the file or one of the datasets is malformed.
    """

    def __init__(
        self, file: str | Path, sample_number: int = 1840, seed: int = 0, root: str | Path | None = None
    ) -> None:
        file = Path(file)
        content = _read(file)
        readers = {"ManiDataset": read_mani, "JsonDataset": lambda path: read_json(path, root)}
        if not isinstance(content, list) or not all(
            isinstance(row, list) and len(row) == 2 and all(isinstance(p, str) for p in row) for row in content
        ):
            raise DataError(f"{file}: must be a list of [class, path] pairs")
        if not content:
            raise DataError(f"{file}: contains no datasets")
        unknown = next((row[0] for row in content if row[0] not in readers), None)
        if unknown is not None:
            raise DataError(f"{file}: class must be one of {', '.join(sorted(readers))}, got {unknown!r}")
        if sample_number < 1:
            raise DataError(f"{file}: `sample_number` must be at least 1, got {sample_number}")
        self.sets = [readers[name](_find(path, file, root)) for name, path in content]
        empty = next((row[1] for row, items in zip(content, self.sets, strict=True) if not items), None)
        if empty is not None:
            raise DataError(f"{file}: the dataset {empty} is empty")
        self.sample_number, self.seed = sample_number, seed

    def __len__(self) -> int:
        return self.sample_number * len(self.sets)

    def draw(self, index: int, epoch: int = 0) -> ForgeryItem:
        """Draw the item at an index in an epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in 0..{len(self) - 1}, got {index}")
        items = self.sets[index // self.sample_number]
        return items[int(np.random.default_rng([self.seed, epoch, index]).integers(len(items)))]


def check_items(items: Sequence[ForgeryItem]) -> tuple[int, int, int]:
    """Read all masks and the headers of all images.

    Returns:
        The number of forged images, of authentic images, and of those among them whose mask marks nothing.

    Raises:
        DataError: an image or mask is missing or damaged, their sizes differ, or no pixel of a mask is above 127
            although some are above 0; the message names the first and has the number of others.
    """
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(_check_item, items))
    problems = [item for item in found if isinstance(item, str)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")
    forged = sum(mark is True for mark in found)
    return forged, len(found) - forged, sum(mark is False for mark in found)


def _check_item(item: ForgeryItem) -> bool | str | None:
    """Whether the mask marks pixels as forged, None without a mask, or a message if the item is invalid."""
    try:
        width, height, turned = image_size(item.image)
        if item.mask is None:
            return None
        mask = decode_image(item.mask, require("cv2").IMREAD_COLOR)
    except DataError as error:
        return str(error)
    size = (height, width) if turned else (width, height)
    if (mask.shape[1], mask.shape[0]) != size:
        return (
            f"{item.mask}: is {mask.shape[1]} x {mask.shape[0]} pixels, but its image {item.image.name} is "
            f"{size[0]} x {size[1]}"
        )
    highest = int(mask.max())
    if 0 < highest <= 127:
        return (
            f"{item.mask}: its highest value is {highest}, and pixels are forged above 127; save masks with 0 for "
            "authentic and 255 for forged pixels"
        )
    return bool((mask.mean(2, dtype=np.float64) > 127.5).any())


def read_truth(path: str | Path) -> np.ndarray:
    """Read a mask file as uint8 ``[H, W]``: 1 (forged) where the mean over the channels is above 127.5, else 0.

    Raises:
        DataError: if the file cannot be read as an image.
    """
    mask = decode_image(path, require("cv2").IMREAD_COLOR)
    return (mask.mean(2, dtype=np.float64) > 127.5).astype(np.uint8)


def _read(file: Path) -> object:
    try:
        return load_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({' '.join(str(error).split())})") from error


def _find(path: str, file: Path, root: str | Path | None) -> Path:
    found = place(path, root, str(file))
    for base in [Path()] if root is not None else [file.parent, Path()]:
        if (base / found).exists():
            return base / found
    raise DataError(f"{file}: file {path!r:.200} not found")
