"""Inputs by address."""

from pathlib import Path

import pytest
from fixtures.server import file_answer, page_answer

from visionattn.io.urls import fetch_inputs, is_url


def test_addresses_become_files_and_paths_remain(server, tmp_path):
    first = server.url("/a/photo%201.jpg?size=2", file_answer(b"one"))
    second = server.url("/b/photo%201.jpg?size=2", file_answer(b"two"))
    found, addresses = fetch_inputs(["x.png", first, second, first], tmp_path / "in", pytest.fail)
    assert found[0] == "x.png"
    assert [Path(path).name for path in found[1:]] == ["photo 1.jpg", "photo 1_2.jpg"]
    assert [Path(path).read_bytes() for path in found[1:]] == [b"one", b"two"]
    assert list(addresses.values()) == [first, second]


def test_no_folder_is_made_without_addresses(tmp_path):
    assert fetch_inputs(["x.png"], tmp_path / "in", pytest.fail) == (["x.png"], {})
    assert not (tmp_path / "in").exists()


def gone(handler) -> None:
    handler.send_error(404)


def silent(handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "9")
    handler.end_headers()
    handler.wfile.flush()
    handler.server.stopping.wait()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(gone, "the server returned 404"), (page_answer, "the server returned a web page, not a file")],
)
def test_failures_are_reported_and_left_out(server, tmp_path, answer, reason):
    errors: list[str] = []
    bad, good = server.url("/bad.jpg", answer), server.url("/good.jpg", file_answer(b"one"))
    found, addresses = fetch_inputs([bad, good], tmp_path, errors.append)
    assert len(found) == len(addresses) == len(errors) == 1
    assert bad in errors[0]
    assert reason in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["good.jpg"]


def test_a_server_that_sends_nothing(server, tmp_path):
    from threading import Event

    server.http.stopping = Event()
    errors: list[str] = []
    assert fetch_inputs([server.url("/x.jpg", silent)], tmp_path, errors.append, timeout=0.2) == ([], {})
    server.http.stopping.set()
    assert "timeout while waiting for data" in errors[0]


@pytest.mark.parametrize("name", ["/..%2f..%2fetc%2fpasswd", "/%2e%2e", "/a%00b.jpg", "/", "/" + "x" * 300 + ".jpg"])
def test_names_stay_in_the_folder(server, tmp_path, name):
    found, _ = fetch_inputs([server.url(name, file_answer(b"one"))], tmp_path / "in", pytest.fail)
    assert Path(found[0]).resolve().parent == (tmp_path / "in").resolve()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_an_address_is(tmp_path):
    errors: list[str] = []
    assert [is_url(text) for text in ("http://x/y", "HTTPS://x", "ftp://x", "x.png", "http:/x")] == [
        True,
        True,
        0,
        0,
        0,
    ]
    assert fetch_inputs(["http://[bad/x.jpg"], tmp_path, errors.append) == ([], {})
    assert "is not an address" in errors[0]
