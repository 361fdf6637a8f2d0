"""Donor photographs for splicing: the source images from which regions are pasted, optionally with object masks."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from visionattn.data.coco import segmentation_fault
from visionattn.errors import DataError, require
from visionattn.heads.forgery.create.synthesis import Donor
from visionattn.io.images import read_image
from visionattn.io.inputs import IMAGE_SUFFIXES, walk_files
from visionattn.io.json import read_json

__all__ = ["FolderDonors", "find_photos", "read_photo"]

OBJECT_PROBABILITY = 0.5
"""Probability of returning an object mask for a photograph with annotated objects."""


def find_photos(folders: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the images in folders and their subfolders, sorted, without hidden files.

    Raises:
        DataError: a folder does not exist, or there is no image.
    """
    found: list[Path] = []
    folders = [Path(folder) for folder in ([folders] if isinstance(folders, (str, Path)) else folders)]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder")
        found += sorted(walk_files(folder, IMAGE_SUFFIXES))
    if not found:
        raise DataError(f"{', '.join(map(str, folders))}: holds no images")
    return found


def read_photo(path: str | Path) -> np.ndarray:
    """Read a photograph as uint8 ``[H, W, 3]``, BGR, with its EXIF orientation applied.

    Raises:
        DataError: if the file cannot be read as an image.
    """
    return read_image(path)


class FolderDonors:
    """Random donor photographs from folders, for `visionattn.heads.forgery.create.synthesis.ForgerySynthesis`.

    Segmentations that are malformed or do not match the size of their photograph are ignored.

    Args:
        folders: folders that are searched recursively.
        objects: COCO instance files; for photographs with instances, one is returned with probability 0.5.
        cache: number of decoded photographs kept in memory.

    Raises:
        DataError: if a folder or file is missing or malformed.
    """

    def __init__(
        self, folders: str | Path | Sequence[str | Path], objects: Sequence[str | Path] = (), cache: int = 64
    ) -> None:
        self.photos = find_photos(folders)
        self.objects: dict[str, list] = {}
        for file in objects:
            try:
                content = read_json(file)
                names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
                for annotation in content["annotations"]:
                    if annotation.get("segmentation") and not annotation.get("iscrowd"):
                        self.objects.setdefault(names[annotation["image_id"]], []).append(annotation["segmentation"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise DataError(f"{file}: is not a COCO instance file ({error})") from error
        self.cache = cache
        self._read = lru_cache(maxsize=cache)(read_photo)

    def __call__(self, rng: np.random.Generator) -> Donor:
        """Draw a photograph, and the mask of an object in it or None."""
        path = self.photos[int(rng.integers(len(self.photos)))]
        image = self._read(path)
        found = self.objects.get(path.name)
        if not found or rng.random() > OBJECT_PROBABILITY:
            return image, None
        outline = found[int(rng.integers(len(found)))]
        if segmentation_fault(outline, image.shape[1::-1]):  # pycocotools does not validate it
            return image, None
        return image, _draw(outline, image.shape[:2])

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k != "_read"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._read = lru_cache(maxsize=self.cache)(read_photo)


def _draw(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """Rasterize a COCO segmentation (polygons or RLE) to bool ``[H, W]``."""
    if isinstance(segmentation, dict):
        coco_mask = require("pycocotools.mask")
        if isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        return coco_mask.decode(segmentation).astype(bool)
    cv2 = require("cv2")
    mask = np.zeros(size, np.uint8)
    polygons = [np.rint(np.array(p, np.float64).reshape(-1, 2)).astype(np.int32) for p in segmentation]
    cv2.fillPoly(mask, polygons, 1)
    return mask.astype(bool)
