"""Read Pascal VOC annotations: one XML file per image.

A box is [xmin, ymin, xmax - xmin, ymax - ymin] of the file. The original devkit counts pixels from 1 and includes the
last one, but LabelImg, Roboflow, CVAT and most other tools write coordinates from 0, and readers do not subtract 1.

An own parser, since supervision 0.31 subtracts 1 from xmin and ymin but not from xmax and ymax, and the `voc` reader of
datumaro 1.13 finds no images outside the folders of the devkit.
"""

from collections import defaultdict
from pathlib import Path
from xml.etree.ElementTree import Element

from visionattn.data.formats.common import SPLITS, Annotated, Images, Item, Raw, clean_label, split_name, text_lines
from visionattn.errors import DataError
from visionattn.io.inputs import walk_files
from visionattn.io.xml import read_xml

__all__ = ["listed_names", "read_voc"]

LARGEST_XML = 64 << 20
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path, images: Images) -> Raw:
    """Read all XML files of a folder, in the splits of ``ImageSets/Main/*.txt`` or of the names of their folders.

    Raises:
        DataError: a file is malformed; the message has the line.
    """
    report, found = images.report, []
    lists = listed_names(root, "Main", images)
    left = {(base, name) for base, names in lists.items() for name in names}
    for file in walk_files(root, {".xml"}):
        where = images.where(file)
        tree = read_xml(file, LARGEST_XML)
        if tree.tag != "annotation":
            report.add("XML files that are not VOC annotations, not used", where)
            continue
        base = next((folder for folder in file.parents if folder in lists), None)
        splits = {split_name(reversed(file.relative_to(images.root).parts[:-1]))}
        if base is not None:
            inside = file.with_suffix("").relative_to(base).parts[1:]  # CVAT lists images of subfolders with these
            key = next((k for k in ("/".join(inside), file.stem) if k in lists[base]), file.stem)
            left.discard((base, key))
            splits = lists[base].get(key, set())
            if not splits:
                report.add("annotations that are in no list of a split, not used", where)
                continue
        image = _image(file, tree, images)
        if image is None:
            report.add("annotations without an image, left out", where)
            continue
        items = [item for element in tree.findall("object") if (item := _item(element, file, images))]
        for split in sorted(splits):
            found.append(Annotated(image, split, where, items, size=_size(tree, file, images)))
    for base, name in sorted(left):
        report.add("names in lists without an annotation, left out", f"{images.where(base)}: {name}")
    return Raw([], found)


def listed_names(root: Path, kind: str, images: Images) -> dict[Path, dict[str, set[str]]]:
    """Return the splits of each name in ``ImageSets/<kind>/*.txt``, by the folder that contains ``ImageSets``."""
    found: dict[Path, dict[str, set[str]]] = {}
    for folder in sorted({path.parent for path in walk_files(root, {".txt"}) if path.parent.name == kind}):
        if folder.parent.name != "ImageSets":
            continue
        texts = {path.stem.lower(): path for path in sorted(folder.glob("*.txt"))}
        files = {split: texts[key] for split, keys in SPLITS.items() for key in keys if key in texts}
        if "train" not in files and "val" not in files and "trainval" in texts:
            files["train"] = texts["trainval"]
        if not files and "default" in texts:  # of CVAT
            files[""] = texts["default"]
        names: dict[str, set[str]] = defaultdict(set)
        for split, file in files.items():
            for line in text_lines(file, images.report, images.where(file)):
                if line.strip():
                    names[line.strip()].add(split)
        if files:
            found[folder.parent.parent] = dict(names)
    return found


def _image(file: Path, tree: Element, images: Images) -> Path | None:
    """Return the image of an annotation: the one with its name, else the one that the annotation names."""
    given, where = (tree.findtext("filename") or "").strip(), images.where(file)
    image = images.named_like(file)
    if image is None:
        return images.find(given, [file.parent], where) if given else None
    last = given.replace("\\", "/").rpartition("/")[2]
    if "\\" in given:
        images.report.add("Windows paths, read with forward slashes", f"{where}: {given}")
    if last and last.lower() not in (image.name.lower(), image.stem.lower()):
        images.report.add("file names in annotations that differ from the image", f"{where}: {given}, {image.name}")
    return image


def _size(tree: Element, file: Path, images: Images) -> tuple[int, int] | None:
    try:
        size = tuple(int(float(tree.findtext(f"size/{key}", ""))) for key in ("width", "height"))
    except ValueError:
        size = (0, 0)
    if min(size) > 0:
        return size  # type: ignore[return-value]
    images.report.add("annotations without a size, checked without it", images.where(file))
    return None


def _item(element: Element, file: Path, images: Images) -> Item | None:
    line = getattr(element, "line", None)
    where, report = images.where(file, line), images.report
    label = clean_label(element.findtext("name") or "", report, where)
    if not label:
        report.add("objects without a class, dropped", where)
        return None
    for key in ("difficult", "truncated", "occluded"):
        if (element.findtext(key) or "").strip() in ("1", "true"):
            report.add(f"objects marked {key}, kept", where)
    for _ in element.findall("part"):
        report.add("parts of objects, not read", where)
    box = element.find("bndbox")
    polygon = _polygon(element, file, line)
    if box is None and not polygon:
        report.add("objects without a box, dropped", where)
        return None
    if box is None:
        return Item(label, where, polygons=[polygon])
    try:
        x0, y0, x1, y1 = (float(box.findtext(key, "")) for key in CORNERS)
    except ValueError:
        raise DataError(f"{file}:{getattr(box, 'line', line)}: a box needs the numbers {', '.join(CORNERS)}") from None
    if x1 < x0 or y1 < y0:
        report.add("boxes with exchanged corners, corrected", where)
    xs, ys = sorted((x0, x1)), sorted((y0, y1))
    return Item(label, where, [xs[0], ys[0], xs[1] - xs[0], ys[1] - ys[0]], [polygon] if polygon else [])


def _polygon(element: Element, file: Path, line: int | None) -> list[float]:
    """Return the polygon of an object as Roboflow writes it: x1, y1, x2, y2, ..."""
    values: list[float] = []
    polygon = element.find("polygon")
    while polygon is not None and (x := polygon.findtext(f"x{len(values) // 2 + 1}")) is not None:
        try:
            values += [float(x), float(polygon.findtext(f"y{len(values) // 2 + 1}", ""))]
        except ValueError:
            raise DataError(f"{file}:{line}: a polygon has a value that is not a number") from None
    return values
