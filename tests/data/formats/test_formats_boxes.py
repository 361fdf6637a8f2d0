"""Boxes and polygons of every format and layout, compared with those that were written."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures import annotated
from fixtures.annotated import BOXES, CLASSES, POLYGONS, kind_of, photos, polygons_of, read_back, truth
from PIL import Image

from visionattn.data.coco import check_coco
from visionattn.data.formats.convert import convert
from visionattn.data.formats.detect import detect


def same(found: annotated.Truth, expected: annotated.Truth, exact: bool) -> None:
    assert found.keys() == expected.keys()
    for key, objects in expected.items():
        assert [label for label, _ in found[key]] == [label for label, _ in objects], key
        for (_, box), (_, true) in zip(found[key], objects, strict=True):
            assert box == true if exact else box == pytest.approx(true, abs=1e-9), key


@pytest.mark.parametrize("name", BOXES)
def test_boxes(tmp_path: Path, name: str):
    made = photos()
    (tmp_path / "in").mkdir()
    BOXES[name](tmp_path / "in", made)
    assert detect(tmp_path / "in").kind == kind_of(name)
    result = convert(tmp_path / "in", tmp_path / "out")
    same(read_back(result.annotations), truth(made), exact=kind_of(name) not in ("yolo", "class-folders"))
    for split, file in result.annotations.items():
        check_coco(file, result.images[split])
        for record in json.loads(file.read_text())["images"]:
            photo = next(p for p in made if p.stem == Path(record["file_name"]).stem)
            assert (record["width"], record["height"]) == photo.size
            with Image.open(result.images[split] / record["file_name"]) as image:
                assert np.array_equal(np.asarray(image), photo.pixels)
    assert result.tasks == ["boxes"]


@pytest.mark.parametrize("name", POLYGONS)
def test_polygons(tmp_path: Path, name: str):
    made = photos(polygons=True, seed=1)
    POLYGONS[name](tmp_path / "in", made)
    result = convert(tmp_path / "in", tmp_path / "out")
    same(read_back(result.annotations), truth(made), exact=kind_of(name) != "yolo")
    for split, file in result.annotations.items():
        check_coco(file, result.images[split])
        expected = sorted(s.polygon for p in made if p.split == split for s in p.shapes)
        found = sorted(polygons_of(file))
        assert len(found) == len(expected)
        for polygon, true in zip(found, expected, strict=True):
            assert polygon == pytest.approx(true, abs=1e-9)
        for annotation in json.loads(file.read_text())["annotations"]:  # triangles
            assert annotation["area"] == pytest.approx(annotation["bbox"][2] * annotation["bbox"][3] / 2)
    assert result.tasks == ["boxes", "masks"]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("yolo: Ultralytics", {"vest": 0, "helmet": 1}),  # the numbers in the files
        ("voc: Roboflow", {"helmet": 1, "vest": 2}),  # sorted
        ("labelme: beside", {"helmet": 1, "vest": 2}),
        ("cvat: tasks", {"vest": 1, "helmet": 2}),  # order of the labels
        ("coco: official", {"vest": 7, "helmet": 3}),  # as in the files
    ],
)
def test_category_ids(tmp_path: Path, name: str, ids: dict[str, int]):
    BOXES[name](tmp_path / "in", photos())
    result = convert(tmp_path / "in", tmp_path / "out")
    for file in result.annotations.values():
        found = {c["name"]: c["id"] for c in json.loads(file.read_text())["categories"]}
        assert found == ids
        assert list(found) == list(ids)


@pytest.mark.parametrize("name", ["yolo: Roboflow", "voc: devkit", "labelme: embedded"])
def test_copied_images(tmp_path: Path, name: str):
    made = photos()
    BOXES[name](tmp_path / "in", made)
    result = convert(tmp_path / "in", tmp_path / "out", copy=True)
    for photo in made:
        copied = tmp_path / "out" / "images" / photo.split / photo.name
        with Image.open(copied) as image:
            assert np.array_equal(np.asarray(image), photo.pixels)
    same(read_back(result.annotations), truth(made), exact=kind_of(name) != "yolo")


def test_the_source_is_unchanged(tmp_path: Path):
    BOXES["labelme: embedded"](tmp_path / "in", photos())
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.*")}
    convert(tmp_path / "in", tmp_path / "out", val=0.5)
    assert before == {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.*")}


def test_labels_in_any_script(tmp_path: Path):
    made = photos()
    names = {"vest": "жилет 背心", "helmet": "खोद"}
    for photo in made:
        for shape in photo.shapes:
            shape.label = names[shape.label]
    BOXES["labelme: beside"](tmp_path / "in", made)
    result = convert(tmp_path / "in", tmp_path / "out")
    same(read_back(result.annotations), truth(made), exact=True)
    assert set(CLASSES).isdisjoint(c for boxes in read_back(result.annotations).values() for c, _ in boxes)


def test_reused_only_while_the_source_is_the_same(tmp_path: Path):
    made = photos()
    BOXES["yolo: Ultralytics"](tmp_path / "in", made)
    first = convert(tmp_path / "in", tmp_path / "out", reuse=True)
    stamp = first.annotations["train"].stat().st_mtime_ns
    again = convert(tmp_path / "in", tmp_path / "out", reuse=True)
    assert again == first
    assert again.annotations["train"].stat().st_mtime_ns == stamp
    label = tmp_path / "in" / "labels" / "train" / f"{made[0].stem}.txt"
    label.write_text("0 0.5 0.5 0.5 0.5\n")
    changed = read_back(convert(tmp_path / "in", tmp_path / "out", reuse=True).annotations)
    width, height = made[0].size
    assert changed["train", made[0].stem] == [("vest", [width / 4, height / 4, width / 2, height / 2])]
