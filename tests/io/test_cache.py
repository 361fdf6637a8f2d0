"""The cache of weights, with a local server."""

import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
import torch
from fixtures.server import Server, file_answer, page_answer

from visionattn.errors import CheckpointError
from visionattn.io import cache
from visionattn.io.cache import fetch, models_dir, name_of
from visionattn.io.fetch import sha256_of
from visionattn.io.links import check_link


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    torch.save({"weight": torch.arange(5000.0)}, tmp_path / "source.pth")
    return (tmp_path / "source.pth").read_bytes()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "download", lambda *args, **options: _download(*args, backoff=0.01, **options))
    return tmp_path / "cache/models"


_download = cache.download


def _fail(*args, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders(monkeypatch: pytest.MonkeyPatch, folder: Path):
    assert models_dir() == folder
    monkeypatch.delenv("VISIONATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert models_dir() == Path("/xdg/visionattn/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models_dir() == Path.home() / ".cache/visionattn/models"


def test_downloaded_once(server: Server, weights: bytes, folder: Path):
    url = server.url("/a.pth", file_answer(weights))
    file = fetch([url], "a.pth")
    assert file == folder / "a.pth"
    assert file.read_bytes() == weights
    record = json.loads((folder / "a.pth.json").read_text())
    assert record == {"url": url, "sha256": sha256_of(file), "bytes": len(weights), "mtime_ns": file.stat().st_mtime_ns}
    server.stop()
    assert fetch([url], "a.pth") == file, "without a network"
    assert len(server.requests) == 1


def test_names_differ_although_the_addresses_end_alike(server: Server, weights: bytes):
    one, other = (server.url(f"/{share}/root/content", file_answer(weights)) for share in ("s!A", "s!B"))
    assert name_of(one) != name_of(other)
    assert name_of("https://host/a%2F..%2Fb.pth?token=1").endswith(".pth")
    for url in ("https://host/..", "https://host/%2e%2e", "https://host/", "http://[", "https://host/.a"):
        name = name_of(url)
        assert Path(name).name == name
        assert not name.startswith(".")


def test_an_interrupted_download_is_continued(server: Server, weights: bytes):
    url = server.url("/a.pth", file_answer(weights, cut_after=1000))
    assert "the connection closed after" in _fail([url], "a.pth")
    before = len(server.requests)
    server.url("/a.pth", file_answer(weights))
    assert fetch([url], "a.pth").read_bytes() == weights
    assert server.requests[before][1]["Range"].startswith("bytes=")
    assert not list(models_dir().glob(".a.pth.part*"))


def test_mirrors_in_order(server: Server, weights: bytes):
    first, second = server.url("/1.pth", page_answer), server.url("/2.pth", file_answer(weights))
    assert fetch([first, second], "a.pth").read_bytes() == weights
    assert [path for path, _ in server.requests] == ["/1.pth", "/2.pth"]
    assert json.loads((models_dir() / "a.pth.json").read_text())["url"] == second


def test_offline(server: Server, folder: Path):
    urls = [server.url("/a.pth", page_answer), server.url("/b.pth", page_answer)]
    server.stop()
    text = _fail(urls, "a.pth")
    assert text.startswith(f"a: cannot download {urls[0]}: no connection")
    assert f"cannot download {urls[1]}" in text
    assert text.endswith(f"save the file as {folder / 'a.pth'}, or give its path")


def test_a_file_that_a_person_saved(weights: bytes, folder: Path):
    folder.mkdir(parents=True)
    (folder / "a.pth").write_bytes(weights)
    assert fetch(["http://127.0.0.1:9/a.pth"], "a.pth") == folder / "a.pth"
    assert json.loads((folder / "a.pth.json").read_text())["url"] is None
    (folder / "b.pth").write_text("<html>Not found</html>")
    assert "is a web page" in _fail([], "b.pth")


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"<!DOCTYPE html>", "web page"), (b"404: Not Found", "not a file of weights"), (b"", "is empty")],
)
def test_other_files(server: Server, folder: Path, body: bytes, message: str):
    url = server.url("/a.pth", file_answer(body))
    text = _fail([url], "a.pth")
    assert message in text
    assert url in text
    assert not [file for file in folder.iterdir() if not file.name.endswith(".lock")]


def test_published_digest(server: Server, weights: bytes, tmp_path: Path):
    url = server.url("/a.pth", file_answer(weights))
    digest = sha256_of(tmp_path / "source.pth")
    assert f"its SHA-256 is {digest}, but the published one is {'0' * 64}" in _fail([url], "a.pth", sha256="0" * 64)
    assert not (models_dir() / "a.pth").exists()
    assert fetch([url], "a.pth", sha256=digest[:8].upper()).is_file()
    assert "the published one was 0000" in _fail([url], "a.pth", sha256="0" * 64)


def test_too_large(server: Server, weights: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 1000)
    assert "the file may have at most 1,000" in _fail([server.url("/a.pth", file_answer(weights))], "a.pth")


def test_a_changed_file(server: Server, weights: bytes, folder: Path):
    url = server.url("/a.pth", file_answer(weights))
    file = fetch([url], "a.pth")
    changed = bytearray(weights)
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    os.utime(file, ns=(0, 1))
    text = _fail([url], "a.pth")
    assert f"{file}: damaged or replaced" in text
    assert f"delete {folder / 'a.pth.json'} to keep it" in text
    file.write_bytes(weights[:-10])
    assert "damaged or replaced" in _fail([url], "a.pth")
    file.unlink()
    assert fetch([url], "a.pth").read_bytes() == weights


def test_a_copied_file_has_another_time(server: Server, weights: bytes):
    url = server.url("/a.pth", file_answer(weights))
    file = fetch([url], "a.pth")
    os.utime(file, ns=(5, 7))
    assert fetch([url], "a.pth") == file
    record = json.loads((models_dir() / "a.pth.json").read_text())
    assert (record["mtime_ns"], record["url"]) == (7, url)


def test_an_unreadable_record(server: Server, weights: bytes):
    url = server.url("/a.pth", file_answer(weights))
    file = fetch([url], "a.pth")
    for text in ("", "[1]", "{", '{"sha256": 5}'):
        (models_dir() / "a.pth.json").write_text(text)
        if "5" in text:
            assert "damaged or replaced" in _fail([url], "a.pth")
        else:
            assert fetch([url], "a.pth") == file


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VISIONATTN_CACHE", str(tmp_path / "file"))
    assert "VISIONATTN_CACHE names another folder" in _fail(["http://127.0.0.1:9/a.pth"], "a.pth")


def _in_a_process(url: str, results) -> None:
    results.put(str(fetch([url], "a.pth")))


def test_two_processes_download_once(server: Server, weights: bytes, folder: Path):
    """The first request is answered only when both processes run."""
    both = threading.Event()

    def slow(handler) -> None:
        both.wait(30)
        file_answer(weights)(handler)

    url = server.url("/a.pth", slow)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_in_a_process, args=(url, results)) for _ in range(2)]
    for process in processes:
        process.start()
    threading.Timer(0.5, both.set).start()
    assert [results.get(timeout=60) for _ in processes] == [str(folder / "a.pth")] * 2
    for process in processes:
        process.join(30)
    assert (folder / "a.pth").read_bytes() == weights
    assert len(server.requests) == 1


def test_links(server: Server, weights: bytes):
    answer = check_link(server.url("/a.pth", file_answer(weights)))
    assert (answer.ok, answer.text) == (True, f"{len(weights):,} bytes")
    assert server.requests[0][1]["Range"] == "bytes=0-1023"
    assert check_link(server.url("/b.pth", file_answer(weights, ranges=False))).text == f"{len(weights):,} bytes"
    page = check_link(server.url("/c.pth", page_answer))
    assert (page.ok, page.text) == (False, "the server returned a web page, not a file")
    gone = check_link(server.url("/d.pth", lambda handler: handler.send_error(404)))
    assert (gone.ok, "404" in gone.text) == (False, True)
    server.stop()
    assert not check_link(server.url("/a.pth", page_answer)).ok
    assert not check_link("http://[").ok
