import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fixtures.server import Server, file_answer, page_answer

from visionattn import __version__
from visionattn.errors import DataError
from visionattn.io.archives import unpack
from visionattn.io.fetch import download

BODY = bytes(range(256)) * 40


def _answer(body: bytes = BODY, status: int = 200, length: int | str | None = None, chunked: bool = False):
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) if chunked else body)

    return send


def _fail(url: str, folder: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        download(url, folder / "file.zip", **{"max_bytes": 20_000, "backoff": 0.01, **options})
    assert list(folder.iterdir()) == [], "a failed download leaves nothing"
    text = str(caught.value)
    assert "\n" not in text
    assert url in text
    return text


def test_download(server: Server, tmp_path: Path):
    url = server.url("/a.zip", _answer())
    digest = hashlib.sha256(BODY).hexdigest()
    path = download(url, tmp_path / "file.zip", max_bytes=len(BODY), sha256=digest.upper())
    assert path.read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [path]
    assert [(path, headers["User-Agent"]) for path, headers in server.requests] == [
        ("/a.zip", f"visionattn/{__version__}")
    ]


def test_without_a_length(server: Server, tmp_path: Path):
    """As codeload answers: HTTP/1.0 until the connection closes."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    path = download(server.url("/a.zip", send), tmp_path / "file.zip", max_bytes=20_000)
    assert path.read_bytes() == BODY


def test_a_passing_failure_is_tried_again(server: Server, tmp_path: Path):
    answers = [_answer(status=503), _answer(BODY[:500], length=len(BODY)), _answer()]
    url = server.url("/a.zip", lambda handler: answers.pop(0)(handler))
    path = download(url, tmp_path / "file.zip", max_bytes=20_000, backoff=0.01)
    assert path.read_bytes() == BODY
    assert len(server.requests) == 3


def test_truncated(server: Server, tmp_path: Path):
    text = _fail(server.url("/a.zip", _answer(BODY[:500], length=len(BODY))), tmp_path)
    assert "closed after 500" in text
    assert "3 attempts" in text
    assert "`archive`" in text
    assert len(server.requests) == 3


def test_truncated_in_a_chunk(server: Server, tmp_path: Path):
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"fff\r\nonly a little")
        handler.close_connection = True

    assert "incomplete" in _fail(server.url("/a.zip", send), tmp_path)


def test_not_found_is_final(server: Server, tmp_path: Path):
    text = _fail(server.url("/a.zip", _answer(status=404)), tmp_path)
    assert "404" in text
    assert "`archive`" in text
    assert len(server.requests) == 1


def test_server_error_is_tried_three_times(server: Server, tmp_path: Path):
    assert "500" in _fail(server.url("/a.zip", _answer(status=500)), tmp_path)
    assert len(server.requests) == 3


def test_announced_size_over_the_bound(server: Server, tmp_path: Path):
    assert "1,000,000,000" in _fail(server.url("/a.zip", _answer(length=10**9)), tmp_path)
    assert len(server.requests) == 1


def test_size_over_the_bound_without_a_length(server: Server, tmp_path: Path):
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY * 3)

    assert "at most 20,000" in _fail(server.url("/a.zip", send), tmp_path)


@pytest.mark.parametrize("length", ["-7", "many"])
def test_a_length_that_is_no_number(server: Server, tmp_path: Path, length: str):
    path = download(server.url("/a.zip", _answer(length=length)), tmp_path / "file.zip", max_bytes=20_000)
    assert path.read_bytes() == BODY


def test_a_length_that_lies_low(server: Server, tmp_path: Path, make_zip: Callable[..., Path]):
    """The rest is never read, and what arrived is no complete archive."""
    content = make_zip({"a/b.txt": "text" * 100}).read_bytes()
    (tmp_path / "get").mkdir()
    url = server.url("/a.zip", _answer(content, length=len(content) - 30))
    path = download(url, tmp_path / "get" / "file.zip", max_bytes=20_000)
    with pytest.raises(DataError, match="not a complete zip archive"):
        unpack(path, tmp_path / "get", wanted=lambda _: True, max_bytes=1000, max_files=9)


def test_wrong_digest(server: Server, tmp_path: Path):
    text = _fail(server.url("/a.zip", _answer()), tmp_path, sha256="0" * 64)
    assert hashlib.sha256(BODY).hexdigest() in text


def test_a_server_that_stops_sending(server: Server, tmp_path: Path):
    release = threading.Event()

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY[:100])
        release.wait(20)

    try:
        text = _fail(server.url("/a.zip", send), tmp_path, timeout=0.2, attempts=1)
    finally:
        release.set()
    assert "timeout" in text


def test_no_network(server: Server, tmp_path: Path):
    url = server.url("/a.zip", _answer())
    server.stop()
    text = _fail(url, tmp_path)
    assert "no connection" in text
    assert "`archive`" in text


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/a.zip", "a.zip"])
def test_other_schemes(tmp_path: Path, url: str):
    assert "http" in _fail(url, tmp_path)


# --- resumed downloads -----------------------------------------------------------------------------------------

LARGE = bytes(range(251)) * 4000


def _ranges(server: Server) -> list[str | None]:
    return [headers.get("Range") for _, headers in server.requests]


@pytest.mark.parametrize("version", [{"etag": '"v1"'}, {"etag": 'W/"v1"', "modified": "Tue, 01 Jul 2025 10:00:00 GMT"}])
def test_a_cut_connection_is_continued(server: Server, tmp_path: Path, version: dict[str, str]):
    answers = [file_answer(LARGE, cut_after=600_000, **version), file_answer(LARGE, **version)]
    url = server.url("/a.pth", lambda handler: answers.pop(0)(handler))
    path = download(url, tmp_path / "a.pth", max_bytes=len(LARGE), backoff=0.01)
    assert path.read_bytes() == LARGE
    assert _ranges(server) == [None, "bytes=600000-"]
    assert server.requests[1][1]["If-Range"] == version.get("modified", version["etag"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_later_call_continues(server: Server, tmp_path: Path):
    partial, options = tmp_path / ".part", {"max_bytes": len(LARGE), "backoff": 0.01}
    url = server.url("/a.pth", file_answer(LARGE, cut_after=300_000))
    with pytest.raises(DataError, match="closed after"):
        download(url, tmp_path / "a.pth", attempts=1, partial=partial, **options)
    assert partial.read_bytes() == LARGE[:300_000]
    server.url("/a.pth", file_answer(LARGE))
    download(url, tmp_path / "a.pth", partial=partial, **options)
    assert (tmp_path / "a.pth").read_bytes() == LARGE
    assert _ranges(server)[-1] == "bytes=300000-"
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_attempts_that_bring_it_forward_are_not_counted(server: Server, tmp_path: Path):
    url = server.url("/a.pth", file_answer(LARGE, cut_after=263_000))
    download(url, tmp_path / "a.pth", max_bytes=len(LARGE), attempts=2, backoff=0.01)
    assert (tmp_path / "a.pth").read_bytes() == LARGE
    assert len(server.requests) == 4


def test_another_version_starts_again(server: Server, tmp_path: Path):
    answers = [file_answer(LARGE, cut_after=300_000), file_answer(LARGE[::-1], etag='"v2"')]
    url = server.url("/a.pth", lambda handler: answers.pop(0)(handler))
    download(url, tmp_path / "a.pth", max_bytes=len(LARGE), backoff=0.01)
    assert (tmp_path / "a.pth").read_bytes() == LARGE[::-1]


def test_a_server_that_ignores_if_range(server: Server, tmp_path: Path):
    """It continues with another version; its ETag shows it."""

    def other(handler: BaseHTTPRequestHandler) -> None:
        del handler.headers["If-Range"]
        file_answer(LARGE[::-1], etag='"v2"')(handler)

    answers = [file_answer(LARGE, cut_after=300_000), other, other]
    url = server.url("/a.pth", lambda handler: answers.pop(0)(handler))
    download(url, tmp_path / "a.pth", max_bytes=len(LARGE), backoff=0.01)
    assert (tmp_path / "a.pth").read_bytes() == LARGE[::-1]
    assert _ranges(server) == [None, "bytes=300000-", None]


@pytest.mark.parametrize("options", [{"ranges": False}, {"etag": ""}])
def test_a_server_without_ranges_or_version(server: Server, tmp_path: Path, options: dict):
    answers = [file_answer(LARGE, cut_after=300_000, **options), file_answer(LARGE, **options)]
    url = server.url("/a.pth", lambda handler: answers.pop(0)(handler))
    download(url, tmp_path / "a.pth", max_bytes=len(LARGE), backoff=0.01)
    assert (tmp_path / "a.pth").read_bytes() == LARGE


def test_complete_bytes_of_a_killed_process(server: Server, tmp_path: Path):
    url = server.url("/a.pth", file_answer(LARGE))
    (tmp_path / ".part").write_bytes(LARGE)
    (tmp_path / ".part.json").write_text(json.dumps({"url": url, "version": '"v1"'}))
    download(url, tmp_path / "a.pth", max_bytes=len(LARGE), partial=tmp_path / ".part")
    assert (tmp_path / "a.pth").read_bytes() == LARGE
    assert len(server.requests) == 1


def test_bytes_of_another_address_are_not_continued(server: Server, tmp_path: Path):
    url = server.url("/a.pth", file_answer(LARGE))
    (tmp_path / ".part").write_bytes(b"x" * 100)
    for note in (json.dumps({"url": url + "2", "version": '"v1"'}), "[]", "no json"):
        (tmp_path / ".part.json").write_text(note)
        download(url, tmp_path / "a.pth", max_bytes=len(LARGE), partial=tmp_path / ".part")
        assert (tmp_path / "a.pth").read_bytes() == LARGE


def test_resumed_size_over_the_bound(server: Server, tmp_path: Path):
    answers = [file_answer(LARGE, cut_after=300_000), file_answer(LARGE + LARGE)]
    url = server.url("/a.pth", lambda handler: answers.pop(0)(handler))
    assert "2,008,000" in _fail(url, tmp_path, max_bytes=len(LARGE))


def test_a_page_keeps_what_was_received(server: Server, tmp_path: Path):
    """Of a hotel's network, for example, that asks to sign in."""
    partial, options = tmp_path / ".part", {"max_bytes": len(LARGE), "attempts": 1}
    url = server.url("/a.pth", file_answer(LARGE, cut_after=300_000))
    with pytest.raises(DataError, match="closed"):
        download(url, tmp_path / "a.pth", partial=partial, **options)
    server.url("/a.pth", page_answer)
    with pytest.raises(DataError, match="returned a web page, not a file"):
        download(url, tmp_path / "a.pth", partial=partial, **options)
    assert partial.stat().st_size == 300_000
