import json
import os
import threading
from pathlib import Path

import pytest

from visionattn.errors import DataError
from visionattn.io.folders import STAMP, cache_dir, is_current, new_folder, write_json


def _build(target: Path, stamp: dict, names: tuple[str, ...] = ("a.txt",)) -> None:
    with new_folder(target, stamp) as folder:
        for name in names:
            (folder / name).write_text(name)


def test_complete_or_absent(tmp_path: Path):
    target = tmp_path / "deep" / "data"
    seen = []

    def fail() -> None:
        with new_folder(target, {"v": 1}) as folder:
            (folder / "a.txt").write_text("a")
            seen.append(target.exists())
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert seen == [False]
    assert list(target.parent.iterdir()) == []
    _build(target, {"v": 1})
    assert sorted(p.name for p in target.iterdir()) == ["a.txt", STAMP]
    assert list(target.parent.iterdir()) == [target]


def test_is_current(tmp_path: Path):
    target = tmp_path / "data"
    assert not is_current(target, {"v": 1})
    _build(target, {"v": 1}, ("a.txt", "b.txt"))
    assert is_current(target, {"v": 1})
    assert not is_current(target, {"v": 2})
    (target / "b.txt").unlink()
    assert not is_current(target, {"v": 1})
    (target / STAMP).write_text("[]")
    assert not is_current(target, {"v": 1})


def test_own_folder_is_replaced(tmp_path: Path):
    target = tmp_path / "data"
    _build(target, {"v": 1}, ("a.txt", "old.txt"))
    _build(target, {"v": 2})
    assert sorted(p.name for p in target.iterdir()) == ["a.txt", STAMP]
    assert list(tmp_path.iterdir()) == [target]


def test_an_empty_folder_is_used(tmp_path: Path):
    (tmp_path / "data").mkdir()
    _build(tmp_path / "data", {})
    assert (tmp_path / "data" / "a.txt").is_file()


def test_foreign_files_are_never_removed(tmp_path: Path):
    target = tmp_path / "data"
    target.mkdir()
    (target / "thesis.tex").write_text("years")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        _build(target, {})
    assert (target / "thesis.tex").read_text() == "years"
    _build(tmp_path / "own", {"v": 1})
    (tmp_path / "own" / "notes.md").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.md"):
        _build(tmp_path / "own", {"v": 2})
    assert (tmp_path / "own" / "notes.md").is_file()


def test_a_file_in_the_way(tmp_path: Path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataError, match="not a folder"):
        _build(tmp_path / "data", {})
    with pytest.raises(DataError, match="cannot be written"):
        _build(tmp_path / "data" / "below", {})


def test_stale_builds_are_cleared_and_running_ones_kept(tmp_path: Path):
    stale, running = tmp_path / ".data.building-old", tmp_path / ".data.building-new"
    for folder in (stale, running):
        folder.mkdir()
    os.utime(stale, (0, 0))
    _build(tmp_path / "data", {})
    assert not stale.exists()
    assert running.exists()


def test_two_builds_at_once(tmp_path: Path):
    target, barrier, errors = tmp_path / "data", threading.Barrier(2), []

    def build() -> None:
        try:
            with new_folder(target, {"v": 1}) as folder:
                (folder / "a.txt").write_text("a")
                barrier.wait(timeout=20)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert is_current(target, {"v": 1})
    assert list(tmp_path.iterdir()) == [target]


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("VISIONATTN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "visionattn"
    monkeypatch.setenv("VISIONATTN_CACHE", "~/elsewhere")
    assert cache_dir() == tmp_path / "elsewhere"


def test_write_json_refuses_nan(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
