"""mmdet's panoptic parts on the stand-in for panopticapi."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from visionattn.data.panoptic import PanopticStats, id2rgb, rgb2id
from visionattn.engine.compat.panopticapi import install, pq_compute
from visionattn.errors import DataError

install()

CLASSES = ("cat", "dog", "grass", "sky")
CATEGORIES = [{"id": 10 * (i + 1), "name": name, "isthing": int(i < 2)} for i, name in enumerate(CLASSES)]


def write_map(path, ids) -> None:
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), id2rgb(ids)[..., ::-1])


@pytest.fixture
def panoptic_set(tmp_path):
    """Three images of blocks, one crowd and some void among them; and predictions that are partly wrong."""
    rng = np.random.default_rng(3)
    annotations, predictions, images = [], [], []
    for number in range(3):
        name = f"{number}.png"
        truth = np.kron(rng.integers(0, 5, (4, 5)), np.ones((8, 8), int)) * 70000
        found = np.where(rng.random(truth.shape) < 0.2, 70000, truth)
        classes = {int(i): int(rng.integers(0, 4)) for i in np.unique(truth) if i}
        found_classes = {k: v if rng.random() < 0.7 else int(rng.integers(0, 4)) for k, v in classes.items()}
        # mmdet codes segments as class + 1000 * number, and void as the number of classes
        codes = np.full(truth.shape, len(CLASSES))
        for order, (segment, label) in enumerate(found_classes.items(), 1):
            codes[found == segment] = label + 1000 * order
        write_map(tmp_path / "truth" / name, truth)
        predicted = np.where(codes == len(CLASSES), 0, codes)
        write_map(tmp_path / "found" / name, predicted)
        crowd = next((k for k, v in classes.items() if v < 2), None)
        annotations.append({
            "image_id": number, "file_name": name,
            "segments_info": [
                {"id": k, "category_id": 10 * (v + 1), "iscrowd": int(k == crowd), "area": int((truth == k).sum()),
                 "bbox": [0, 0, 40, 32]} for k, v in classes.items()
            ],
        })  # fmt: skip
        segments = [{"id": int(c), "category_id": 10 * (int(c) % 1000 + 1)} for c in np.unique(predicted) if c]
        predictions.append({"image_id": number, "file_name": name, "segments_info": segments, "codes": codes})
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 32})
    truth_file = tmp_path / "truth.json"
    truth_file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    plain = [{k: v for k, v in p.items() if k != "codes"} for p in predictions]
    (tmp_path / "found.json").write_text(json.dumps({"annotations": plain}))
    return tmp_path, predictions


def test_mmdet_metric_and_files_agree(panoptic_set):
    """mmdet counts the matches by its own code; the sums and means are ours."""
    from mmdet.evaluation import CocoPanopticMetric

    folder, predictions = panoptic_set
    metric = CocoPanopticMetric(ann_file=str(folder / "truth.json"), seg_prefix=str(folder / "truth"))
    metric.dataset_meta = {"classes": CLASSES, "thing_classes": CLASSES[:2], "stuff_classes": CLASSES[2:]}
    for prediction in predictions:
        sample = {
            "img_id": prediction["image_id"],
            "img_path": f"{prediction['image_id']}.jpg",
            "ori_shape": (32, 40),
            "pred_panoptic_seg": {"sem_seg": torch.from_numpy(prediction["codes"])[None]},
        }
        metric.process({}, [sample])
    measured = metric.evaluate(3)
    ours = pq_compute(folder / "truth.json", folder / "found.json")
    assert 0 < ours["All"]["pq"] < 1
    for kind, tail in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for key in ("pq", "sq", "rq"):
            assert measured[f"coco_panoptic/{key.upper()}{tail}"] == pytest.approx(100 * ours[kind][key])


def test_perfect_predictions(panoptic_set):
    folder, _ = panoptic_set
    results = pq_compute(folder / "truth.json", folder / "truth.json", pred_folder=folder / "truth")
    assert results["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": results["All"]["n"]}
    assert results["per_class"].keys() == {10, 20, 30, 40}


def test_files_that_do_not_fit(panoptic_set):
    folder, _ = panoptic_set
    content = json.loads((folder / "found.json").read_text())
    (folder / "found" / "2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2\.png: cannot be read"):
        pq_compute(folder / "truth.json", folder / "found.json")
    del content["annotations"][1]
    (folder / "found.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no prediction for the image 1"):
        pq_compute(folder / "truth.json", folder / "found.json")


def test_annotations_are_loaded(panoptic_set):
    from mmdet.datasets.transforms import LoadPanopticAnnotations

    folder, _ = panoptic_set
    segments = [{"id": 70000, "category": 2, "is_thing": False}, {"id": 140000, "category": 0, "is_thing": True}]
    sample = {"seg_map_path": str(folder / "truth" / "0.png"), "segments_info": segments, "ori_shape": (32, 40),
              "instances": []}  # fmt: skip
    loaded = LoadPanopticAnnotations(with_bbox=False, with_label=False).transform(sample)
    ids = rgb2id(cv2.imread(str(folder / "truth" / "0.png"))[..., ::-1])
    np.testing.assert_array_equal(loaded["gt_seg_map"], np.select([ids == 70000, ids == 140000], [2, 0], 255))
    np.testing.assert_array_equal(loaded["gt_masks"].masks[0], ids == 140000)


def test_an_installed_package_is_left_alone(tmp_path, monkeypatch):
    assert install()
    (tmp_path / "panopticapi").mkdir()
    (tmp_path / "panopticapi" / "__init__.py").write_text("real = True\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "panopticapi"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert not install()
    import panopticapi

    assert panopticapi.real
    assert not install()
    monkeypatch.delitem(sys.modules, "panopticapi")


def test_the_names_mmdet_imports():
    from panopticapi.evaluation import OFFSET, VOID, PQStat
    from panopticapi.utils import id2rgb as to_rgb

    assert (OFFSET, VOID, PQStat, to_rgb) == (256**3, 0, PanopticStats, id2rgb)
