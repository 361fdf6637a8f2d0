"""Many requests at one time: batches, the queue, the time limit, and clients that have gone."""

import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from fixtures.rectangles import RectangleModel, paint

from visionattn.serve.models import Limits

IMAGE = paint(60, 80, ("red", 5, 6, 25, 30), ("blue", 40, 8, 60, 20))


def form(*contents: bytes) -> list:
    return [("files", (f"{number}.png", content)) for number, content in enumerate(contents)]


def test_requests_that_wait_share_a_call(serve, as_png, slow_model):
    client = serve({"boxes": slow_model}, Limits(batch_size=4))
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(client.post, "/predict", files=form(as_png(IMAGE)))
        assert slow_model.started.wait(10)
        others = [pool.submit(client.post, "/predict", files=form(as_png(IMAGE))) for _ in range(6)]
        until(lambda: len(client.app.state.server.worker._tasks) == 6)
        slow_model.released.set()
        answers = [future.result() for future in (first, *others)]
    assert [len(answer.json()["images"][0]["detections"]) for answer in answers] == [2] * 7
    assert [len(batch) for batch in slow_model.batches] == [1, 4, 2]


def until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue(serve, as_png, slow_model):
    client = serve({"boxes": slow_model}, Limits(queue=3, max_files=3))
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(client.post, "/predict", files=form(*[as_png(IMAGE)] * count)) for count in (1, 2)]
        until(lambda: client.get("/health").json()["waiting"] == 3)
        refused = client.post("/predict", files=form(as_png(IMAGE)))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert "3 of 3 places" in refused.json()["error"]
        slow_model.released.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert client.post("/predict", files=form(as_png(IMAGE))).status_code == 200


def test_the_time_limit(serve, as_png, slow_model):
    client = serve({"boxes": slow_model}, Limits(timeout=0.4))
    with ThreadPoolExecutor(3) as pool:
        late = [pool.submit(client.post, "/predict", files=form(as_png(IMAGE)))]
        assert slow_model.started.wait(10)
        late += [pool.submit(client.post, "/predict", files=form(as_png(IMAGE))) for _ in range(2)]
        answers = [future.result() for future in late]
    assert [answer.status_code for answer in answers] == [504] * 3
    assert "more than 0.4 seconds" in answers[0].json()["error"]
    slow_model.released.set()
    until(lambda: client.get("/health").json()["waiting"] == 0)
    assert client.post("/predict", files=form(as_png(IMAGE))).status_code == 200
    assert slow_model.batches == [[IMAGE.shape]] * 2, "requests that were given up are not predicted"


def test_requests_of_clients_that_have_gone_are_not_predicted(serve_http, as_png, slow_model):
    port, body = serve_http({"boxes": slow_model}), json.dumps({"images": [base64.b64encode(as_png(IMAGE)).decode()]})

    def waiting() -> int:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return json.loads(connection.makefile().read().rpartition("\n")[2])["waiting"]

    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    for client in clients:
        client.sendall(f"{head}\r\n\r\n{body}".encode())
        assert slow_model.started.wait(10)
    until(lambda: waiting() == 4)
    for client in clients:
        client.close()
    until(lambda: waiting() == 0)
    slow_model.released.set()
    until(lambda: slow_model.batches)
    time.sleep(0.1)
    assert slow_model.batches == [[IMAGE.shape]], "only the first one had begun"


def test_many_mixed_requests_are_all_answered(serve, as_png):
    client, good = serve({"boxes": RectangleModel()}), as_png(IMAGE)
    threads = threading.active_count()

    def send(number: int) -> int:
        files = form(good if number % 3 else good[: 40 + number])
        return client.post("/predict", files=files).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(send, range(60)))
    assert all(status == 200 for number, status in enumerate(statuses) if number % 3)
    assert all(status in (415, 422) for number, status in enumerate(statuses) if number % 3 == 0)
    assert client.get("/health").json()["waiting"] == 0
    assert threading.active_count() < threads + 12
