"""Read the masks of Pascal VOC: PNG files with palettes or colors in ``SegmentationClass`` and ``SegmentationObject``.

The classes are those of ``labelmap.txt`` (``name:red,green,blue:...``, as CVAT writes it), of ``classes.json``, or the
20 classes of VOC if the masks have its colors. The color (224, 224, 192) and the index 255 are ignored pixels.

An own reader, since supervision has none, and datumaro adds pandas, pyarrow and another build of OpenCV.
"""

from pathlib import Path

import numpy as np

from visionattn.data.formats.common import Annotated, Images, Item, Raw, clean_label, json_file, split_name, text_lines
from visionattn.data.formats.geometry import mask_box
from visionattn.data.formats.voc import listed_names
from visionattn.data.mask_folders import IGNORED
from visionattn.errors import DataError
from visionattn.io.images import open_image
from visionattn.io.inputs import walk_files

__all__ = ["ClassMasks", "read_voc_masks", "voc_colors"]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BACKGROUND = "background"
VOID = (224, 224, 192)


def voc_colors(count: int) -> list[tuple[int, int, int]]:
    """Return the RGB colors of VOC by index: bit b of channel c is bit 3 * (7 - b) + c of the index."""
    return [
        tuple(sum((index >> (3 * (7 - bit) + channel) & 1) << bit for bit in range(8)) for channel in range(3))  # type: ignore[misc]
        for index in range(count)
    ]


class ClassMasks:
    """The class masks of a folder, as arrays of class indices with the background at 0.

    Args:
        root: the folder.
        images: its images, with the report.

    Raises:
        DataError: there are no masks, or the list of classes is malformed.
    """

    def __init__(self, root: Path, images: Images) -> None:
        self.images = images
        self.files = [p for p in walk_files(images.root, {".png"}) if p.parent.name == "SegmentationClass"]
        if not self.files:
            raise DataError(f"{root}: has no masks in a folder SegmentationClass")
        self.lists = listed_names(root, "Segmentation", images)
        maps = [p for p in walk_files(images.root, {".txt"}) if p.name == "labelmap.txt"]
        self.colors: dict[tuple[int, int, int], int] | None = None
        if maps:
            self.classes, self.colors = self._label_map(maps[0])
        else:
            self.classes = self._names(images.root / "classes.json")

    def _label_map(self, file: Path) -> tuple[list[str], dict[tuple[int, int, int], int]]:
        rows: list[tuple[str, tuple[int, int, int]]] = []
        for number, line in enumerate(text_lines(file, self.images.report, self.images.where(file)), 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, rest = line.partition(":")
            try:
                red, green, blue = (int(v) for v in rest.split(":")[0].split(","))
            except ValueError:
                raise DataError(f"{file}:{number}: must be name:red,green,blue, got {line[:60]!r}") from None
            rows.append((clean_label(name, self.images.report, self.images.where(file, number)), (red, green, blue)))
        rows.sort(key=lambda row: row[0] != BACKGROUND)  # stable
        if not rows or rows[0][0] != BACKGROUND:
            rows.insert(0, (BACKGROUND, (0, 0, 0)))
        return [name for name, _ in rows], {color: index for index, (_, color) in enumerate(rows)}

    def _names(self, file: Path) -> list[str]:
        if file.is_file():
            content = json_file(file, self.images.report, self.images.where(file))
            names = content.get("names", content.get("classes")) if isinstance(content, dict) else content
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise DataError(f'{file}: must contain a list of names, or an object with such a list as "names"')
            return names
        with open_image(self.files[0]) as image:
            if image.mode != "P":
                raise DataError(f"{self.files[0]}: colors need labelmap.txt with lines name:red,green,blue")
            palette = image.getpalette()[:63]
        if [tuple(palette[i : i + 3]) for i in range(0, 63, 3)] == voc_colors(21):
            return [BACKGROUND, *VOC_CLASSES]
        raise DataError(
            f'{self.files[0]}: the classes are not known; add classes.json with {{"names": ["background", ...]}}'
        )

    def read(self, file: Path) -> np.ndarray:
        """Return uint8 ``[H, W]``: the class of each pixel, `IGNORED` for ignored ones and unknown colors."""
        pixels = _pixels(file, as_colors=self.colors is not None)
        out = np.full(pixels.shape[:2], IGNORED, np.uint8)
        if self.colors is None:
            known = pixels < len(self.classes)
            out[known] = pixels[known]
            strange = int((~known & (pixels != IGNORED)).sum())
        else:
            codes = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
            strange = pixels.shape[0] * pixels.shape[1]
            for (red, green, blue), index in {**self.colors, VOID: IGNORED}.items():
                match = codes == (red << 16) + (green << 8) + blue
                out[match] = index
                strange -= int(match.sum())
        if strange:
            self.images.report.add("pixels of masks that are no class, ignored", self.images.where(file), strange)
        return out

    def members(self) -> list[tuple[str, Path, Path]]:
        """Return split, image and mask; masks without an image, or in no list, are counted."""
        found, report = [], self.images.report
        for file in self.files:
            base, where = file.parent.parent, self.images.where(file)
            splits = {split_name(reversed(file.relative_to(self.images.root).parts[:-1]))}
            if base in self.lists and not (splits := self.lists[base].get(file.stem, set())):
                report.add("masks that are in no list of a split, not used", where)
            elif (image := self.images.named_like(file)) is None:
                report.add("annotations without an image, left out", where)
            else:
                found += [(split, image, file) for split in sorted(splits)]
        return found


def read_voc_masks(root: Path, images: Images) -> Raw:
    """Read the objects of ``SegmentationObject``, each with the class of most of its pixels.

    Raises:
        DataError: there are no object masks; class masks alone do not separate objects.
    """
    masks = ClassMasks(root, images)
    found = []
    for split, image, file in masks.members():
        objects = file.parent.parent / "SegmentationObject" / file.name
        if not objects.is_file():
            images.report.add("class masks without a mask of objects, left out", images.where(file))
            continue
        classes, numbers = masks.read(file), _numbers(objects)
        where = images.where(objects)
        if classes.shape != numbers.shape:
            raise DataError(f"{objects}: differs in its size from {file}")
        items = []
        for value in np.unique(numbers):
            region = numbers == value
            inside = np.bincount(classes[region], minlength=256)
            if value == 0 or not inside[1:IGNORED].any():
                continue  # the background, or the outlines of objects
            label = masks.classes[int(inside[1:IGNORED].argmax()) + 1]
            x, y, w, h = (int(v) for v in mask_box(region))
            items.append(
                Item(label, f"{where}: object {value}", mask=region[y : y + h, x : x + w].copy(), corner=(x, y))
            )
        found.append(Annotated(image, split, where, items, size=classes.shape[::-1]))  # type: ignore[arg-type]
    if not found:
        raise DataError(
            f"{root}: has no masks in SegmentationObject, without which objects are not separated; for semantic "
            "segmentation, use a config with custom_data.train_mask, such as semantic-fpn_dinat-pico_masks_custom"
        )
    return Raw(masks.classes[1:], found)


def _numbers(file: Path) -> np.ndarray:
    """Return int64 ``[H, W]``: a number for each object, 0 for the background and for ignored pixels."""
    pixels = _pixels(file, as_colors=False)
    if pixels.ndim == 2:
        return np.where(pixels == IGNORED, 0, pixels).astype(np.int64)
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    codes[codes == (VOID[0] << 16) + (VOID[1] << 8) + VOID[2]] = 0
    return np.unique(np.append(codes.ravel(), 0), return_inverse=True)[1][:-1].reshape(codes.shape)


def _pixels(file: Path, as_colors: bool) -> np.ndarray:
    """Return the indices ``[H, W]`` of a palette or gray image, or colors ``[H, W, 3]``."""
    try:
        with open_image(file) as image:
            return np.asarray(image if image.mode in ("P", "L") and not as_colors else image.convert("RGB"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ..., depending on the damage
        raise DataError(f"{file}: cannot be read as a mask ({' '.join(str(error).split())[:100]})") from error
