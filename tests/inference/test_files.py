import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from visionattn.errors import CheckpointError, DataError
from visionattn.inference import Predictor
from visionattn.inference.files import plan_files, predict_files
from visionattn.inference.video import VideoReader, VideoWriter
from visionattn.io.inputs import find_inputs


def go(predictor: Predictor, inputs: list, out: Path):
    done, errors = [], []
    plan = plan_files(find_inputs(inputs, exclude=out), out)
    summary = predict_files(predictor, plan, {"config": "c.py"}, done.append, errors.append)
    return summary, json.loads((out / "predictions.json").read_text()), sum(done), errors


def test_images(make_model, painted, save_picture, tmp_path):
    shots = tmp_path / "shots"
    save_picture(shots / "a" / "x.png", painted(40, 60, ("red", 5, 6, 25, 30)))
    save_picture(shots / "b" / "x.png", painted(40, 60))
    save_picture(shots / "b" / "x.bmp", painted(50, 70, ("blue", 0, 0, 10, 10), ("red", 20, 20, 30, 30)))
    (shots / "broken.jpg").write_bytes(b"no")
    predictor = Predictor.from_model(make_model(with_masks=True), batch_size=3)
    summary, content, done, errors = go(predictor, [shots], tmp_path / "out")

    records = content["images"]
    assert content["complete"] is True
    assert content["model"] == {"config": "c.py"}
    assert content["categories"] == [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    assert content["settings"]["score_thr"] == 0.3
    assert [Path(r["file"]).relative_to(shots).as_posix() for r in records] == [
        "broken.jpg",
        "a/x.png",
        "b/x.bmp",
        "b/x.png",
    ]
    assert [len(r.get("detections", ())) for r in records] == [0, 1, 2, 0]
    assert "not an image" in records[0]["error"]
    assert (records[1]["width"], records[1]["height"], records[1]["image_id"]) == (60, 40, 1)
    (detection,) = records[1]["detections"]
    assert detection["bbox"] == [5, 6, 20, 24]
    assert detection["image_id"] == 1
    assert coco_mask.decode(detection["segmentation"])[6:30, 5:25].all()
    overlays = {r["overlay"] for r in records[1:]}
    assert overlays == {p.name for p in (tmp_path / "out").glob("*.png")}
    assert len(overlays) == 3
    drawn = np.asarray(Image.open(tmp_path / "out" / records[1]["overlay"]))
    assert drawn.shape == (40, 60, 3)

    assert (summary.inputs, summary.frames, dict(summary.found)) == (3, 0, {"red": 2, "blue": 1})
    assert [str(shots / "broken.jpg")] == [file for file, _ in summary.failed]
    assert done == 4
    assert len(errors) == 1
    assert summary.seconds > 0


def test_results_do_not_depend_on_the_batch(make_model, painted, save_picture, tmp_path):
    for index in range(5):
        save_picture(tmp_path / "in" / f"{index}.png", painted(40, 50 + index % 2, ("red", index, 2, 20, 30)))
    found = []
    for batch_size in (1, 3, 8):
        out = tmp_path / f"out{batch_size}"
        _, content, _, _ = go(Predictor.from_model(make_model(), batch_size=batch_size), [tmp_path / "in"], out)
        found.append([r["detections"] for r in content["images"]])
    assert found[0] == found[1] == found[2]


def test_reading_ahead_is_bounded_by_pixels(make_model, painted, save_picture, tmp_path, monkeypatch):
    monkeypatch.setattr("visionattn.inference.file_run.BATCH_PIXELS", 40 * 50 * 2)
    for index in range(5):
        save_picture(tmp_path / "in" / f"{index}.png", painted(40, 50))
    model = make_model()
    go(Predictor.from_model(model, batch_size=8), [tmp_path / "in"], tmp_path / "out")
    assert [len(batch) for batch in model.batches] == [2, 2, 1]


def test_semantic_maps(make_model, painted, save_picture, tmp_path):
    save_picture(tmp_path / "in" / "x.png", painted(40, 50, ("red", 0, 0, 10, 20), ("blue", 10, 0, 20, 40)))
    predictor = Predictor.from_model(make_model(job="semantic"))
    summary, content, _, _ = go(predictor, [tmp_path / "in"], tmp_path / "out")
    (record,) = content["images"]
    assert record["pixel_shares"] == {"red": 0.1, "blue": 0.2}
    assert "detections" not in record
    stored = np.asarray(Image.open(tmp_path / "out" / record["map"]))
    assert [(stored == value).sum() for value in (0, 1, 255)] == [200, 400, 1400]
    assert dict(summary.found) == {"red": 0.1, "blue": 0.2}


def test_panoptic_files(make_model, painted, save_picture, tmp_path):
    """In COCO's panoptic format: colours that code ids, and what the ids are."""

    class Panoptic(type(make_model())):
        def predict(self, images):
            results = super().predict(images)
            for result, image in zip(results, images, strict=True):
                result["semantic"] = np.where((image == (0, 0, 255)).all(axis=2), 0, 2)
            return results

    image = painted(40, 50, ("red", 0, 0, 10, 20), ("red", 20, 0, 30, 10), ("blue", 10, 0, 20, 40))
    save_picture(tmp_path / "in" / "x.png", image)
    predictor = Predictor.from_model(Panoptic(job="panoptic"))
    _, content, _, _ = go(predictor, [tmp_path / "in"], tmp_path / "out")
    (record,) = content["images"]
    assert len(record["detections"]) == 3
    ids = np.asarray(Image.open(tmp_path / "out" / record["panoptic"])).astype(int) @ [1, 256, 65536]
    for segment in record["segments_info"]:
        assert (ids == segment["id"]).sum() == segment["area"]
    assert sorted((s["category_id"], s["area"]) for s in record["segments_info"]) == [(1, 100), (1, 200), (2, 400)]
    assert (ids == 0).sum() == 40 * 50 - 700


def test_video_between_images(make_model, painted, save_picture, tmp_path):
    shots = tmp_path / "in"
    save_picture(shots / "a.png", painted(40, 50))
    save_picture(shots / "z.png", painted(40, 50))
    with VideoWriter(shots / "clip.mp4", 64, 48, 5) as writer:
        for _ in range(11):
            writer.write(painted(48, 64))
    summary, content, done, errors = go(Predictor.from_model(make_model(), batch_size=4), [shots], tmp_path / "out")
    assert [Path(r["file"]).name for r in content["images"]] == ["a.png", "clip.mp4", "z.png"]
    record = content["images"][1]
    assert (record["frames"], record["fps"], record["width"], record["height"]) == (11, 5, 64, 48)
    frames = json.loads((tmp_path / "out" / record["frames_file"]).read_text())
    assert [f["frame"] for f in frames["frames"]] == list(range(11))
    assert frames["frames"][5]["time"] == 1
    assert frames["complete"] is True
    with VideoReader(tmp_path / "out" / record["overlay"]) as reader:
        assert len(list(reader)) == 11
    assert (summary.inputs, summary.videos, summary.frames, done, errors) == (2, 1, 11, 13, [])


def test_damaged_video_keeps_what_could_be_decoded(make_model, painted, tmp_path):
    path = tmp_path / "v.mp4"
    rng = np.random.default_rng(0)
    with VideoWriter(path, 64, 48, 5) as writer:
        for _ in range(60):
            writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 4
    data[start : start + len(data) // 3] = bytes(len(data) // 3)
    path.write_bytes(data)
    (tmp_path / "text.mp4").write_text("hello")
    inputs = [path, tmp_path / "text.mp4"]
    summary, content, _, errors = go(Predictor.from_model(make_model(), batch_size=8), inputs, tmp_path / "out")
    record, other = content["images"]
    assert "of 60 frames" in record["error"]
    assert 0 < record["frames"] < 57
    frames = json.loads((tmp_path / "out" / record["frames_file"]).read_text())["frames"]
    assert len(frames) == record["frames"]
    assert "not a video" in other["error"]
    assert len(errors) == len(summary.failed) == 2


def test_an_input_that_the_model_cannot_take_does_not_end_the_run(make_model, painted, save_picture, tmp_path):
    class Picky(type(make_model())):
        def predict(self, images):
            if any(min(image.shape[:2]) < 8 for image in images):
                raise RuntimeError("Calculated padded input size per channel is too small")
            return super().predict(images)

    shots = tmp_path / "in"
    for name, size in (("a", (40, 50)), ("b", (1, 50)), ("c", (40, 50))):
        save_picture(shots / f"{name}.png", painted(*size, ("red", 5, 0, 25, 30)))
    with VideoWriter(shots / "d.mp4", 64, 4, 5) as writer:
        writer.write(painted(4, 64))
    summary, content, _, errors = go(Predictor.from_model(Picky(), batch_size=8), [shots], tmp_path / "out")
    assert content["complete"] is True
    good, bad, other, video = content["images"]
    assert len(good["detections"]) == len(other["detections"]) == 1
    assert "b.png: prediction failed (RuntimeError: Calculated padded" in bad["error"]
    assert "d.mp4: prediction failed" in video["error"]
    assert "overlay" not in video
    assert "frames_file" not in video, "there is no frame"
    assert (summary.inputs, len(summary.failed), len(errors)) == (2, 2, 2)


def test_errors_of_the_model_end_the_run(make_model, painted, save_picture, tmp_path):
    class Diverged(type(make_model())):
        def predict(self, images):
            results = super().predict(images)
            results[0]["scores"][:] = np.nan
            return results

    save_picture(tmp_path / "in" / "a.png", painted(40, 50, ("red", 5, 0, 25, 30)))
    with pytest.raises(CheckpointError, match="NaN"):
        go(Predictor.from_model(Diverged()), [tmp_path / "in"], tmp_path / "out")


def test_files_in_unsupported_formats_are_counted(tmp_path, painted, save_picture, monkeypatch):
    monkeypatch.setattr("visionattn.io.inputs.known_formats", lambda: ("JPEG", "PNG"))
    save_picture(tmp_path / "in" / "a.png", painted(40, 50))
    for name in ("IMG_1.HEIC", "deep/IMG_2.heif"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"ftypheic")
    with pytest.warns(
        UserWarning, match=r"skipping 2 files in unsupported formats \(.heic .heif\), such as .*IMG_1.HEIC"
    ):
        assert [source.path.name for source in find_inputs([tmp_path / "in"])] == ["a.png"]


def test_inputs_are_never_overwritten(painted, save_picture, tmp_path):
    path = save_picture(tmp_path / "x.png", painted(40, 50))
    with pytest.raises(DataError, match="would overwrite the input"):
        plan_files(find_inputs([path]), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be created"):
        plan_files(find_inputs([path]), tmp_path / "file" / "out")


def test_interrupted_run_keeps_its_records(make_model, painted, save_picture, tmp_path):
    class Interrupted(type(make_model())):
        def predict(self, images):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().predict(images)

    for index in range(5):
        save_picture(tmp_path / "in" / f"{index}.png", painted(40, 50))
    with pytest.raises(KeyboardInterrupt):
        go(Predictor.from_model(Interrupted(), batch_size=1), [tmp_path / "in"], tmp_path / "out")
    partial = json.loads((tmp_path / "out" / "predictions.partial.json").read_text())
    assert len(partial["images"]) == 2
    assert partial["complete"] is False
    assert sorted(os.listdir(tmp_path / "out")) == ["0.png", "1.png", "predictions.partial.json"]
    (tmp_path / "out" / ".x.999999999.tmp.png").write_text("of a killed process")
    (tmp_path / "out" / f".y.{os.getppid()}.tmp.png").write_text("of a running process")
    go(Predictor.from_model(make_model()), [tmp_path / "in"], tmp_path / "out")
    names = set(os.listdir(tmp_path / "out"))
    files = {"predictions.json", "report.html", "results.bbox.json"}
    assert names == {f".y.{os.getppid()}.tmp.png", *(f"{i}.png" for i in range(5)), *files}


def test_one_input_without_a_result_does_not_end_the_run(make_model, painted, save_picture, tmp_path, monkeypatch):
    """A prediction of NaN, a record that JSON cannot hold, and one that cannot be drawn; their old overlays go."""

    class Odd(type(make_model())):
        def predict(self, images):
            results = super().predict(images)
            for image, result in zip(images, results, strict=True):
                if image.shape[0] == 41:
                    result["scores"][:] = np.nan
            return results

    def record(self, prediction, index):
        return {"detections": [], "size": float("nan") if prediction.image_size[0] == 42 else 1.0}

    def draw(self, item, prediction):
        if item.shape[0] == 43:
            raise ZeroDivisionError("division by zero")
        return item

    predictor = Predictor.from_model(Odd())
    monkeypatch.setattr(type(predictor.job), "record", record)
    monkeypatch.setattr(type(predictor.job), "draw", draw)
    for index, height in enumerate((40, 41, 42, 43, 44)):
        save_picture(tmp_path / "in" / f"{index}.png", painted(height, 50, ("red", 5, 0, 25, 30)))
        save_picture(tmp_path / "out" / f"{index}.png", painted(height, 50))
    summary, _, _, errors = go(predictor, [tmp_path / "in"], tmp_path / "out")
    assert (summary.inputs, len(errors)) == (2, 3)
    for error, words in zip(errors, ("NaN", "JSON", "ZeroDivisionError"), strict=True):
        assert words in error
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"0.png", "4.png"}


def test_video_without_frames_leaves_no_files(rectangle_model, tmp_path, capfd):
    writer = VideoWriter(tmp_path / "v.mp4", 64, 48, 10)
    with writer:
        pass
    write_empty_avi(tmp_path / "w.avi")
    with VideoWriter(tmp_path / "ok.webm", 64, 48, 10) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    capfd.readouterr()
    summary, content, _, errors = go(Predictor.from_model(rectangle_model), [tmp_path], tmp_path / "out")
    assert capfd.readouterr().err == ""
    assert summary.videos == 1
    assert len(errors) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "ok.webm", "ok.frames.json", "predictions.json", "report.html",
    }  # fmt: skip
    for record in content["images"]:
        assert ("error" in record) != ("frames_file" in record)


def write_empty_avi(path: Path) -> None:
    import cv2

    cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48)).release()
