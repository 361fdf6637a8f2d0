"""The queue and its thread."""

import threading

import pytest

from visionattn.serve.worker import BusyError, Worker


def test_batches_are_of_one_key_and_in_order():
    worker, started, go, calls = Worker(20), threading.Event(), threading.Event(), []

    def hold(items):
        started.set()
        go.wait(10)
        return items

    def run(items):
        calls.append(list(items))
        return [item * 10 for item in items]

    first = worker.submit("hold", hold, 0)
    assert started.wait(10)
    futures = [worker.submit(number % 2, run, number, 3) for number in range(8)]
    futures[2].cancel()
    go.set()
    assert first.result(10) == 0
    assert [future.result(10) for future in futures if not future.cancelled()] == [0, 10, 30, 40, 50, 60, 70]
    assert calls == [[0, 4], [1, 3, 5], [6], [7]]
    worker.stop()


def test_an_error_is_that_of_its_item():
    worker = Worker(5)

    def run(items):
        return [1 / item for item in items]

    go = threading.Event()
    worker.submit("hold", lambda items: [go.wait(10)], None)
    futures = [worker.submit("a", run, item, 4) for item in (1, 0, 2)]
    go.set()
    assert (futures[0].result(10), futures[2].result(10)) == (1, 0.5)
    with pytest.raises(ZeroDivisionError):
        futures[1].result(10)
    worker.stop()
    assert not worker._thread.is_alive()
    with pytest.raises(BusyError):
        worker.submit("a", run, 1)


def test_places_are_given_back():
    worker = Worker(3)
    with worker.admit(2):
        with pytest.raises(BusyError), worker.admit(2):
            pass
        with worker.admit(1):
            assert worker.admitted == 3
    with pytest.raises(KeyError), worker.admit(3):
        raise KeyError
    assert worker.admitted == 0
    worker.stop()
