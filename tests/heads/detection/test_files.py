"""Files that detectors write: labels of YOLO, crops, COCO results."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from visionattn.errors import ConfigError
from visionattn.heads.detection.files import coco_results, write_crops, write_labels, yolo_lines
from visionattn.heads.detection.job import DetectionOptions
from visionattn.inference.results import InstanceMasks, Prediction

SIZE = (60, 80)


def boxes(**fields) -> Prediction:
    return Prediction(
        SIZE, ("a/b", "c"), np.array([[8, 6, 24, 36], [40.5, 0, 80, 60]], np.float32),
        np.array([0.9, 0.5], np.float32), np.array([1, 0]), **fields,
    )  # fmt: skip


def test_lines_have_centers_and_sizes_as_fractions():
    first, second = yolo_lines(boxes(), scores=False)
    assert first == "1 0.200000 0.350000 0.200000 0.500000"
    label, *values = second.split()
    assert label == "0"
    assert [float(v) for v in values] == pytest.approx([60.25 / 80, 0.5, 39.5 / 80, 1])
    assert yolo_lines(boxes(), scores=True)[0].endswith(" 0.90000")


def masks() -> InstanceMasks:
    dense = np.zeros((3, *SIZE), bool)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    dense[0] = (rows - 30) ** 2 + (columns - 20) ** 2 <= 12**2
    dense[1, 10:11, 50:53] = True  # one pixel high
    dense[1, 40:60, 60:80] = True  # the larger part touches the border
    return InstanceMasks.from_dense(dense)


def test_polygons_cover_the_masks():
    found = Prediction(
        SIZE, ("a",), np.array([[8, 18, 33, 43], [50, 10, 80, 60], [1, 2, 9, 12]], np.float32),
        np.ones(3, np.float32), np.zeros(3, np.int64), masks=masks(),
    )  # fmt: skip
    lines = yolo_lines(found, scores=False)
    for index, expected in ((0, masks()[0]), (1, masks()[1] & (np.arange(SIZE[0]) >= 40)[:, None])):
        points = np.array(lines[index].split()[1:], float).reshape(-1, 2) * SIZE[::-1]
        assert len(points) < 60
        # the centers of the pixels that are inside of the polygon
        inside = np.array([
            [cv2.pointPolygonTest(points.astype(np.float32)[:, None], (x + 0.5, y + 0.5), False) > 0
             for x in range(SIZE[1])] for y in range(SIZE[0])
        ])  # fmt: skip
        assert (inside & expected).sum() / (inside | expected).sum() > 0.97
    assert lines[2] == "0 0.012500 0.033333 0.112500 0.033333 0.112500 0.200000 0.012500 0.200000"  # an empty mask


def test_a_thin_mask_has_a_polygon_with_an_area():
    dense = np.zeros((1, *SIZE), bool)
    dense[0, 10, 50:53] = True
    found = Prediction(
        SIZE, ("a",), np.array([[50, 10, 53, 11]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64),
        masks=InstanceMasks.from_dense(dense),
    )  # fmt: skip
    points = np.array(yolo_lines(found, scores=False)[0].split()[1:], float).reshape(-1, 2) * SIZE[::-1]
    assert cv2.contourArea(points.astype(np.float32)) > 0.5


def test_labels_and_classes(tmp_path):
    assert write_labels(tmp_path, "x", boxes(), scores=True) == {"labels": "labels/x.txt"}
    assert (tmp_path / "labels/classes.txt").read_text().split() == ["a/b", "c"]
    assert len((tmp_path / "labels/x.txt").read_text().splitlines()) == 2
    write_labels(tmp_path, "empty", boxes().above(0.95), scores=False)
    assert (tmp_path / "labels/empty.txt").read_text() == ""


def test_crops_are_the_pixels_of_the_boxes(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    entry = write_crops(tmp_path, "x[1]", boxes(image=image))
    assert entry == {"crops": ["crops/c/x[1]_1.png", "crops/a_b/x[1]_1.png"]}
    assert (cv2.imread(str(tmp_path / entry["crops"][0])) == image[6:36, 8:24]).all()
    assert (cv2.imread(str(tmp_path / entry["crops"][1])) == image[:, 40:]).all()
    write_crops(tmp_path, "x[1]", boxes(image=image).above(0.7))  # a second run removes the files of the first
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")) == ["crops/c/x[1]_1.png"]


def test_coco_results_are_read_by_pycocotools(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    dense = np.zeros((2, *SIZE), bool)
    dense[0, 6:36, 8:24] = dense[1, :, 41:] = True
    records = [{"detections": boxes(masks=InstanceMasks.from_dense(dense)).to_coco(index)} for index in (0, 1)]
    with coco_results(tmp_path, ("bbox", "segm")) as add:
        for record in [*records, {"error": "damaged"}]:
            add(record)
        assert not list(tmp_path.glob("results*"))
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": i, "width": SIZE[1], "height": SIZE[0]} for i in (0, 1)], "annotations": [],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "c"}],
    }  # fmt: skip
    truth.createIndex()
    found = truth.loadRes(str(tmp_path / "results.bbox.json"))
    assert [(a["image_id"], a["category_id"]) for a in found.dataset["annotations"]] == [(0, 2), (0, 1), (1, 2), (1, 1)]
    assert found.dataset["annotations"][0]["bbox"] == [8, 6, 16, 30]
    masks_found = truth.loadRes(str(tmp_path / "results.segm.json"))
    assert [a["area"] for a in masks_found.dataset["annotations"][:2]] == [16 * 30, 60 * 39]


def test_no_detections_are_an_empty_list(tmp_path):
    with coco_results(tmp_path, ("bbox",)) as add:
        add({"detections": []})
    assert json.loads((tmp_path / "results.bbox.json").read_text()) == []


def test_videos_are_not_images(tmp_path):
    with coco_results(tmp_path, ("bbox",)) as add:
        add({"frames": 3})
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_leaves_no_results(tmp_path: Path):
    def interrupted() -> None:
        with coco_results(tmp_path, ("bbox",)) as add:
            add({"detections": boxes().to_coco(0)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_scores_need_labels():
    with pytest.raises(ConfigError, match="`save_conf` has no effect without `save_txt`"):
        DetectionOptions(save_conf=True)
