import hashlib
import io
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from visionattn import __version__
from visionattn.errors import DataError
from visionattn.io.fetch import download, unpack

BODY = bytes(range(256)) * 40


class _Server:
    """A local server whose answers a test chooses by path; it counts the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers.get("User-Agent")))
                server.answers[self.path](self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def url(self, path: str, answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        self.answers[path] = answer
        return f"http://127.0.0.1:{self.http.server_port}{path}"


@pytest.fixture
def server() -> Iterator[_Server]:
    running = _Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


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


def test_download(server: _Server, tmp_path: Path):
    url = server.url("/a.zip", _answer())
    digest = hashlib.sha256(BODY).hexdigest()
    path = download(url, tmp_path / "file.zip", max_bytes=len(BODY), sha256=digest.upper())
    assert path.read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [path]
    assert server.requests == [("/a.zip", f"visionattn/{__version__}")]


def test_without_a_length(server: _Server, tmp_path: Path):
    """As codeload answers: HTTP/1.0 until the connection closes."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    path = download(server.url("/a.zip", send), tmp_path / "file.zip", max_bytes=20_000)
    assert path.read_bytes() == BODY


def test_a_passing_failure_is_tried_again(server: _Server, tmp_path: Path):
    answers = [_answer(status=503), _answer(BODY[:500], length=len(BODY)), _answer()]
    url = server.url("/a.zip", lambda handler: answers.pop(0)(handler))
    path = download(url, tmp_path / "file.zip", max_bytes=20_000, backoff=0.01)
    assert path.read_bytes() == BODY
    assert len(server.requests) == 3


def test_truncated(server: _Server, tmp_path: Path):
    text = _fail(server.url("/a.zip", _answer(BODY[:500], length=len(BODY))), tmp_path)
    assert "closed after 500" in text
    assert "3 attempts" in text
    assert "`archive`" in text
    assert len(server.requests) == 3


def test_truncated_in_a_chunk(server: _Server, tmp_path: Path):
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"fff\r\nonly a little")
        handler.close_connection = True

    assert "incomplete" in _fail(server.url("/a.zip", send), tmp_path)


def test_not_found_is_final(server: _Server, tmp_path: Path):
    text = _fail(server.url("/a.zip", _answer(status=404)), tmp_path)
    assert "404" in text
    assert "`archive`" in text
    assert len(server.requests) == 1


def test_server_error_is_tried_three_times(server: _Server, tmp_path: Path):
    assert "500" in _fail(server.url("/a.zip", _answer(status=500)), tmp_path)
    assert len(server.requests) == 3


def test_announced_size_over_the_bound(server: _Server, tmp_path: Path):
    assert "1,000,000,000" in _fail(server.url("/a.zip", _answer(length=10**9)), tmp_path)
    assert len(server.requests) == 1


def test_size_over_the_bound_without_a_length(server: _Server, tmp_path: Path):
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY * 3)

    assert "at most 20,000" in _fail(server.url("/a.zip", send), tmp_path)


@pytest.mark.parametrize("length", ["-7", "many"])
def test_a_length_that_is_no_number(server: _Server, tmp_path: Path, length: str):
    path = download(server.url("/a.zip", _answer(length=length)), tmp_path / "file.zip", max_bytes=20_000)
    assert path.read_bytes() == BODY


def test_a_length_that_lies_low(server: _Server, tmp_path: Path, make_zip: Callable[..., Path]):
    """The rest is never read, and what arrived is no complete archive."""
    content = make_zip({"a/b.txt": "text" * 100}).read_bytes()
    (tmp_path / "get").mkdir()
    url = server.url("/a.zip", _answer(content, length=len(content) - 30))
    path = download(url, tmp_path / "get" / "file.zip", max_bytes=20_000)
    with pytest.raises(DataError, match="not a complete zip archive"):
        unpack(path, tmp_path / "get", wanted=lambda _: True, max_bytes=1000, max_files=9)


def test_wrong_digest(server: _Server, tmp_path: Path):
    text = _fail(server.url("/a.zip", _answer()), tmp_path, sha256="0" * 64)
    assert hashlib.sha256(BODY).hexdigest() in text


def test_a_server_that_stops_sending(server: _Server, tmp_path: Path):
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


def test_no_network(server: _Server, tmp_path: Path):
    url = server.url("/a.zip", _answer())
    server.http.shutdown()
    server.http.server_close()
    text = _fail(url, tmp_path)
    assert "no connection" in text
    assert "`archive`" in text


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/a.zip", "a.zip"])
def test_other_schemes(tmp_path: Path, url: str):
    assert "http" in _fail(url, tmp_path)


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
