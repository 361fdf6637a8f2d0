import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from visionattn.errors import DataError
from visionattn.inference.writing import JsonRecords, output_names, write_maps, write_png
from visionattn.io.inputs import Source


def names(*paths: str) -> list[str]:
    return output_names([Source(Path("/data") / path) for path in paths])


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["x.jpg", "y.jpg"], ["x", "y"]),
        (["a/x.jpg", "b/y.jpg"], ["x", "y"]),
        (["a/x.jpg", "b/x.jpg"], ["a_x", "b_x"]),
        (["x.jpg", "x.png", "y.png"], ["x_jpg", "x_png", "y"]),
        (["a/x.jpg", "a/x.png", "b/x.jpg"], ["a_x", "x_png", "b_x"]),
        (["1/a/x.jpg", "2/a/x.jpg", "2/b/x.jpg"], ["1_a_x", "2_a_x", "b_x"]),
        (["X.jpg", "a/x.jpg"], ["data_X", "a_x"]),
        ([], []),
    ],
)
def test_names(paths, expected):
    assert names(*paths) == expected


def test_names_that_imitate_the_way_out_still_differ():
    found = names("a/x.jpg", "a_x.jpg", "b/x.jpg", "x.jpg", "x_jpg.png", "a/b_x.png", "a_b/x.png", "a/b/x.png")
    assert len({name.casefold() for name in found}) == 8
    assert not any("/" in name for name in found)


def test_names_of_many_files_with_one_name():
    found = names(*(f"run{i // 10}/take{i % 10}/frame.jpg" for i in range(200)))
    assert len(set(found)) == 200
    assert found[0] == "run0_take0_frame"


def test_png_holds_the_picture_and_16_bits(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "ü 1.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "ü 1.png"))[..., ::-1], image)
    write_png(tmp_path / "m.png", np.array([[0, 300]], np.uint16))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), [[0, 300]])
    with pytest.raises(DataError, match="cannot be written"):
        write_png(tmp_path / "m.png" / "x.png", image)  # a file is in the place of the folder


def test_json_grows_and_appears_when_complete(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("old")
    with JsonRecords(path, {"a": [1], "b": "ü"}, "images") as records:
        records.add({"x": 1})
        records.add({"y": [1.5, None]})
        assert path.read_text() == "old"
    assert json.loads(path.read_text()) == {
        "a": [1],
        "b": "ü",
        "images": [{"x": 1}, {"y": [1.5, None]}],
        "complete": True,
    }
    assert os.listdir(tmp_path) == ["p.json"]


def test_json_without_records(tmp_path):
    with JsonRecords(tmp_path / "p.json", {}, "images"):
        pass
    assert json.loads((tmp_path / "p.json").read_text()) == {"images": [], "complete": True}


def test_interrupted_json_leaves_the_old_file_and_what_there_is(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("old")
    records = JsonRecords(path, {}, "images").__enter__()
    records.add({"x": 1})
    records.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert path.read_text() == "old"
    partial = json.loads((tmp_path / "p.partial.json").read_text())
    assert partial == {"images": [{"x": 1}], "complete": False}
    assert sorted(os.listdir(tmp_path)) == ["p.json", "p.partial.json"]


def test_json_refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="JSON"), JsonRecords(tmp_path / "p.json", {}, "images") as records:
        records.add({"x": float("nan")})


def test_json_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be written"), JsonRecords(tmp_path / "no" / "p.json", {}, "x"):
        pass


def test_maps_have_one_meaning_for_all_jobs(tmp_path):
    maps = {
        "map": np.array([[0, 255]]),
        "heatmap": np.array([[0, 0.25, 1.0]], np.float32),
        "mask": np.array([[True, False]]),
        "panoptic": np.array([[[1, 2, 3]]], np.uint8),
    }
    written = write_maps(tmp_path, "x", maps)
    assert written == {
        "map": "maps/x.png", "heatmap": "heatmaps/x.png", "mask": "masks/x.png", "panoptic": "panoptic/x.png",
    }  # fmt: skip
    stored = {kind: cv2.imread(str(tmp_path / path), cv2.IMREAD_UNCHANGED) for kind, path in written.items()}
    assert stored["heatmap"].tolist() == [[0, 16384, 65535]]
    assert stored["mask"].tolist() == [[255, 0]]
    assert stored["map"].dtype == np.uint8
    assert stored["map"].tolist() == [[0, 255]]
    assert stored["panoptic"].tolist() == [[[1, 2, 3]]]
    write_maps(tmp_path, "many", {"map": np.array([[0, 256]])})
    assert cv2.imread(str(tmp_path / "maps/many.png"), cv2.IMREAD_UNCHANGED).tolist() == [[0, 256]]
