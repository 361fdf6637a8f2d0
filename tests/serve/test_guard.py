"""Who may send requests: host, origin and token."""

import base64

import pytest
from fixtures.rectangles import RectangleModel, paint

from visionattn.serve.guard import is_loopback

TOKEN = "0123456789abcdef0123"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("localhost", True), ("LOCALHOST", True), ("::1", True), ("[::1]", True),
        ("127.8.9.1", True), ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("localhost.evil.com", False),
        ("127.0.0.1.evil.com", False), ("", False),
    ],
)  # fmt: skip
def test_loopback(host, local):
    assert is_loopback(host) is local


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200), ("127.0.0.1:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200),
        ("evil.com", 403), ("evil.com:8000", 403), ("localhost.evil.com", 403), ("", 403), ("[::1", 403),
        ("a@evil.com", 403),
    ],
)  # fmt: skip
def test_host_header_on_loopback(serve, host, status):
    client = serve({"boxes": RectangleModel()})
    for path in ("/", "/models", "/health"):
        assert client.get(path, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://localhost:9000"}, 403),
        ({"origin": "http://evil.com"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_pages_from_elsewhere(serve, as_png, headers, status):
    client = serve({"boxes": RectangleModel()})
    files = {"files": ("x.png", as_png(paint(20, 20)))}
    assert client.post("/predict", files=files, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401), ("", 401), (TOKEN, 401), (f"Basic {base64.b64encode(TOKEN.encode()).decode()}", 401),
        (f"Bearer {TOKEN[:-1]}", 401), (f"Bearer {TOKEN}x", 401), ("Bearer \xfc", 401),
        (f"Bearer {TOKEN}", 200), (f"bearer {TOKEN}", 200),
    ],
)  # fmt: skip
def test_token(serve, as_png, authorization, status):
    client = serve({"boxes": RectangleModel()}, host="0.0.0.0", token=TOKEN)
    headers = {"host": "server.example:8000"}
    if authorization is not None:
        headers["authorization"] = authorization.encode("latin-1")
    files = {"files": ("x.png", as_png(paint(20, 20)))}
    answers = [client.get("/models", headers=headers), client.post("/predict", files=files, headers=headers)]
    assert [answer.status_code for answer in answers] == [status] * 2
    if status == 401:
        assert answers[0].headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answers[0].text


def test_the_page_itself_needs_no_token(serve):
    client = serve({"boxes": RectangleModel()}, token=TOKEN)
    assert [client.get(path).status_code for path in ("/", "/page/main.js", "/health", "/openapi.json")] == [200] * 4
    assert [client.get(path).status_code for path in ("/models", "/samples/boxes", "/pages")] == [401] * 3


def test_every_answer_has_the_headers(serve):
    client = serve({"boxes": RectangleModel()})
    for answer in (client.get("/"), client.get("/none"), client.post("/predict"), client.get("/models"),
                   client.get("/models", headers={"host": "evil.com"})):  # fmt: skip
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
