import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from visionattn.errors import DataError
from visionattn.io.archives import unpack


def _unpack(archive: Path, target: Path, **options) -> int:
    target.mkdir()
    everything = {"wanted": lambda _: True, "max_bytes": 10_000, "max_files": 10}
    return unpack(archive, target, **{**everything, **options})


def test_unpack(tmp_path: Path, make_zip: Callable[..., Path]):
    archive = make_zip({"top/": "", "top/a.txt": "one", "top/deep/b.txt": "two", "top/c.md": "three"})
    target = tmp_path / "out"
    assert _unpack(archive, target, wanted=lambda name: name.endswith(".txt")) == 2
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == [
        "top/a.txt",
        "top/deep/b.txt",
    ]
    assert (target / "top/deep/b.txt").read_text() == "two"


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/etc/evil", "..\\evil.txt", "C:\\evil.txt", "\\\\host\\evil"]
)
def test_entries_that_lead_out(tmp_path: Path, make_zip: Callable[..., Path], name: str):
    archive = make_zip({"good.txt": "x", name: "evil"})
    with pytest.raises(DataError, match="outside the target folder"):
        _unpack(archive, tmp_path / "out", wanted=lambda entry: entry == "good.txt")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["archive.zip", "out"]


def test_links_are_not_made(tmp_path: Path):
    archive = tmp_path / "links.zip"
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(link, "/etc/hostname")
        file.writestr("a.txt", "a")
    assert _unpack(archive, tmp_path / "out") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.txt"]


def test_bomb(tmp_path: Path, make_zip: Callable[..., Path]):
    archive = make_zip({"zeros.txt": bytes(50_000_000)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(DataError, match="more than 10,000 bytes"):
        _unpack(archive, tmp_path / "out")
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*")) <= 10_000


def test_too_many_entries(tmp_path: Path, make_zip: Callable[..., Path]):
    archive = make_zip({f"{number}.txt": "" for number in range(11)})
    with pytest.raises(DataError, match="11 entries"):
        _unpack(archive, tmp_path / "out")


def test_an_entry_twice(tmp_path: Path):
    archive = tmp_path / "twice.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a.txt", "2")
    with pytest.raises(DataError, match="twice"):
        _unpack(archive, tmp_path / "out")


def test_a_file_where_a_folder_must_be(tmp_path: Path, make_zip: Callable[..., Path]):
    with pytest.raises(DataError, match=r"a/b\.txt"):
        _unpack(make_zip({"a": "file", "a/b.txt": "below it"}), tmp_path / "out")


def test_damaged(tmp_path: Path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.txt", "some text that will be changed")
    content = stream.getvalue().replace(b"will be", b"WAS now")
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.zip: damaged"):
        _unpack(tmp_path / "bad.zip", tmp_path / "out")


def test_not_an_archive(tmp_path: Path):
    (tmp_path / "page.zip").write_text("<!DOCTYPE html><p>Please log in")
    with pytest.raises(DataError, match="starts with b'<!DOCTYPE html>"):
        _unpack(tmp_path / "page.zip", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        _unpack(tmp_path / "none.zip", tmp_path / "out2")
