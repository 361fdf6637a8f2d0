import dataclasses
import io
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionattn.cli import main
from visionattn.data.coco import check_coco
from visionattn.data.public import PUBLIC_SETS
from visionattn.heads.lidar.data.folders import read_point_folder
from visionattn.heads.lidar.data.object_database import ObjectDatabase
from visionattn.heads.lidar.simulate.rays import Lidar


@pytest.fixture
def bccd_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images as the blood cell repository lays them out, one for each split."""
    stream = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(stream, "JPEG")
    xml = (
        "<annotation><object><name>RBC</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax>"
        "</bndbox></object></annotation>"
    )
    path = tmp_path / "serve" / "bccd.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("train", "val", "test"):
            archive.writestr(f"top/BCCD/JPEGImages/{split}.jpg", stream.getvalue())
            archive.writestr(f"top/BCCD/Annotations/{split}.xml", xml)
            archive.writestr(f"top/BCCD/ImageSets/Main/{split}.txt", split)
    small = dataclasses.replace(PUBLIC_SETS["bccd"], min_images={"train": 1, "val": 1, "test": 1})
    monkeypatch.setitem(PUBLIC_SETS, "bccd", small)
    return path


@pytest.fixture
def base_url(bccd_zip: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(bccd_zip.parent)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_list(capsys: pytest.CaptureFixture):
    assert main(["data"]) == 0
    text = capsys.readouterr().out
    for name in (
        "samples",
        "lidar-samples",
        "objects",
        "kitti",
        "nuscenes",
        "bccd",
        "nuclei",
        "camvid",
        "coco",
        "ade20k",
        "cityscapes",
    ):
        assert f"\n  {name} " in text
    for licence in ("CC BY 2.0", "MIT", "CC0", "CC BY-NC 4.0"):
        assert licence in text


def test_samples(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    from visionattn.cli import data

    few = partial(data.build_digit_scenes, train=2, test=1, size=128)
    monkeypatch.setitem(data._MADE, "samples", few)
    assert main(["data", "samples", "--out", str(tmp_path / "made")]) == 0
    assert str(tmp_path / "made") in capsys.readouterr().out
    assert check_coco(tmp_path / "made/instances_train.json", tmp_path / "made/images/train").images == 2


def test_download(tmp_path: Path, base_url: str, capsys: pytest.CaptureFixture):
    arguments = ["data", "bccd", "--out", str(tmp_path / "out"), "--url", f"{base_url}/bccd.zip"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "1 train, 1 val, 1 test" in text
    assert "MIT" in text
    assert check_coco(tmp_path / "out/instances_val.json", tmp_path / "out/images/val").annotations == 1
    assert main(arguments) == 0
    assert "exists already" in capsys.readouterr().out


def test_lidar_samples(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    from visionattn.cli import data

    few = partial(data.build_lidar_samples, train=2, val=1, lidar=Lidar(beams=8, azimuths=128))
    monkeypatch.setitem(data._MADE, "lidar-samples", few)
    assert main(["data", "lidar-samples", "--out", str(tmp_path / "made")]) == 0
    assert str(tmp_path / "made" / "README.txt") in capsys.readouterr().out
    assert len(read_point_folder(tmp_path / "made" / "train")) == 2
    assert "--url" in _error(capsys, "lidar-samples", "--url", "https://example.org")
    source = ["--source", str(tmp_path / "made"), "--split", "train"]
    assert "--source does not apply" in _error(capsys, "lidar-samples", *source)
    assert main(["data", "objects", *source, "--out", str(tmp_path / "objects.npz")]) == 0
    assert "car, " in capsys.readouterr().out
    assert ObjectDatabase.load(tmp_path / "objects.npz").classes == ("car", "pedestrian", "cyclist")
    assert "objects requires --out" in _error(capsys, "objects", *source)
    out = ["--out", str(tmp_path / "tram.npz")]
    assert "has no object of tram" in _error(capsys, "objects", *source, *out, "--classes", "tram")
    assert not (tmp_path / "tram.npz").exists()


def test_archive(tmp_path: Path, bccd_zip: Path):
    assert main(["data", "bccd", "--out", str(tmp_path / "out"), "--archive", str(bccd_zip)]) == 0
    assert (tmp_path / "out" / "images" / "test" / "test.jpg").is_file()


@pytest.mark.parametrize("name", ["coco", "ade20k", "cityscapes"])
def test_instructions(name: str, capsys: pytest.CaptureFixture):
    assert main(["data", name]) == 0
    assert "data_root=DIR" in capsys.readouterr().out


def _error(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["data", *arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "unexpected" not in lines[0]
    return lines[0]


def test_failures_are_one_line(tmp_path: Path, base_url: str, bccd_zip: Path, capsys: pytest.CaptureFixture):
    out = ["--out", str(tmp_path / "out")]
    missing = _error(capsys, "bccd", *out, "--url", f"{base_url}/none.zip")
    assert f"{base_url}/none.zip" in missing
    assert "404" in missing
    assert "pass it as --archive" in missing
    (bccd_zip.parent / "page.zip").write_text("<html>")
    assert "web page" in _error(capsys, "bccd", *out, "--url", f"{base_url}/page.zip")
    assert "none.zip: the archive does not exist" in _error(
        capsys, "bccd", *out, "--archive", str(tmp_path / "none.zip")
    )
    assert "--archive and --url cannot be combined" in _error(
        capsys, "bccd", *out, "--archive", "a.zip", "--url", base_url
    )
    assert "--url" in _error(capsys, "samples", *out, "--url", base_url)
    assert "--out" in _error(capsys, "coco", *out)
    assert not (tmp_path / "out").exists()


def test_unknown_name(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        main(["data", "imagenet"])
    assert caught.value.code == 2
    assert "bccd" in capsys.readouterr().err


def test_cityscapes_is_converted_in_place(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert "gtFine_trainvaltest.zip" in _error(capsys, "cityscapes", "--out", str(tmp_path))
