"""Matching and AP against pycocotools, on random boxes and masks with crowds, ties, and classes without objects."""

import contextlib
import io
import json

import numpy as np
import pytest
from fixtures.detections import CLASSES, IDS, write_case

pytest.importorskip("pycocotools")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visionattn.heads.detection.analysis import load_objects
from visionattn.heads.detection.curves import class_curve, confusion
from visionattn.heads.detection.matching import IOUS, RANGES, match, mean_ap


def reference(truth, found, kind: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(truth))
        measured = COCOeval(api, api.loadRes(str(found)), kind)
        measured.params.catIds = [IDS[name] for name in CLASSES]
        measured.params.maxDets = [1, 10, 1000]
        measured.evaluate()
        measured.accumulate()
    return measured


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ap_is_that_of_pycocotools(tmp_path, kind, seed):
    files = write_case(tmp_path, seed, masks=kind == "segm")
    truth, detections, ids = load_objects(*files, CLASSES, kind)
    matches = match(detections, truth, len(ids))
    precision = reference(*files, kind).eval["precision"][..., -1]  # thresholds x recalls x classes x sizes
    order = np.argsort(np.argsort([IDS[name] for name in CLASSES]))
    assert truth.crowd.any()
    for area in range(len(RANGES)):
        expected = precision[:, :, order, area].mean(1).T
        found = mean_ap(detections, truth, matches, len(CLASSES), area)
        assert np.array_equal(np.isnan(found), expected == -1)
        assert np.allclose(np.nan_to_num(found, nan=-1), expected, atol=1e-12)


def test_matches_are_those_of_pycocotools(tmp_path):
    files = write_case(tmp_path, 5)
    truth, detections, ids = load_objects(*files, CLASSES, "bbox")
    matches = match(detections, truth, len(ids))
    measured = reference(*files, "bbox")
    expected = ignored = 0
    for entry in filter(None, measured.evalImgs):
        if entry["aRng"] == measured.params.areaRng[0]:
            ignored += int(entry["dtIgnore"][0].sum())
            expected += int(((entry["dtMatches"][0] > 0) & ~entry["dtIgnore"][0].astype(bool)).sum())
    assert int(matches.correct.sum()) == expected
    assert int((~matches.counted).sum()) == ignored > 0


def test_confusion_matrix_has_the_true_positives_and_every_object_and_detection(tmp_path):
    files = write_case(tmp_path, 6, images=20)
    truth, detections, ids = load_objects(*files, CLASSES, "bbox")
    matches = match(detections, truth, len(ids))
    kept = detections.score >= 0.4
    counts = confusion(detections, truth, matches, kept, len(CLASSES))
    usable = kept & matches.counted
    assert counts[-1, -1] == 0
    assert counts[:-1].sum(1).tolist() == np.bincount(truth.label[~truth.crowd], minlength=4).tolist()
    assert counts[:, :-1].sum(0).tolist() == np.bincount(detections.label[usable], minlength=4).tolist()
    right = np.bincount(detections.label[usable & matches.correct], minlength=4)
    assert np.diag(counts)[:-1].tolist() == right.tolist()
    assert counts[:-1, :-1].sum() > right.sum()  # some are confused with each other


def test_confusion_by_hand(tmp_path):
    """An object of `a` detected as `b` and, at a lower score, twice as `a`; an object of `b` that is missed."""
    box = [0, 0, 40, 40]
    truth = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": box, "area": 1600, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [100, 100, 40, 40], "area": 1600, "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": box, "area": 1600, "iscrowd": 0},
    ]
    found = [
        {"image_id": 1, "category_id": 3, "bbox": box, "score": 0.9},
        {"image_id": 1, "category_id": 7, "bbox": box, "score": 0.8},
        {"image_id": 1, "category_id": 7, "bbox": box, "score": 0.7},
        {"image_id": 2, "category_id": 3, "bbox": box, "score": 0.6},
    ]
    content = {"images": [{"id": k, "width": 200, "height": 200} for k in (1, 2)], "annotations": truth,
               "categories": [{"id": 7, "name": "a"}, {"id": 3, "name": "b"}]}  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(found))
    objects, detections, ids = load_objects(tmp_path / "truth.json", tmp_path / "found.json", ("a", "b"), "bbox")
    matches = match(detections, objects, len(ids))
    counts = confusion(detections, objects, matches, np.ones(4, bool), 2)
    # image 1: a as a; the detection as b and the second as a find nothing free; b is missed; image 2: a as b
    assert counts.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]


def test_threshold_with_the_best_f1():
    scores = np.array([0.9, 0.8, 0.8, 0.5, 0.3, 0.3, 0.1])
    correct = np.array([1, 1, 0, 1, 0, 0, 1], bool)
    curve = class_curve(scores, correct, 5)

    def f1(threshold):
        kept = scores >= threshold
        return 2 * correct[kept].sum() / (kept.sum() + 5)

    assert curve.best == pytest.approx(0.4)  # between 0.5 and 0.3
    assert curve.f1[curve.at] == pytest.approx(max(f1(t) for t in np.linspace(0, 1, 1001)))
    assert curve.f1.tolist() == pytest.approx([f1(t) for t in (0.9, 0.8, 0.5, 0.3, 0.1)])
    assert class_curve(scores, np.zeros(7, bool), 5).best is None
    assert class_curve(np.zeros(0), np.zeros(0, bool), 3).best is None


def test_thresholds_of_coco():
    assert IOUS.tolist() == pytest.approx(COCOeval(iouType="bbox").params.iouThrs.tolist(), abs=0)
    assert [list(r) for r in RANGES.values()] == COCOeval(iouType="bbox").params.areaRng
