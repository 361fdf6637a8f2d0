"""A trained detector on files of points."""

import json

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from visionattn.errors import ConfigError, DataError
from visionattn.heads.lidar.job import PointJob, PointOptions
from visionattn.heads.lidar.rotated_boxes import bev_iou
from visionattn.inference import Predictor
from visionattn.inference.files import plan_files, predict_files


@pytest.fixture(scope="module")
def predictor(pillars_run):
    return Predictor.from_run(pillars_run, "cpu", score_thr=0.4)


def test_files_and_arrays_give_the_same(predictor, scans_dir, pillars):
    path = scans_dir / "val" / "002.bin"
    from_file, from_array = predictor(path), predictor(pillars.make_scan(1002)[0])
    assert np.array_equal(from_file.boxes, from_array.boxes)
    assert from_file.path == path
    assert from_array.path is None
    assert from_file.scores.min() >= 0.4
    overlap = bev_iou(torch.from_numpy(from_file.truth), torch.from_numpy(from_file.boxes))
    assert (overlap.amax(1) > 0.4).float().mean() > 0.6
    assert set(from_file.truth_classes) <= set(pillars.CLASSES)
    assert len(from_array.truth) == 0
    several = predictor([path, path])
    assert np.allclose(several[1].boxes, from_file.boxes, atol=1e-4)


def test_rows_that_are_not_finite_are_counted(predictor, pillars):
    points = pillars.make_scan(1002)[0]
    spoiled = np.concatenate([points, np.full((3, 4), np.nan, np.float32)])
    found = predictor(spoiled)
    assert found.dropped == 3
    assert np.array_equal(found.boxes, predictor(points).boxes)
    with pytest.raises(ValueError, match="points must be"):
        predictor(np.zeros((3, 2)))


def test_intensity_and_columns_of_bare_files(predictor, pillars, tmp_path):
    points = pillars.make_scan(1003)[0]
    scaled = np.concatenate([points[:, :3], points[:, 3:] * 255, np.zeros((len(points), 2), np.float32)], 1)
    scaled.astype(np.float32).tofile(tmp_path / "a.bin")
    other = Predictor.from_model(predictor.model, score_thr=0.4, columns=6, intensity_max=255.0)
    assert np.allclose(other(tmp_path / "a.bin").boxes, predictor(points).boxes, atol=1e-4)


def test_results_of_a_folder(predictor, scans_dir, tmp_path):
    data = tmp_path / "in"
    data.mkdir()
    for name in ("001.bin", "001.json", "007.bin"):
        (data / name).write_bytes((scans_dir / "val" / name).read_bytes())
    (data / "broken.bin").write_bytes(b"123")
    lines = []
    out = tmp_path / "out"
    plan = plan_files(PointJob.find([data]), out)
    with_pages = Predictor.from_model(predictor.model, score_thr=0.4, html=True)
    summary = predict_files(with_pages, plan, {"config": "c"}, on_error=lines.append)
    assert summary.inputs == 2
    assert [path for path, _ in summary.failed] == [str(data / "broken.bin")]
    assert len(lines) == 1
    content = json.loads((out / "predictions.json").read_text())
    assert content["complete"]
    assert content["classes"] == ["long", "square"]
    first, second, broken = content["frames"]
    assert first["file"].endswith("001.bin")
    assert len(first["detections"]) == sum(summary.found.values()) - len(second["detections"]) > 0
    assert set(first["detections"][0]) == {"class", "box", "score"}
    assert "detections" not in broken
    assert "error" in broken
    picture = cv2.imread(str(out / first["overlay"]))
    assert picture.shape[1] > 1000 or picture.shape[0] > 1000
    assert (out / first["page"]).read_text().startswith("<!doctype html>")


def test_inputs(scans_dir, tmp_path):
    files = [source.path for source in PointJob.find([scans_dir])]
    assert len(files) == 32
    assert PointJob.find([files[3], scans_dir, files[3]])[0].path == files[3]
    assert len(PointJob.find([scans_dir], exclude=scans_dir / "val")) == 24
    with pytest.raises(DataError, match="no such file"):
        PointJob.find([tmp_path / "none.bin"])
    with pytest.raises(DataError, match="point cloud"):
        PointJob.find([tmp_path])


def test_options_of_images_are_rejected(predictor):
    for option in ({"tile": 640}, {"tta": True}, {"scales": (1, 2)}):
        with pytest.raises(ConfigError, match="not supported for points models"):
            Predictor.from_model(predictor.model, **option)


@pytest.mark.parametrize(
    "option",
    [{"columns": 2}, {"intensity_max": 0.0}],
    ids=lambda o: next(iter(o)),
)
def test_options_out_of_range(option):
    with pytest.raises(ConfigError, match=f"`{next(iter(option))}`"):
        PointOptions(**option)
