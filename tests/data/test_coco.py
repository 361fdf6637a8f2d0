import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from visionattn.data.coco import check_coco, rle_runs, segmentation_fault
from visionattn.errors import DataError

GOOD = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80},
        {"id": 2, "file_name": "sub/b.jpg", "width": 50, "height": 40},
        {"id": 3, "file_name": "c.jpg", "width": 50, "height": 40},
    ],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 80], "area": 8000, "iscrowd": 0},
        {
            "id": 11,
            "image_id": 2,
            "category_id": 2,
            "bbox": [1.5, 2, 10, 12],
            "area": 100.5,
            "iscrowd": 1,
            "segmentation": {"size": [40, 50], "counts": [100, 100, 1800]},
        },
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg", "c.jpg"):
        (folder / name).touch()
    return folder


def _write(folder: Path, data: object) -> Path:
    path = folder.parent / "instances.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def _message(path: Path, images: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        check_coco(path, images, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    assert len(text) < 500
    return text


def test_sound_file(images: Path):
    summary = check_coco(_write(images, GOOD), images)
    assert (summary.images, summary.annotations, summary.categories) == (3, 2, ("cat", "dog"))
    assert (summary.empty_images, summary.crowds, summary.zero_size) == (1, 1, 0)
    assert str(summary) == "3 images, 2 annotations, 2 categories"


def _broken(path: str, value: object) -> dict:
    """GOOD with one value changed; ``path`` such as ``annotations.0.bbox``; `...` removes it."""
    data = copy.deepcopy(GOOD)
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = data
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("annotations.0.bbox", [50, 0, 60, 80], ["annotation 10", "'a.jpg'", "10 px outside", "100x80"]),
        ("annotations.0.bbox", [-5, 0, 60, 80], ["annotation 10", "5 px outside"]),
        ("annotations.0.bbox", [0, 0, 100, 81.5], ["1.5 px outside"]),
        ("annotations.1.bbox", [1, 1, 0, 5], ["annotation 11", "sub/b.jpg", "zero size"]),
        ("annotations.1.bbox", [10, 10, -4, 5], ["negative"]),
        ("annotations.1.bbox", [float("nan"), 1, 2, 3], ["not finite"]),
        ("annotations.1.bbox", [1, 1, float("inf"), 3], ["not finite"]),
        ("annotations.1.bbox", [float("-inf"), 1, 2, 3], ["not finite"]),
        ("annotations.1.bbox", [1, 2, 3], ["[1, 2, 3]", "numbers"]),
        ("annotations.1.bbox", None, ["None", "numbers"]),
        ("annotations.1.bbox", [1, 2, "3", 4], ["numbers"]),
        ("annotations.1.area", 0, ["area 0"]),
        ("annotations.1.area", float("nan"), ["not finite"]),
        ("annotations.1.area", ..., ["no 'area'"]),
        ("annotations.1.iscrowd", ..., ["no 'iscrowd'"]),
        ("annotations.1.id", 10, ["annotation id 10", "more than once"]),
        ("annotations.1.id", ..., ["no usable id"]),
        ("annotations.1", 7, ["no usable id"]),
        ("annotations.1.image_id", 99, ["annotation 11", "image_id 99"]),
        ("annotations.1.image_id", [1], ["image_id [1]"]),
        ("annotations.1.category_id", 7, ["annotation 11", "category_id 7"]),
        ("annotations.1.segmentation", [[1, 2, 3, 4]], ["annotation 11", "polygon of 4"]),
        ("annotations.1.segmentation.size", [50, 40], ["RLE of size [50, 40]"]),
        ("annotations.1.segmentation.counts", [100, 100], ["add up"]),
        ("images.1.id", 1, ["image id 1", "more than once"]),
        ("images.1.id", None, ["image number 2"]),
        ("images.1.width", 0, ["width 0"]),
        ("images.1.height", "40", ["height '40'"]),
        ("images.1.file_name", "", ["file_name ''"]),
        ("images.1.file_name", "d.jpg", ["'d.jpg' is not in"]),
        ("images.0.file_name", "A.JPG", ["'A.JPG' is not in", "there is 'a.jpg'"]),
        ("images.0.file_name", "sub", ["'sub' is not in"]),
        ("images.0.file_name", "../instances.json", ["outside the image folder"]),
        ("images.0.file_name", "sub/../../instances.json", ["outside the image folder"]),
        ("images.0.file_name", "/etc/hostname", ["outside the image folder"]),
        ("images.0.file_name", "..\\x.jpg", ["outside the image folder"]),
        ("images", [], ['"images" is empty']),
        ("images", ..., ['no "images"']),
        ("annotations", {}, ['list as its "annotations"']),
        ("annotations", [], ["no annotations"]),
        ("categories", [], ['"categories" is empty']),
        ("categories.1.id", 1, ["category id 1", "more than once"]),
        ("categories.1.name", "cat", ["'cat'", "2 times"]),
        ("categories.1.name", 3, ["category 2", "name"]),
        ("categories.1.id", ..., ["category number 2"]),
    ],
)
def test_each_problem_is_named(images: Path, path: str, value: object, parts: list[str]):
    text = _message(_write(images, _broken(path, value)), images)
    for part in parts:
        assert part in text
    assert "; " in text  # a remedy follows


def test_tolerance(images: Path):
    path = _write(images, _broken("annotations.0.bbox", [-1, -0.5, 101.5, 81]))
    check_coco(path, images)
    assert "1 px outside" in _message(path, images, tolerance=0.25)


def test_counts_all_problems_and_keeps_the_first(images: Path):
    data = copy.deepcopy(GOOD)
    data["annotations"] = [{**GOOD["annotations"][0], "id": n, "bbox": [0, 0, 200, 10]} for n in range(25)]
    path = _write(images, data)
    with pytest.raises(DataError, match=r"annotation 0 .*and 24 more problems") as caught:
        check_coco(path, images, max_problems=3)
    assert [re.match(r"annotation (\d+)", text).group(1) for text in caught.value.problems] == ["0", "1", "2"]


def test_all_images_elsewhere(images: Path):
    text = _message(_write(images, GOOD), images / "sub")
    assert "none of its 3 images" in text
    assert "more problem" not in text


def test_no_such_folder(images: Path):
    assert "nowhere does not exist" in _message(_write(images, GOOD), images / "nowhere")


def test_no_such_file(images: Path):
    assert "does not exist" in _message(images.parent / "none.json", images)
    assert "cannot be read" in _message(images / "sub", images)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (json.dumps(GOOD)[:-9], "truncated"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "top level is a list"),
        ('{"shapes": []}', 'no "images"'),
    ],
)
def test_not_coco(images: Path, text: str, part: str):
    assert part in _message(_write(images, text), images)


def test_not_text(images: Path):
    path = images.parent / "instances.json"
    path.write_bytes(b"\xff\xfe\x00\x01\xd8")
    assert "JSON" in _message(path, images)


def test_allow_empty(images: Path):
    path = _write(images, _broken("annotations", []))
    assert check_coco(path, images, allow_empty=True).empty_images == 3


def test_a_zero_size_box_as_rare_as_in_coco_train2017(images: Path):
    """An official file of this size has such boxes; nobody can be asked to mend it."""
    data = copy.deepcopy(GOOD)
    data["annotations"] = [{**GOOD["annotations"][0], "id": n} for n in range(100_000)]
    data["annotations"][7]["bbox"] = [1, 1, 5, 0]
    assert check_coco(_write(images, data), images).zero_size == 1
    data["annotations"][8]["bbox"] = [1, 1, 0, 5]
    assert "annotation 7" in _message(_write(images, data), images)


@pytest.mark.parametrize(
    ("annotations", "folder"),
    [
        ("bccd/instances_train.json", "bccd/images/train"),
        ("nuclei/instances_val.json", "nuclei/images/val"),
        ("coco128/instances_train2017.json", "coco128/images/train2017"),
        ("coco128/instances_train2017_polygons.json", "coco128/images/train2017"),
        ("coco128/boxes_val2017.json", "coco128/images/val2017"),
        ("raccoon/instances_train.json", "raccoon/images/train"),
    ],
)
def test_real_files_are_sound(shared_dir: Path, annotations: str, folder: str):
    assert check_coco(shared_dir / "data" / annotations, shared_dir / "data" / folder).annotations > 0


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (63, 100), (1000, 900)])
def test_runs_of_compressed_text(shape: tuple[int, int], density: float):
    """Against run lengths counted in the mask itself, column by column."""
    mask = np.random.default_rng(0).random(shape) < density
    text = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(np.diff(flat))
    expected = np.diff(np.concatenate([[0], changes, [mask.size]]))
    np.testing.assert_array_equal(rle_runs(text), expected)
    fault = segmentation_fault({"size": list(shape), "counts": text}, (shape[1], shape[0]))
    assert fault is None


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 5, 0, 5, 5]],
        [[0.5, 0, 5, 0, 5, 5], [1, 1, 2, 1, 2, 2, 1, 2]],
        {"size": [3, 4], "counts": [5, 3, 4]},
        {"size": [3, 4], "counts": [12]},
    ],
)
def test_sound_segmentations(segmentation):
    assert segmentation_fault(segmentation, (4, 3)) is None


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        ([[0, 0, 5, 5]], "polygon of 4 numbers"),
        ([[0, 0, 5, 5, 1, 2, 3]], "polygon of 7 numbers"),
        ([0, 0, 5, 0, 5, 5], "not a list of polygons"),
        ([[0, 0, 5, 0, 5, float("nan")]], "not finite"),
        ([[0, 0, 5, 0, 5, float("inf")]], "not finite"),
        ([[0, 0, 5, 0, 5, "5"]], "not a finite number"),
        ("text", "neither"),
        ({"counts": [12]}, "neither"),
        ({"size": [4, 3], "counts": [12]}, "size"),
        ({"size": [3, 4], "counts": [5, 3]}, "add up"),
        ({"size": [3, 4], "counts": [15, -3]}, "add up"),
        ({"size": [3, 4], "counts": [5, 3, 4.0]}, "cannot be read"),
        ({"size": [3, 4], "counts": 12}, "cannot be read"),
        ({"size": [3, 4], "counts": ""}, "cannot be read"),
        ({"size": [3, 4], "counts": "é"}, "cannot be read"),
        ({"size": [3, 4], "counts": "oooooooooo"}, "cannot be read"),
        ({"size": [3, 4], "counts": "5"}, "add up"),
        ({"size": [3, 4], "counts": [10**30]}, "cannot be read"),
    ],
)
def test_faults_of_segmentations(segmentation, fault: str):
    assert fault in segmentation_fault(segmentation, (4, 3))
