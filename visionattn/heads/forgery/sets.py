"""Lists of forgery datasets as they lie on disk: BR-Gen, IMDLBenCo's folder and JSON formats, images beside masks.

Each reader gives `ForgeryItem` records and touches no pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.images import decode_image
from visionattn.io.json import read_json as load_json
from visionattn.io.names import place

__all__ = [
    "BalancedSets",
    "ForgeryItem",
    "read_benco",
    "read_brgen",
    "read_json",
    "read_mani",
    "read_pairs",
    "read_truth",
]

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
MASK_ENDINGS = ("_mask", "_gt", "_edgemask")
NEGATIVE = "Negative"


@dataclass(frozen=True)
class ForgeryItem:
    """One picture of a set.

    Attributes:
        image: its file.
        mask: the file of its mask, bright where forged, or None for an authentic picture.
        source: the name of the photograph that it was made from, where the set tells; for splits and balancing.
        kind: how it was forged, where the set tells, such as ``"MAT_Stuff"``.
    """

    image: Path
    mask: Path | None
    source: str | None = None
    kind: str | None = None


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _by_stem(folder: Path, endings: Sequence[str] = MASK_ENDINGS) -> dict[str, Path]:
    """Masks by the stem of the picture they belong to."""
    found: dict[str, Path] = {}
    for path in _files(folder):
        stem = path.stem
        for ending in endings:
            stem = stem.removesuffix(ending)
        if stem in found:
            raise DataError(f"{folder}: {found[stem].name} and {path.name} are both the mask of {stem!r}; keep one")
        found[stem] = path
    return found


def _pair(images: list[Path], masks: dict[str, Path], folder: Path, authentic: bool) -> list[tuple[Path, Path | None]]:
    """Each image with its mask by stem; without one, authentic, or an error."""
    rest = dict(masks)
    pairs = [(path, rest.pop(path.stem, None)) for path in images]
    missing = [path for path, mask in pairs if mask is None]
    if missing and not authentic:
        raise DataError(f"{missing[0]}: has no mask in {folder} ({len(missing)} of {len(pairs)} pictures have none)")
    if rest:
        stray = next(iter(rest.values()))
        raise DataError(
            f"{stray}: belongs to no picture ({len(rest)} masks do not); a name is misspelt, or it is left over"
        )
    return pairs


def read_mani(folder: str | Path, with_authentic: bool = False) -> list[ForgeryItem]:
    """A ``ManiDataset`` folder of IMDLBenCo: ``Tp/`` pictures and ``Gt/`` masks, paired by stem.

    IMDLBenCo pairs the two sorted lists by position, so that one stray file shifts all that follow; here that is an
    error.

    Args:
        folder: holds ``Tp`` and ``Gt``; ``Au`` too if `with_authentic`.
        with_authentic: also the pictures of ``Au``, which IMDLBenCo leaves out.

    Raises:
        DataError: a folder, a picture's mask or a mask's picture is missing.
    """
    folder = Path(folder)
    pairs = _pair(_files(folder / "Tp"), _by_stem(folder / "Gt"), folder / "Gt", authentic=False)
    items = [ForgeryItem(image, mask) for image, mask in pairs]
    if with_authentic:
        items += [ForgeryItem(image, None) for image in _files(folder / "Au")]
    return items


def read_brgen(folder: str | Path, balanced: bool = False, seed: int = 0) -> list[ForgeryItem]:
    """A BR-Gen folder: ``Au/NAME``, ``Tp/METHOD_REGION_NAME``, ``Gt/METHOD_REGION_NAME_mask.png``.

    Args:
        folder: holds ``Tp`` and ``Gt``, and ``Au`` where there are authentic pictures (BRGen-Stuff-Val has none).
        balanced: draw as many forged pictures at random as there are authentic ones, as the authors do.
        seed: of that draw.

    Raises:
        DataError: a folder or mask is missing, or a forged picture's name is not as above.
    """
    folder = Path(folder)
    authentic = _files(folder / "Au") if (folder / "Au").is_dir() else []
    forged = []
    for image, mask in _pair(_files(folder / "Tp"), _by_stem(folder / "Gt"), folder / "Gt", authentic=False):
        parts = image.stem.split("_", 2)
        if len(parts) < 3:
            raise DataError(f"{image}: a forged picture of BR-Gen is named METHOD_REGION_<name of the authentic one>")
        forged.append(ForgeryItem(image, mask, source=parts[2], kind=f"{parts[0]}_{parts[1]}"))
    if balanced and len(forged) > len(authentic):
        if not authentic:
            raise DataError(f"{folder}: has no authentic pictures (Au/) to balance the forged ones with")
        chosen = np.random.default_rng(seed).permutation(len(forged))[: len(authentic)]
        forged = [forged[i] for i in sorted(chosen)]
    return [*forged, *(ForgeryItem(path, None, source=path.stem, kind="authentic") for path in authentic)]


def read_json(file: str | Path, root: str | Path | None = None) -> list[ForgeryItem]:
    """A ``JsonDataset`` file of IMDLBenCo: ``[[image, mask], [image, "Negative"], ...]``.

    Args:
        file: the JSON file.
        root: what paths in it start from, and stay below; None means the file's own folder, or else the working folder,
            and then absolute paths are taken too.

    Raises:
        DataError: the file is malformed, or names a file that does not exist or is reached by ``..``.
    """
    file = Path(file)
    content = _read(file)
    if not isinstance(content, list) or not all(
        isinstance(row, list) and len(row) == 2 and all(isinstance(p, str) for p in row) for row in content
    ):
        raise DataError(f'{file}: must be a list of [image, mask] pairs, the mask "{NEGATIVE}" for authentic pictures')
    return [
        ForgeryItem(_find(image, file, root), None if mask == NEGATIVE else _find(mask, file, root))
        for image, mask in content
    ]


def read_pairs(folder: str | Path, images: str = "images", masks: str = "masks") -> list[ForgeryItem]:
    """A folder with ``images/`` and ``masks/`` of the same stems; a picture without a mask is authentic.

    Raises:
        DataError: a folder is missing, or a mask belongs to no picture.
    """
    folder = Path(folder)
    found = _by_stem(folder / masks) if (folder / masks).is_dir() else {}
    pairs = _pair(_files(folder / images), found, folder / masks, authentic=True)
    return [ForgeryItem(image, mask) for image, mask in pairs]


def read_benco(path: str | Path, root: str | Path | None = None) -> list[ForgeryItem]:
    """A set as IMDLBenCo's scripts name one: a folder is a ``ManiDataset``, a file a ``JsonDataset``."""
    path = Path(path)
    return read_mani(path) if path.is_dir() else read_json(path, root)


class BalancedSets:
    """Several sets as one, of which each gives the same number of samples, drawn at random with repetition.

    As IMDLBenCo's ``BalancedDataset``: item ``i`` comes from set ``i // sample_number``. Here the draw is a function
    of item, seed and epoch, so that a run can be repeated.

    Args:
        file: JSON of ``[[class, path], ...]``, the class being ``ManiDataset`` or ``JsonDataset``.
        sample_number: samples of each set.
        seed: of the draw.
        root: what relative paths start from, see `read_json`.

    Raises:
        DataError: the file or one of the sets is malformed.
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
            raise DataError(f"{file}: names no sets")
        unknown = next((row[0] for row in content if row[0] not in readers), None)
        if unknown is not None or sample_number < 1:
            raise DataError(f"{file}: class {unknown!r} must be one of {sorted(readers)}, and sample_number at least 1")
        self.sets = [readers[name](_find(path, file, root)) for name, path in content]
        empty = next((row[1] for row, items in zip(content, self.sets, strict=True) if not items), None)
        if empty is not None:
            raise DataError(f"{file}: the set {empty} is empty")
        self.sample_number, self.seed = sample_number, seed

    def __len__(self) -> int:
        return self.sample_number * len(self.sets)

    def draw(self, index: int, epoch: int = 0) -> ForgeryItem:
        """The item that stands at an index in an epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} must be in 0..{len(self) - 1}")
        items = self.sets[index // self.sample_number]
        return items[int(np.random.default_rng([self.seed, epoch, index]).integers(len(items)))]


def read_truth(path: str | Path) -> np.ndarray:
    """A mask file as ``[H, W]`` uint8, 1 where forged: where the mean over its channels is above 127.5.

    Raises:
        DataError: the file cannot be read as an image.
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
    raise DataError(f"{file}: names {path!r:.200}, which does not exist")
