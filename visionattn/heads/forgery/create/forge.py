"""Generation of a forgery dataset on disk from folders of photographs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, require
from visionattn.heads.forgery.create.donors import FolderDonors, find_photos, read_photo
from visionattn.heads.forgery.create.regions import REGION_SHAPES
from visionattn.heads.forgery.create.synthesis import OPERATIONS, Forgery, ForgerySynthesis
from visionattn.io.folders import new_folder, write_json

__all__ = ["MANIFEST", "ForgeReport", "forge_folder"]

MANIFEST = "manifest.json"
PREVIEW = "preview.jpg"
PREVIEW_CELLS, CELL = 40, 160


@dataclass
class ForgeReport:
    """Summary of `forge_folder`.

    Attributes:
        forged: number of forged images.
        untouched: number of authentic images.
        photos: number of source photographs.
        kinds: number of forgeries by operation.
        preview: file of the preview.
    """

    forged: int = 0
    untouched: int = 0
    photos: int = 0
    kinds: Counter = field(default_factory=Counter)
    preview: Path = Path(PREVIEW)


def forge_folder(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    count: int | None = None,
    crop: int | None = None,
    share: float = 0.5,
    operations: Sequence[str] = OPERATIONS,
    shapes: Sequence[str] = REGION_SHAPES,
    area: tuple[float, float] = (0.02, 0.25),
    quality: tuple[int, int] | None = (70, 100),
    feather: float = 5.0,
    colour_match: float = 0.3,
    geometry: float = 0.5,
    max_seam: float | None = None,
    objects: Sequence[str | Path] = (),
    every: int = 1,
    seed: int = 0,
) -> ForgeReport:
    """Write ``images/``, ``masks/``, ``manifest.json`` and a preview; the folder is created atomically.

    Image ``i`` is determined by the photographs, the arguments and ``i``. Forged and authentic images alternate, so
    that the fraction is exact; with ``share=0.5``, repeated photographs alternate between forged and authentic.

    Args:
        folders: folders of photographs, searched recursively; they also serve as splicing donors.
        out: output folder.
        count: number of images. Defaults to one per photograph.
        crop: side length of a random square crop, in pixels; smaller photographs are enlarged. None for no crop.
        share: fraction of forged images.
        operations, shapes, area, quality, feather, colour_match, geometry, max_seam: see `ForgerySynthesis`.
        objects: COCO instance files of the photographs, for splicing.
        every: use only every N-th photograph.
        seed: random seed.

    Returns:
        The summary.

    Raises:
        DataError: if an argument is out of range, a photograph cannot be read, or ``out`` contains other files.
    """
    cv2 = require("cv2")
    if every < 1:
        raise DataError(f"`every` must be at least 1, got {every}")
    photos = find_photos(folders)[::every]
    count = len(photos) if count is None else count
    if count < 1:
        raise DataError(f"`count` must be at least 1, got {count}")
    if not 0 <= share <= 1:
        raise DataError(f"`share` must be in [0, 1], got {share}")
    if crop is not None and crop < 32:
        raise DataError(f"`crop` must be at least 32, got {crop}")
    donors = FolderDonors(folders, objects)
    donors.photos = photos
    try:
        synthesis = ForgerySynthesis(
            operations,
            1.0,
            area,
            shapes,
            feather,
            colour_match,
            geometry,
            quality=quality,
            max_seam=max_seam,
            donor=donors,
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    report, records, cells = ForgeReport(photos=len(photos)), [], []
    stamp = {
        "data": "forgeries", "count": count, "crop": crop, "share": share, "operations": list(operations),
        "shapes": list(shapes), "area": list(area), "quality": quality and list(quality), "feather": feather,
        "colour_match": colour_match, "geometry": geometry, "max_seam": max_seam, "every": every, "seed": seed,
        "photographs": [str(p) for p in photos],
    }  # fmt: skip
    with new_folder(Path(out), stamp) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        for index in range(count):
            rng = np.random.default_rng([seed, index])
            path = photos[index % len(photos)]
            image = read_photo(path)
            image = _cut(rng, image, crop)
            round_, place = divmod(index, len(photos))
            turn = round_ + place if share == 0.5 else index  # swap forged and authentic in every round
            wanted = int((turn + 1) * share) > int(turn * share)
            forgery = synthesis(image, rng, forge=wanted)
            name = f"{index:06d}_{path.stem}"
            _write(cv2, folder / "images" / f"{name}.png", forgery.image)
            if forgery.label:
                _write(cv2, folder / "masks" / f"{name}.png", forgery.mask * 255)
            report.forged += forgery.label
            report.untouched += 1 - forgery.label
            report.kinds.update(s["operation"] for s in forgery.steps if s["operation"] != "save")
            records.append({
                "image": f"images/{name}.png", "mask": f"masks/{name}.png" if forgery.label else None,
                "label": forgery.label, "source": str(path), "steps": forgery.steps,
            })  # fmt: skip
            if forgery.label and len(cells) < PREVIEW_CELLS:
                cells.append(_cell(cv2, forgery))
        write_json(folder / MANIFEST, {"settings": stamp, "images": records})
        if cells:
            _write(cv2, folder / PREVIEW, _sheet(cells))
    report.preview = Path(out) / PREVIEW
    return report


def _cut(rng: np.random.Generator, image: np.ndarray, crop: int | None) -> np.ndarray:
    cv2 = require("cv2")
    if crop is None:
        return image
    short = min(image.shape[:2])
    if short < crop:
        size = (max(crop, round(image.shape[1] * crop / short)), max(crop, round(image.shape[0] * crop / short)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    top, left = (int(rng.integers(side - crop + 1)) for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + crop, left : left + crop])


def _write(cv2: object, path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(path.suffix, image)
    if not done:
        raise DataError(f"{path}: an image of shape {image.shape} cannot be written")
    path.write_bytes(data.tobytes())


def _cell(cv2: object, forgery: Forgery) -> np.ndarray:
    """The image next to a copy with the outline of the mask."""
    outlined = forgery.image.copy()
    contours, _ = cv2.findContours(forgery.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(outlined, contours, -1, (0, 0, 255), max(1, min(outlined.shape[:2]) // 128))
    pair = [cv2.resize(p, (CELL, CELL), interpolation=cv2.INTER_AREA) for p in (forgery.image, outlined)]
    cell = np.vstack([np.hstack(pair), np.full((18, 2 * CELL, 3), 255, np.uint8)])
    cv2.putText(cell, forgery.steps[0]["operation"], (4, CELL + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1)
    return cell


def _sheet(cells: list[np.ndarray], columns: int = 4) -> np.ndarray:
    blank = np.full_like(cells[0], 255)
    cells = cells + [blank] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)])
