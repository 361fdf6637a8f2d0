"""Requests for too much work, requests that nobody waits for, and what messages show of a request."""

import asyncio
import json

from fixtures.rectangles import RectangleModel, paint

IMAGE = paint(60, 80, ("red", 5, 6, 25, 30))


def one(content: bytes) -> dict:
    return {"files": ("0.png", content)}


def test_messages_quote_at_most_80_characters_of_a_request(serve, as_png):
    client = serve({"boxes": RectangleModel()})
    long = "y" * 5000
    for options in (
        {"model": long}, {long: "1"}, {"score_thr": json.dumps({long: 0.5})}, {"score_thr": long}, {"tile": "9" * 4000},
        {"scales": " ".join(["1"] * 5000)}, {"score_thr": json.dumps({"y y" * 999: 0.5})},
    ):  # fmt: skip
        answer = client.post("/predict", files=one(as_png(IMAGE)), data=options)
        assert answer.status_code in (200, 422)
        assert len(answer.text) < 400 or answer.status_code == 200, answer.text


def test_work_for_one_image_is_limited(serve, as_png):
    model = RectangleModel()
    client, image = serve({"boxes": model}), as_png(paint(1100, 1100))
    options = {"tile": "128", "overlap": "64", "tta": "true", "scales": "1 2"}  # 17 * 17 tiles, 2 * (1 + 4) passes each
    answer = client.post("/predict", files=one(image), data=options)
    assert answer.status_code == 422
    assert "takes 2890 forward passes for an image of 1100x1100 pixels, more than 512" in answer.json()["error"]
    assert model.batches == []


def test_unknown_addresses_and_methods(serve):
    client = serve({"boxes": RectangleModel()})
    for status, answer in ((404, client.get("/none")), (405, client.get("/predict")), (405, client.put("/models"))):
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]


def test_a_client_that_hangs_up_is_no_error(serve):
    app = serve({"boxes": RectangleModel()}).app
    for kind in (b"application/json", b"multipart/form-data; boundary=x"):
        messages = iter([{"type": "http.request", "body": b"--x", "more_body": True}, {"type": "http.disconnect"}])
        sent: list[dict] = []

        async def receive(messages=messages) -> dict:
            return next(messages)

        async def send(message: dict, sent=sent) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", kind)]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
        asyncio.run(app(scope, receive, send))  # raises nothing
        assert sent[0]["status"] == 499
