"""The examples in docs/deployment.md are run, without this package, on a file that is made by hand.

Its detections are one box for each channel, a quarter of the image, with the mean of the channel as score.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures.paths import REPO
from fixtures.programs import save_program
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

NODE = Path(os.environ.get("VISIONATTN_NODE", Path(sys.prefix, "node")), "node_modules")
FORBIDDEN = ("torch", "cv2", "timm", "mmengine", "visionattn")


def example(language: str) -> str:
    text = (REPO / "docs" / "deployment.md").read_text()
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Boxes (0, 0, W/2, H/2) with the mean of red, green and blue as scores."""
    nodes = [
        (("ReduceMean", ["image", "axes"], ["means"]), {"keepdims": 0}),
        (("Div", ["means", "white"], ["scores"]), {}),
        (("Shape", ["image"], ["shape"]), {}),
        (("Gather", ["shape", "sides"], ["size"]), {}),
        (("Cast", ["size"], ["corner"]), {"to": 1}),
        (("Mul", ["corner", "halves"], ["box"]), {}),
        (("Expand", ["box", "rows"], ["boxes"]), {}),
    ]
    weights = {
        "axes": np.array([2, 3]), "white": np.float32(255), "sides": np.array([3, 2, 3, 2]),
        "halves": np.array([0, 0, 0.5, 0.5], np.float32), "rows": np.array([1, 3, 4]), "labels": np.array([[0, 1, 2]]),
    }  # fmt: skip
    outputs = {"boxes": (1, [1, 3, 4]), "scores": (1, ["batch", 3]), "labels": (7, [1, 3])}
    pipeline = [{"type": "AutoContrast"}, {"type": "Resize", "scale": [60, 40], "keep_ratio": True}]
    return save_program(tmp_path_factory.mktemp("onnx") / "a.onnx", nodes, weights, outputs, pipeline=pipeline)


def test_python(program, tmp_path):
    """An image of 160x80 becomes 60x30; its contrast is stretched to 0..255 for each channel."""
    pixels = np.full((80, 160, 3), 100, np.uint8)
    pixels[:, 80:, 0] = 200  # half of red
    pixels[:20, :, 1] = 110  # a quarter of green
    pixels[20:, :, 2] = 50  # three quarters of blue are low
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "detect.py").write_text(example("python"))
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({FORBIDDEN!r})); runpy.run_path('detect.py')"
    command = [sys.executable, "-c", code, str(program), "a.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["red"]  # the others are below the threshold
    assert float(rows[0][1]) == pytest.approx(0.5, abs=0.01)
    assert list(map(float, rows[0][2:])) == [0, 0, 80, 40]
    drawn = np.array(Image.open(tmp_path / "detections.png"))
    assert tuple(drawn[40, 30]) == (255, 0, 0)
    assert tuple(drawn[60, 30]) == tuple(pixels[60, 30])


def test_python_resizes_like_training(program, tmp_path):
    """Bilinear interpolation at the centers of pixels, as in OpenCV."""
    cv2 = pytest.importorskip("cv2")
    scope: dict = {}
    exec(example("python").split("onnxruntime.set_default")[0], scope)
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    for limits in ([106, 74], [26, 19], [53, 37]):
        found = scope["resized"](image, [{"type": "Resize", "scale": limits, "keep_ratio": True}])
        expected = cv2.resize(image, found.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(found - expected.astype(float)).max() <= 1


def test_javascript(program, tmp_path):
    if not shutil.which("node"):
        pytest.skip("needs Node.js")
    if not (NODE / "onnxruntime-web").is_dir():
        pytest.skip("needs the npm package onnxruntime-web: make node")
    (tmp_path / "node_modules").symlink_to(NODE)
    (tmp_path / "detect.mjs").write_text(example("javascript"))
    pixels = np.zeros((20, 40, 4), np.uint8)
    pixels[:, :20, 0] = 255
    pixels[:15, :, 1] = 255
    pixels[..., 2:] = 40
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    (tmp_path / "run.mjs").write_text(
        "import { readFileSync } from 'node:fs'; import { load, detect } from './detect.mjs';"
        "const pixels = { data: readFileSync('pixels'), width: 40, height: 20 };"
        "const session = await load(process.argv[2]);"
        "console.log(JSON.stringify(await detect(session, pixels, ['red', 'green', 'blue'])));"
    )
    done = subprocess.run(["node", "run.mjs", str(program)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert [entry["name"] for entry in found] == ["red", "green"]
    assert [entry["score"] for entry in found] == pytest.approx([0.5, 0.75])
    assert [entry["box"] for entry in found] == [[0, 0, 20, 10]] * 2


def test_a_model_of_the_package(tmp_path):
    """The example prints the detections of the PyTorch model."""
    pytest.importorskip("mmdet")
    pytest.importorskip("onnxscript")
    from visionattn.inference import Predictor
    from visionattn.inference.export import export_model, network_of_run
    from visionattn.zoo import find_model

    model = find_model("digits")
    expected = Predictor.from_pretrained("digits", "cpu")(model.sample)
    height, width = 192, 192  # its sample is a square
    export_model(network_of_run(model.config, model.weights), tmp_path / "a.onnx", (height, width))
    (tmp_path / "detect.py").write_text(example("python"))
    command = [sys.executable, "detect.py", "a.onnx", str(model.sample)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(expected.names)
    np.testing.assert_allclose([float(row[1]) for row in rows], expected.scores, atol=0.01)
    np.testing.assert_allclose([list(map(float, row[2:])) for row in rows], expected.boxes, atol=1)
