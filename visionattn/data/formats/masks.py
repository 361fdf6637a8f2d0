"""Convert the class masks of Pascal VOC to folders with images and index masks, for semantic segmentation."""

import os
import shutil
from collections import defaultdict
from pathlib import Path

from visionattn.data.formats.common import Images, Report
from visionattn.data.formats.convert import REPORT, fingerprint
from visionattn.data.formats.similar import choose
from visionattn.data.formats.voc_masks import ClassMasks
from visionattn.errors import DataError, require
from visionattn.io.console import count_of, track
from visionattn.io.folders import is_current, new_folder, write_json

__all__ = ["convert_masks"]

VERSION = 1
"""Increase it when the files change."""


def convert_masks(
    source: str | Path, out: str | Path, *, val: float | None = None, seed: int = 0, reuse: bool = False
) -> list[str]:
    """Write ``images/<split>``, ``masks/<split>`` and ``classes.json``; index 0 is the background, 255 is ignored.

    Args:
        source: folder with masks in ``SegmentationClass``.
        out: folder to create.
        val: fraction of the training images to draw for validation if there are no others, see
            `visionattn.data.formats.convert.convert`.
        seed: of the random split.
        reuse: keep the existing folder if its source has not changed.

    Returns:
        Lines with the number of images and what was dropped or changed.

    Raises:
        DataError: a mask or the list of classes is malformed, or nothing usable is left.
    """
    source, out = Path(os.path.abspath(Path(source).expanduser())), Path(os.path.abspath(Path(out).expanduser()))
    stamp = {"version": VERSION, "source": str(source), "masks": True, "val": val, "seed": seed}
    if reuse:
        stamp["files"] = fingerprint(source)
        if is_current(out, stamp):
            return (out / REPORT).read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    images = Images(source, Report())
    masks = ClassMasks(source, images)
    members: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for split, image, mask in masks.members():
        members[split or "train"].append((image, mask))
    if not members:
        raise DataError(f"{source}: no mask with an image is left; {'; '.join(images.report.lines()[:3])}")
    if val is not None and "val" not in members:
        pairs = members["train"]
        chosen = set(choose([image for image, _ in pairs], val, seed, str(source)))
        members["val"] = [pair for i, pair in enumerate(pairs) if i in chosen]
        members["train"] = [pair for i, pair in enumerate(pairs) if i not in chosen]
        images.report.add(f"images drawn for validation (seed {seed})", "train", len(chosen))
    lines = [f"{source}: voc-masks, {len(masks.classes)} classes with the background"]
    with new_folder(out, stamp) as folder:
        for split, pairs in members.items():
            for part in ("images", "masks"):
                (folder / part / split).mkdir(parents=True)
            taken: set[str] = set()
            for image, mask in track(pairs, f"masks, {split}", len(pairs)):
                if image.stem in taken:
                    images.report.add("images with the same name in different folders, left out", images.where(image))
                    continue
                taken.add(image.stem)
                indices = masks.read(mask)
                shutil.copyfile(image, folder / "images" / split / image.name)
                require("PIL.Image").fromarray(indices).save(folder / "masks" / split / f"{image.stem}.png")
            lines.append(f"{split}: {count_of(len(taken), 'image')}")
        write_json(folder / "classes.json", {"names": masks.classes, "ignore_index": 255})
        lines += images.report.lines()
        (folder / REPORT).write_text("\n".join(lines) + "\n\n" + images.report.text(), "utf-8", "backslashreplace")
    return lines
