"""The page of a point cloud holds what it shows, and asks for nothing else."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("cv2")

from visionattn.errors import DataError
from visionattn.heads.lidar.page import cloud_html, write_cloud_html
from visionattn.heads.lidar.results import PointPrediction


def predict(count=300, name="frame </script><b>1"):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 20, (count, 3)), rng.uniform(0, 1, (count, 1))], 1).astype(np.float32)
    boxes = np.array([[1, 2, 0, 4, 2, 1.5, 0.3], [5, 5, 0, 1, 1, 2, -1]], np.float32)
    scores, labels = np.array([0.9, 0.4], np.float32), np.array([1, 0])
    return PointPrediction(points, ("car", "tram"), boxes, scores, labels, None, boxes[:1], ("car",), name)


def content(page):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


def test_points_and_boxes_are_in_the_page():
    prediction = predict()
    data = content(cloud_html(prediction, score=0.25))
    assert data["name"] == prediction.name
    xyz = np.frombuffer(base64.b64decode(data["xyz"]), "<i2").reshape(-1, 3) * data["unit"]
    assert np.abs(xyz - prediction.points[:, :3]).max() < 0.0051
    shine = np.frombuffer(base64.b64decode(data["intensity"]), np.uint8) / 255
    assert np.abs(shine - prediction.points[:, 3]).max() < 0.003
    assert [b.get("label") for b in data["boxes"]] == [1, 0, None]
    assert data["boxes"][0]["box"] == pytest.approx(prediction.boxes[0].tolist(), abs=1e-4)
    assert data["boxes"][2]["truth"]
    assert data["score"] == 0.25
    assert len(data["colors"]) == 2


def test_page_needs_no_network():
    page = cloud_html(predict())
    assert "__DATA__" not in page
    assert not re.search(r"https?://|src=|href=|@import|fetch\(|XMLHttpRequest", page)


def test_large_and_far_clouds_are_thinned():
    prediction = predict(5000)
    prediction.points[:10, 0] = 400  # beyond what 16 bits reach
    data = content(cloud_html(prediction, max_points=1000))
    assert len(base64.b64decode(data["intensity"])) == 1000
    assert len(base64.b64decode(content(cloud_html(prediction))["intensity"])) == 4990
    empty = content(cloud_html(PointPrediction(np.zeros((0, 4), np.float32), ("car",))))
    assert empty["xyz"] == ""
    assert np.isfinite([empty["low"], empty["high"], empty["reach"]]).all()


def test_file_that_cannot_be_written(tmp_path):
    write_cloud_html(tmp_path / "a.html", predict())
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    with pytest.raises(DataError, match="cannot be written"):
        write_cloud_html(tmp_path / "none" / "a.html", predict())


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to read the script")
def test_script_is_javascript(tmp_path):
    script = re.findall(r"<script>(.*?)</script>", cloud_html(predict()), re.S)[0]
    (tmp_path / "a.js").write_text(script)
    subprocess.run(["node", "--check", str(tmp_path / "a.js")], check=True)
