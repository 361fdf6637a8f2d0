"""The report of detectors in unusual cases, its pictures, and its numbers."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from fixtures.detections import CLASSES, write_case

pytest.importorskip("pycocotools")

from visionattn.heads.detection.analysis import DetectionAnalysis
from visionattn.heads.detection.curves import calibration
from visionattn.inference.analysis import TestData


def findings(folder, files, classes=CLASSES, masks=False):
    """The findings for written cases; only some of the images exist."""
    kind = "segm" if masks else "bbox"
    truth, found = files
    analysis = DetectionAnalysis(TestData(classes, None, {}), masks)
    for image in json.loads(truth.read_text())["images"]:
        path = folder / image["file_name"]
        if image["id"] % 2:
            cv2.imwrite(str(path), np.full((220, 220, 3), 128, np.uint8))
        analysis.add({"img_id": image["id"], "img_path": str(path)})
    result = found.rename(found.with_name(f"predictions.{kind}.json"))
    return analysis.findings(SimpleNamespace(files=[result], annotations={kind: str(truth)}))


@pytest.mark.parametrize("masks", [False, True])
def test_pictures(tmp_path, masks):
    worst = findings(tmp_path, write_case(tmp_path, 0, masks=masks), masks=masks).sections[-1].blocks[-1]
    assert worst.count("<figure>") == 12
    assert worst.count("the file does not exist") == 6
    assert worst.count("data:image/webp") == 2 * 6


@pytest.mark.parametrize(
    "case", [{"detections": 0}, {"objects": 0}, {"objects": 0, "detections": 0}, {"crowds": 1.0}, {"images": 1}]
)
@pytest.mark.parametrize("masks", [False, True])
def test_cases_without_some_of_the_data(tmp_path, case, masks):
    found = findings(tmp_path, write_case(tmp_path, 1, masks=masks, **case), masks=masks)
    assert len(found.sections) == 6
    numbers = "".join(block for section in found.sections[:-1] for block in section.blocks)  # without pictures
    assert "nan" not in numbers.lower()
    json.dumps(found.figures, allow_nan=False)
    if case.get("detections") == 0 or case.get("objects") == 0 or case.get("crowds"):
        assert set(found.thresholds.values()) == {None}


def test_one_class_of_several_in_the_file(tmp_path):
    found = findings(tmp_path, write_case(tmp_path, 2), classes=("b",))
    assert list(found.thresholds) == ["b"]
    assert np.shape(found.figures["confusion"]) == (2, 2)


def test_annotations_are_required():
    analysis = DetectionAnalysis(TestData(CLASSES, None, {}), False)
    (section,) = analysis.findings(SimpleNamespace(files=[], annotations={})).sections
    assert "needs a CocoMetric" in section.blocks[0]


def test_calibration():
    rng = np.random.default_rng(0)
    scores = rng.random(100_000)
    observed, counts, error = calibration(scores, rng.random(100_000) < scores**2)
    edges = np.linspace(0, 1, 11)
    assert counts.sum() == 100_000
    assert observed == pytest.approx((edges[1:] ** 3 - edges[:-1] ** 3) / 3 / 0.1, abs=0.02)
    assert error == pytest.approx(1 / 6, abs=0.01)  # the integral of s - s²
    assert calibration(np.array([1.0]), np.array([True]))[2] == 0
    assert calibration(np.zeros(0), np.zeros(0, bool))[2] == 0
