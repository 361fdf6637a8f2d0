import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from visionattn.data.coco import check_coco
from visionattn.data.public import INSTRUCTIONS, PUBLIC_SETS, fetch_public
from visionattn.errors import DataError


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known sets, content with the few images of the test archives."""
    for name, known in list(PUBLIC_SETS.items()):
        small = dataclasses.replace(known, min_images={"train": 3, "val": 2, "test": 1})
        monkeypatch.setitem(PUBLIC_SETS, name, small)


@pytest.mark.usefixtures("small_sets")
@pytest.mark.parametrize("name", ["bccd", "nuclei", "camvid"])
def test_from_an_archive(tmp_path: Path, make_zip: Callable[..., Path], request: pytest.FixtureRequest, name: str):
    archive = make_zip(request.getfixturevalue(f"{name}_files"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder, report = fetch_public(name, tmp_path / "out", archive=archive, sha256=digest)
    assert folder == tmp_path / "out"
    assert set(report.images) == {"train", "val", "test"}
    names = {entry.name for entry in folder.iterdir()}
    assert {"images", "train.txt", "val.txt", "test.txt", "README.txt"} <= names
    assert not any(entry.startswith(".") for entry in names)
    if name != "camvid":
        check_coco(folder / "instances_train.json", folder / "images" / "train")
    readme = (folder / "README.txt").read_text()
    for part in (PUBLIC_SETS[name].source, PUBLIC_SETS[name].licence, f"{report.images['train']} train"):
        assert part in readme
    archive.unlink()
    assert fetch_public(name, tmp_path / "out", archive=archive) == (folder, None)


def test_too_few_images(tmp_path: Path, make_zip: Callable[..., Path], bccd_files: dict):
    with pytest.raises(DataError, match="train split has 3 images, but at least 205"):
        fetch_public("bccd", tmp_path / "out", archive=make_zip(bccd_files))
    assert not (tmp_path / "out").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["archive.zip"]


def test_another_archive(tmp_path: Path, make_zip: Callable[..., Path], camvid_files: dict):
    with pytest.raises(DataError, match="no folder with JPEGImages"):
        fetch_public("bccd", tmp_path / "out", archive=make_zip(camvid_files))


def test_wrong_digest(tmp_path: Path, make_zip: Callable[..., Path], bccd_files: dict):
    with pytest.raises(DataError, match="`sha256` is"):
        fetch_public("bccd", tmp_path / "out", archive=make_zip(bccd_files), sha256="ab")


def test_unknown_name(tmp_path: Path):
    with pytest.raises(DataError, match="bccd, nuclei, camvid"):
        fetch_public("imagenet", tmp_path)


def test_every_set_states_source_licence_and_split():
    for known in PUBLIC_SETS.values():
        assert known.archive_url.startswith("https://codeload.github.com/")
        assert known.source.split("github.com/")[1] in known.archive_url
        assert known.licence
        assert known.cite
        assert known.split
    for known in INSTRUCTIONS.values():
        assert "data_root=DIR" in known.text or "visionattn configs" in known.text
        assert "http" in known.text


def test_default_folder(tmp_path: Path, make_zip: Callable[..., Path], bccd_files: dict, monkeypatch, small_sets: None):
    monkeypatch.setenv("VISIONATTN_CACHE", os.fspath(tmp_path / "cache"))
    folder, _ = fetch_public("bccd", archive=make_zip(bccd_files))
    assert folder == tmp_path / "cache" / "bccd"
