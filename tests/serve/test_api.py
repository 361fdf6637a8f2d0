"""Requests and answers of the server."""

import base64
import io
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from fixtures.rectangles import RectangleModel, paint
from PIL import Image
from pycocotools import mask as coco_mask

from visionattn.errors import CheckpointError
from visionattn.inference import Predictor
from visionattn.inference.draw import class_color
from visionattn.inference.explain.attention import record_attention
from visionattn.serve.app import create_app
from visionattn.serve.models import Limits, load_models

IMAGE = paint(60, 80, ("red", 5, 6, 25, 30), ("blue", 40, 8, 60, 20))
BOXES = {(1, 5, 6, 20, 24), (2, 40, 8, 20, 12)}  # category, x, y, width, height


def found(record: dict) -> set[tuple]:
    return {(entry["category_id"], *map(int, entry["bbox"])) for entry in record["detections"]}


def decoded(url: str) -> np.ndarray:
    kind, _, content = url.partition(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def form(*contents: bytes, names: tuple[str, ...] = ()) -> list:
    names = names or tuple(f"{number}.png" for number in range(len(contents)))
    return [("files", (name, content)) for name, content in zip(names, contents, strict=True)]


def test_answers_are_those_of_the_predictor(serve, as_png):
    client = serve({"boxes": RectangleModel(with_masks=True)})
    other = paint(50, 50, ("blue", 0, 0, 10, 10))
    answer = client.post("/predict", files=form(as_png(IMAGE), as_png(other), names=("a.png", "C:\\x\\b.png")))
    assert answer.status_code == 200
    content = answer.json()
    assert content["model"] == {"name": "boxes", "task": "detection", "device": "cpu"}
    assert content["categories"] == [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    assert content["settings"]["score_thr"] == 0.3
    first, second = content["images"]
    assert (first["image_id"], first["file"], first["width"], first["height"]) == (0, "a.png", 80, 60)
    assert (second["image_id"], second["file"], second["width"], second["height"]) == (1, "b.png", 50, 50)
    assert found(first) == BOXES
    assert found(second) == {(2, 0, 0, 10, 10)}
    expected = Predictor.from_model(RectangleModel(with_masks=True))(IMAGE).to_coco(0)
    assert first["detections"] == expected
    assert coco_mask.decode(first["detections"][0]["segmentation"]).sum() in (480, 240)
    assert first["lines"] == ["blue 1, red 1"]
    assert not {"overlay", "preview", "view", "map"} & first.keys()


def test_base64_and_forms_give_the_same(serve, as_png):
    client, code = serve({"boxes": RectangleModel()}), base64.b64encode(as_png(IMAGE)).decode()
    by_form = client.post("/predict", files=form(as_png(IMAGE)), data={"score_thr": "0.99"})
    entries = [code, {"name": "0.png", "data": code}, {"data": f"data:image/png;base64,{code}"}]
    by_json = client.post("/predict", json={"images": entries, "score_thr": 0.99})
    assert by_json.status_code == 200
    records = by_json.json()["images"]
    assert [record["file"] for record in records] == ["file 1", "0.png", "file 3"]
    assert by_form.json()["settings"] == by_json.json()["settings"]
    scores = [sorted(entry["score"] for entry in record["detections"]) for record in records]
    assert scores == [[pytest.approx(1 / 1.024, abs=1e-5)]] * 3 or scores == [[]] * 3
    assert scores[0] == sorted(entry["score"] for entry in by_form.json()["images"][0]["detections"])


def test_maps_overlays_and_previews(serve, as_png):
    client = serve({"map": RectangleModel(job="semantic")})
    options = {"overlay": "true", "preview": "1", "opacity": "1"}
    record = client.post("/predict", files=form(as_png(IMAGE)), data=options).json()["images"][0]
    values, counts = np.unique(decoded(record["map"]), return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {0: 480, 1: 240, 255: 60 * 80 - 720}
    drawn = Predictor.from_model(RectangleModel(job="semantic"), opacity=1.0)(IMAGE).draw()
    np.testing.assert_array_equal(decoded(record["overlay"]), drawn[..., ::-1])
    assert np.abs(decoded(record["preview"]).astype(int) - IMAGE[..., ::-1])[:, 65:].mean() < 2
    without = client.post("/predict", files=form(as_png(IMAGE)), data={"maps": "false"}).json()["images"][0]
    assert not {"map", "overlay", "preview"} & without.keys()


def test_options_of_a_request_change_only_its_answer(serve, as_png):
    model = RectangleModel()
    client, image = (
        serve({"boxes": model}),
        as_png(paint(300, 300, ("red", 0, 0, 200, 200), ("blue", 250, 250, 260, 260))),
    )

    def count(**options) -> int:
        answer = client.post("/predict", files=form(image), data=options)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["images"][0]["detections"])

    assert count() == 1  # the scores are 0.2 and 0.99
    assert count(score_thr="0.1") == 2
    assert count(score_thr='{"blue": 1, "red": 0.1}') == 1
    assert count() == 1
    model.batches.clear()
    assert count(tile="150", overlap="20", tta="true", scales="1 0.5") >= 1
    assert {max(shape) for batch in model.batches for shape in batch} <= {140, 150}
    assert count(tile="auto") == 1


def test_two_models(serve, as_png):
    client = serve({"boxes": RectangleModel(), "map": RectangleModel(job="semantic")})
    listed = client.get("/models").json()
    assert [(model["name"], model["task"], model["input"]) for model in listed] == [
        ("boxes", "detection", "image"), ("map", "semantic", "image")
    ]  # fmt: skip
    assert listed[0]["colors"] == [list(class_color(0)[::-1]), list(class_color(1)[::-1])]
    assert "score_thr" in listed[0]["options"]
    assert "score_thr" not in listed[1]["options"]
    assert "detections" in client.post("/predict", files=form(as_png(IMAGE))).json()["images"][0]
    assert "map" in client.post("/predict", files=form(as_png(IMAGE)), data={"model": "map"}).json()["images"][0]


def test_a_damaged_file_does_not_harm_the_others(serve, as_png):
    client, good = serve({"boxes": RectangleModel()}), as_png(IMAGE)
    files = form(good, b"no image", good[:60], good)
    records = client.post("/predict", files=files).json()["images"]
    assert [found(record) if "error" not in record else None for record in records] == [BOXES, None, None, BOXES]
    assert records[1]["error"].startswith("1.png: not an image")
    assert records[2]["error"].startswith("2.png: ")
    assert "/tmp" not in json.dumps(records)


def bad(**options) -> dict:
    return {"files": form(b"x"), "data": options}


FORM = "multipart/form-data"
LARGE = Image.new("L", (400, 300))


def jpeg(image: Image.Image = LARGE) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        ({"content": b"x", "headers": {"content-type": "image/png"}}, 415, "send multipart/form-data"),
        ({"content": b"x"}, 415, "not nothing"),
        ({"files": form(b"no image")}, 415, "0.png: not an image"),
        ({"files": form(b"")}, 422, "the file is empty"),
        ({"files": form(jpeg(LARGE.resize((99, 99)))[:-200])}, 422, "damaged or truncated"),
        ({"files": form(jpeg())}, 413, "more than the limit `max_pixels`"),
        ({"files": form(b"x", b"x", b"x", b"x")}, 413, "more than 3 files"),
        ({"json": {"images": ["eA=="] * 4}}, 413, "more than 3 files"),
        ({"files": form(b"y" * 40000)}, 413, "the request is larger than the limit of"),
        ({"data": {"model": "boxes"}, "files": [("other", (None, "x"))]}, 422, "no file given"),
        ({"files": [("files", (None, "/etc/passwd"))]}, 422, "must be a file"),
        ({"content": b"no form", "headers": {"content-type": f"{FORM}; boundary=x"}}, 422, "malformed"),
        ({"content": b"--x", "headers": {"content-type": FORM}}, 422, "malformed"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "not valid JSON"),
        ({"content": b"[" * 20000, "headers": {"content-type": "application/json"}}, 422, "not valid JSON"),
        ({"content": b"\xff\xfe{", "headers": {"content-type": "application/json"}}, 422, "not valid JSON"),
        ({"json": [1]}, 422, "must be an object"),
        ({"content": b"null", "headers": {"content-type": "application/json"}}, 422, 'list "images", got null'),
        ({"json": {"images": [{"name": 7, "data": "eA=="}]}}, 422, "images.0.name must be text"),
        ({"json": {"images": "x"}}, 422, "must be an object"),
        ({"json": {"images": []}}, 422, "no file given"),
        ({"json": {"images": [7]}}, 422, "images.0 must be a base64 text"),
        ({"json": {"images": ["%%"]}}, 422, "images.0 is not valid base64"),
        ({"json": {"images": [{"path": "/etc/passwd"}]}}, 422, "images.0 must be a base64 text"),
        (bad(model="none"), 422, "`model` must be one of boxes, got 'none'"),
        (bad(tta="perhaps"), 422, "`tta`: input should be a valid boolean"),
        (bad(score_thr="/etc/passwd.json"), 422, "`score_thr`"),
        (bad(score_thr="best"), 422, "`score_thr`"),
        (bad(score_thr="nan"), 422, "`score_thr` must be in [0, 1]"),
        (bad(score_thr="{"), 422, "`score_thr`: is not valid JSON"),
        (bad(score_thr='{"green": 0.5}'), 422, "`score_thr` has a threshold for 'green'"),
        (bad(tile="8"), 422, "`tile` must be at least 128"),
        (bad(tile="200", overlap="199"), 422, "`overlap` must be from 0 to 100 pixels"),
        (bad(scales="1 1 1 1 1 1"), 422, "`scales` must be at most 5"),
        (bad(scales="inf"), 422, "`scales` must be at most"),
        (bad(line_width="900"), 422, "`line_width` must be in [1, 100]"),
        (bad(max_pixels="9999999999"), 422, "`max_pixels` is not an option of requests"),
        (bad(batch_size="9999"), 422, "`batch_size` is not an option"),
        (bad(save_txt="1"), 422, "`save_txt` is not an option"),
    ],
)  # fmt: skip
def test_errors(serve, request_, status, text):
    client = serve({"boxes": RectangleModel()}, Limits(max_bytes=30000, max_pixels=100_000, max_files=3))
    answer = client.post("/predict", **request_)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert list(answer.json()) == ["error"]
    assert text in answer.json()["error"]
    assert "/tmp" not in answer.text
    assert client.get("/health").json()["waiting"] == 0


def test_a_body_without_a_length_is_limited_too(serve):
    client = serve({"boxes": RectangleModel()}, Limits(max_bytes=30000))
    for kind in ("application/json", "multipart/form-data; boundary=x"):
        chunks = (b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\n", *[b"z" * 10000] * 5)
        answer = client.post("/predict", content=iter(chunks), headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]) == (
            413, "the request is larger than the limit of 0.0286 MiB"
        )  # fmt: skip


def test_no_file_of_the_server_is_read(serve, as_png, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(as_png(IMAGE))
    client = serve({"boxes": RectangleModel()})
    for name in (str(secret), f"../../../..{secret}", f"file://{secret}"):
        answer = client.post("/predict", files=form(b"other content", names=(name,)))
        assert answer.status_code == 415
        assert "secret.png: not an image" in answer.json()["error"]
        assert client.post("/predict", json={"images": [name]}).status_code == 422
        assert client.get(f"/samples/{name}").status_code == 404
        assert client.get(f"/page/{name}").status_code == 404
    assert client.get("/page/..%2fapp.py").status_code == 404


class FailingModel(RectangleModel):
    """Fails for images that are less than 40 pixels high, and for all with a bright corner."""

    def predict(self, images, scale=1.0):
        if any(len(image) < 40 for image in images):
            raise RuntimeError("Kernel size can't be greater than actual input size")
        if any(image[0, 0, 0] == 255 for image in images):
            raise CheckpointError("the predictions are NaN")
        if any(image[0, 0, 0] == 1 for image in images):
            raise RuntimeError("OpenCV /io/opencv/src/resize.cpp:42: error: (-215) x > 0")
        return super().predict(images, scale)


def test_failures_of_the_model(serve, as_png):
    client = serve({"boxes": FailingModel()})
    small, white = as_png(paint(20, 80)), as_png(np.full((60, 80, 3), 255, np.uint8))
    answer = client.post("/predict", files=form(small))
    assert (answer.status_code, answer.json()["error"]) == (
        500, "0.png: prediction failed (Kernel size can't be greater than actual input size)"
    )  # fmt: skip
    assert client.post("/predict", files=form(white)).json() == {"error": "the predictions are NaN"}
    dark = client.post("/predict", files=form(as_png(np.full((60, 80, 3), 1, np.uint8))))
    assert (dark.status_code, dark.json()["error"]) == (500, "0.png: prediction failed (OpenCV error: (-215) x > 0)")
    records = client.post("/predict", files=form(as_png(IMAGE), small, as_png(IMAGE))).json()["images"]
    assert [found(record) if "error" not in record else None for record in records] == [BOXES, None, BOXES]


def test_views_are_kept_under_names_that_cannot_be_guessed(serve, as_png, monkeypatch):
    from visionattn.heads.detection.job import DetectionJob

    pages = iter(range(100))
    monkeypatch.setattr(DetectionJob, "view", lambda self, prediction: f"<script>{next(pages)}</script>")
    client = serve({"boxes": RectangleModel()})
    addresses = []
    for _ in range(9):
        answer = client.post("/predict", files=form(as_png(IMAGE)), data={"view": "1"})
        addresses.append(answer.json()["images"][0]["view"])
    assert len(set(addresses)) == 9
    assert all(len(address) > 20 for address in addresses)
    assert client.get(addresses[0]).status_code == 404
    page = client.get(addresses[-1])
    assert page.text == "<script>8</script>"
    assert "sandbox allow-scripts;" in page.headers["content-security-policy"]
    assert "view" not in client.post("/predict", files=form(as_png(IMAGE))).json()["images"][0]


def test_attention(serve, as_png, attention_model):
    model = attention_model
    client, image = serve({"boxes": model}), paint(64, 64, ("red", 10, 10, 40, 40))
    answer = client.post("/attention", files=form(as_png(image)), data={"x": 50, "y": 20})
    assert answer.status_code == 200, answer.text
    layers = answer.json()["layers"]
    assert [(layer["grid"], layer["query"], len(layer["maps"])) for layer in layers] == [([4, 4], [1, 3], 3)] * 2
    calls = record_attention(model.model.backbone, model.image_tensor(image))
    for layer, call in zip(layers, calls, strict=True):
        weights = call.weights(1, 3).numpy()
        assert layer["maxima"] == pytest.approx(weights.max(axis=(1, 2)).tolist(), abs=1e-5)
        for url, expected in zip(layer["maps"], weights, strict=True):
            np.testing.assert_allclose(decoded(url) / 255, expected / expected.max(), atol=0.003)
    (second,) = client.post("/attention", files=form(as_png(image)), data={"x": 0, "y": 63.5, "layers": "1"}).json()[
        "layers"
    ]
    assert (second["index"], second["query"]) == (1, [3, 0])
    twice = client.post("/attention", files=form(as_png(image)), data={"x": 0, "y": 63.5, "layers": "1 1"}).json()
    assert [layer["index"] for layer in twice["layers"]] == [1]
    assert model.forward_passes == 2, "the forward pass of an image is kept"


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        ({"x": 1}, 422, "`y`: field required"),
        ({"x": 64, "y": 0}, 422, "`x` and `y` must be inside the image of 64x64"),
        ({"x": "nan", "y": 0}, 422, "must be inside"),
        ({"x": 1, "y": 1, "layers": "2"}, 422, "`layers` must be in [0, 1]"),
        ({"x": 1, "y": 1, "layers": "0,1,0"}, 422, "`layers` must be at most 2 indices, got 3"),
        ({"x": 1, "y": 1, "layers": "1," * 20000}, 422, "`layers`: list should have at most 1000 items"),
        ({"x": 1, "y": 1, "tile": "auto"}, 422, "`tile`: extra inputs are not permitted"),
        ({"x": 1, "y": 1, "model": "plain"}, 422, "the model plain does not support attention maps"),
    ],
)
def test_errors_of_attention(serve, as_png, attention_model, data, status, text):
    client = serve({"boxes": attention_model, "plain": RectangleModel()})
    answer = client.post("/attention", files=form(as_png(paint(64, 64))), data=data)
    assert answer.status_code == status
    assert text in answer.json()["error"]


def test_the_description_is_served_without_a_page_from_elsewhere(serve):
    client = serve({"boxes": RectangleModel()})
    document = client.get("/openapi.json").json()
    assert {"/predict", "/attention", "/models", "/health"} <= document["paths"].keys()
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"files", "model", "score_thr", "tile"} <= body["multipart/form-data"]["schema"]["properties"].keys()
    assert {"401", "413", "415", "422", "503", "504"} <= document["paths"]["/predict"]["post"]["responses"].keys()
    assert {client.get(path).status_code for path in ("/docs", "/redoc")} == {404}


def test_point_clouds(pillars_run, scans_dir):
    """A trained LiDAR model."""
    limits = Limits()
    models = load_models([], [pillars_run], "cpu", limits)
    scan = sorted((scans_dir / "val").glob("*.bin"))[0]
    with TestClient(create_app(models, limits), base_url="http://localhost") as client:
        (listed,) = client.get("/models").json()
        assert (listed["input"], listed["records"], listed["attention"]) == ("frame", "frames", False)
        assert {"columns", "intensity_max"} <= set(listed["options"])
        assert "html" not in listed["options"]
        files = {"files": (scan.name, scan.read_bytes())}
        answer = client.post("/predict", files=files, data={"view": "true", "columns": "4"})
        (record,) = answer.json()["frames"]
        assert record["frame_id"] == 0
        assert record["points"] > 500
        expected = models[listed["name"]].predictor(scan)
        assert [entry["box"] for entry in record["detections"]] == [entry["box"] for entry in expected.to_records()]
        view = client.get(record["view"])
        assert "cloud" in view.text
        wrong = client.post("/predict", files={"files": ("x.png", b"x")})
        assert (wrong.status_code, wrong.json()["error"]) == (
            415, "x.png: unknown point cloud format; supported are .bin, .pcd, .npy, .npz"
        )  # fmt: skip
        assert client.post("/attention", files=files, data={"x": 1, "y": 1}).status_code == 422
