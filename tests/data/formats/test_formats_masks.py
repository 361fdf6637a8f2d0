"""Masks of Pascal VOC with palettes and colors, as objects and as index masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionattn.data.coco import check_coco
from visionattn.data.formats.convert import convert
from visionattn.data.formats.detect import detect
from visionattn.data.formats.geometry import decode, encode
from visionattn.data.formats.masks import convert_masks
from visionattn.data.formats.voc_masks import VOC_CLASSES, voc_colors
from visionattn.data.mask_folders import check_masks, pair_masks
from visionattn.errors import DataError

NAMES = {"train": ("a", "b", "c"), "val": ("d", "e")}
CAT, DOG = VOC_CLASSES.index("cat") + 1, VOC_CLASSES.index("dog") + 1


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return class indices and object numbers of a cat and two dogs with ignored outlines, uint8 [40, 60]."""
    rng = np.random.default_rng(seed)
    classes, objects = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    for number, label in enumerate((CAT, DOG, DOG), 1):
        x, y, w, h = 20 * number - 19 + rng.integers(3), rng.integers(1, 12), rng.integers(5, 15), rng.integers(5, 20)
        for array, value in ((classes, label), (objects, number)):
            array[y : y + h, x : x + w] = 255
            array[y + 1 : y + h - 1, x + 1 : x + w - 1] = value
    return classes, objects


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array, "P")
    image.putpalette([v for color in voc_colors(256) for v in color])
    image.save(path)


def devkit(root: Path) -> None:
    for split, names in NAMES.items():
        for name in names:
            classes, objects = scene(ord(name))
            save(classes, root / "SegmentationClass" / f"{name}.png")
            save(objects, root / "SegmentationObject" / f"{name}.png")
            (root / "JPEGImages").mkdir(exist_ok=True)
            noise = np.random.default_rng(ord(name)).integers(0, 255, (40, 60, 3), np.uint8)
            Image.fromarray(noise).save(root / "JPEGImages" / f"{name}.jpg")
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names))


def cvat_export(root: Path) -> None:
    """CVAT's "Segmentation mask 1.1": the masks in colors of its own, listed in labelmap.txt."""
    devkit(root)
    colors = {"background": (0, 0, 0), "dog": (50, 183, 250), "cat": (250, 50, 83)}
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in colors.items()]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    lut = np.zeros((256, 3), np.uint8)
    lut[CAT], lut[DOG], lut[255] = colors["cat"], colors["dog"], (224, 224, 192)
    for path in root.glob("Segmentation*/*.png"):
        with Image.open(path) as image:
            index = np.asarray(image)
        table = lut if path.parent.name == "SegmentationClass" else np.array(voc_colors(256), np.uint8)
        Image.fromarray(table[index]).save(path)


WRITERS = {"palette": devkit, "colors": cvat_export}


@pytest.mark.parametrize("kind", WRITERS)
def test_objects(tmp_path: Path, kind: str):
    WRITERS[kind](tmp_path / "in")
    found = detect(tmp_path / "in")
    assert (found.kind, found.maps) == ("voc-masks", True)
    result = convert(tmp_path / "in", tmp_path / "out")
    assert result.tasks == ["boxes", "masks"]
    for split, file in result.annotations.items():
        check_coco(file, result.images[split])
        content = json.loads(file.read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        assert list(names.values()) == (["dog", "cat"] if kind == "colors" else list(VOC_CLASSES))
        for image in content["images"]:
            classes, objects = scene(ord(Path(image["file_name"]).stem))
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            masks = [decode(annotation["segmentation"], 60, 40) for annotation in own]
            assert sorted(int(objects[mask][0]) for mask in masks) == [1, 2, 3]
            for mask, annotation in zip(masks, own, strict=True):
                assert np.array_equal(mask, objects == objects[mask][0])
                ys, xs = np.nonzero(mask)
                assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert names[annotation["category_id"]] == VOC_CLASSES[classes[mask][0] - 1]


@pytest.mark.parametrize("kind", WRITERS)
def test_index_masks(tmp_path: Path, kind: str):
    WRITERS[kind](tmp_path / "in")
    lines = convert_masks(tmp_path / "in", tmp_path / "out")
    assert lines[1:3] == ["train: 3 images", "val: 2 images"]
    names = json.loads((tmp_path / "out" / "classes.json").read_text())["names"]
    assert names == (["background", "dog", "cat"] if kind == "colors" else ["background", *VOC_CLASSES])
    for split in NAMES:
        pairs = pair_masks(tmp_path / "out" / "images" / split, tmp_path / "out" / "masks" / split)
        assert check_masks(pairs, names)[names.index("dog")] > 0
        for _, mask in pairs:
            expected = scene(ord(mask.stem))[0]
            with Image.open(mask) as image:
                values = np.asarray(image)
            assert np.array_equal(values == 255, expected == 255)
            for name, index in (("cat", CAT), ("dog", DOG)):
                assert np.array_equal(values == names.index(name), expected == index)


def test_unknown_colors_are_counted(tmp_path: Path):
    cvat_export(tmp_path / "in")
    path = tmp_path / "in" / "SegmentationClass" / "a.png"
    with Image.open(path) as image:
        pixels = np.asarray(image).copy()
    pixels[:2, :5] = (1, 2, 3)
    Image.fromarray(pixels).save(path)
    lines = convert_masks(tmp_path / "in", tmp_path / "out")
    assert "pixels of masks that are no class, ignored: 10, such as SegmentationClass/a.png" in lines


def test_masks_without_names(tmp_path: Path):
    devkit(tmp_path / "in")
    for path in (tmp_path / "in" / "SegmentationClass").iterdir():
        with Image.open(path) as image:
            image.putpalette(list(range(255)) * 3)
            image.save(path)
    with pytest.raises(DataError, match=r"the classes are not known; add classes\.json"):
        convert(tmp_path / "in", tmp_path / "out")
    names = ["background", *[f"class {i}" for i in range(1, 21)]]
    (tmp_path / "in" / "classes.json").write_text(json.dumps(names))
    assert "objects" in convert(tmp_path / "in", tmp_path / "out").lines[1]


def test_class_masks_alone_have_no_objects(tmp_path: Path):
    devkit(tmp_path / "in")
    for path in (tmp_path / "in" / "SegmentationObject").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="objects are not separated; for semantic segmentation, use"):
        convert(tmp_path / "in", tmp_path / "out")


def test_colors_of_voc():
    assert voc_colors(256)[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert voc_colors(256)[20] == (0, 64, 128)
    assert voc_colors(256)[255] == (224, 224, 192)


def test_encode_decode():
    mask = np.random.default_rng(0).random((13, 7)) < 0.4
    assert np.array_equal(decode(encode(mask), 7, 13), mask)
