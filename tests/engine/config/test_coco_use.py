"""What is counted of COCO files before a run."""

import json
from pathlib import Path

import pytest

pytest.importorskip("mmdet")

from visionattn.engine.config.coco_use import check_evaluators, describe_use
from visionattn.errors import DataError

ANN = Path("train.json")


def objects(*changes):
    """Two images and one object for each dict of changes."""
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 100 * n, "height": 80 * n} for n in (1, 2)]
    base = {"image_id": 1, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [[1]]}
    return {
        "images": images,
        "annotations": [{**base, "id": n, **change} for n, change in enumerate(changes)],
        "categories": [{"id": 1, "name": "disc"}, {"id": 7, "name": "square"}],
    }


def use(content, training=True, masks=False, classes=("disc", "square"), **dataset):
    return describe_use(ANN, content, dataset, list(classes), training, masks)


def test_counts():
    square = {"category_id": 7, "image_id": 2}
    assert use(objects({}, square)) == "2 images, 2 objects"
    assert use(objects({}, {})) == "2 images, 2 objects; 1 image without objects; none of square"
    assert use(objects({}, square), classes=["disc"]).split("; ")[1:] == [
        "1 of square not used",
        "1 image without objects",
    ]
    filters = {"filter_cfg": {"filter_empty_gt": True}}
    assert "1 image without objects, not used" in use(objects({}), **filters)
    assert use(objects({}), test_mode=True, **filters) == "2 images, 1 object; 1 image without objects; none of square"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iscrowd": 1}, "crowds (iscrowd=1)"),
        ({"ignore": True}, "marked `ignore`"),
        ({"bbox": [4, 4, 0.6, 9]}, "in boxes narrower than 1 pixel"),
    ],
)
def test_objects_that_are_not_learned(change, words):
    square = {"category_id": 7, "image_id": 2}
    assert f"1 {words}, not used" in use(objects({}, square, change))
    with pytest.raises(DataError, match="has no object to train on: all 2 objects are") as caught:
        use(objects(change, change))
    assert words in str(caught.value)


def test_pycocotools_compares_with_all_objects_but_crowds():
    assert use(objects({"ignore": True}, {"category_id": 7, "image_id": 2}), False) == "2 images, 2 objects"
    with pytest.raises(DataError, match="has no object to compare with: all 1 object are crowds"):
        use(objects({"iscrowd": 1}), False)


def test_small_images_are_filtered_in_training():
    filters = {"filter_cfg": {"min_size": 100}}
    assert "1 image smaller than 100 pixels, not used" in use(objects({}, {"image_id": 2}), **filters)
    with pytest.raises(DataError, match="all 1 object are in images smaller than the min_size=100"):
        use(objects({}), **filters)
    assert use(objects({}, {"image_id": 2}), False, **filters) == "2 images, 2 objects; none of square"


def test_relative_boxes():
    with pytest.raises(DataError, match="relative to the image size"):
        use(objects({"bbox": [0.1, 0.1, 0.4, 0.5]}))
    assert use(objects({"bbox": [0, 0, 1, 1]}, {"image_id": 2})).startswith("2 images")


def test_masks_that_are_missing():
    none, crowd = {"segmentation": []}, {"segmentation": None, "iscrowd": 1}
    for change in (none, crowd):
        with pytest.raises(DataError, match=r"annotation 1 has no segmentation, .*\(and 1 more\)"):
            use(objects({}, change, change), masks=True)
        use(objects({}, change))
    use(objects({}, none | {"category_id": 7}), masks=True, classes=["disc"])


def test_evaluator_without_annotations(tmp_path):
    with pytest.raises(DataError, match=r"val\.json: CocoMetric has nothing to compare with; set its ann_file"):
        check_evaluators({"type": "CocoMetric"}, [tmp_path / "val.json"])
    check_evaluators({"type": "CocoMetric"}, [tmp_path / "val.json"], packed=True)
    check_evaluators({"type": "CocoMetric"}, [])


def test_evaluator_of_other_data(tmp_path):
    ours, theirs = tmp_path / "val.json", tmp_path / "old.json"
    ours.write_text(json.dumps(objects({})))
    evaluator = {"type": "CocoMetric", "ann_file": str(theirs)}
    theirs.write_text(ours.read_text())
    check_evaluators([evaluator, {"type": "mmdet.CocoMetric", "ann_file": str(ours)}], [ours])
    check_evaluators({"type": "OtherMetric", "ann_file": "absent.json"}, [ours])
    for change, message in (
        (lambda c: c["images"][1].update(id=5), r"image 2 of the dataset is '2.jpg' .* and None here"),
        (
            lambda c: c["categories"][0].update(name="ring"),
            r"categories 1: ring, 7: square are not .* 1: disc, 7: square",
        ),
    ):
        content = objects({})
        change(content)
        theirs.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            check_evaluators(evaluator, [ours])
