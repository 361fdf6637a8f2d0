"""The queue and its thread."""

import threading
import time

import pytest
import torch

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


def test_a_running_call_ends_when_nobody_waits_for_it():
    worker, started, ended = Worker(5), threading.Event(), threading.Event()

    class Step(torch.nn.Module):
        def forward(self, x):
            started.set()
            time.sleep(0.01)
            return x

    model = torch.nn.Sequential(*(Step() for _ in range(3000)))

    def run(items):
        try:
            return [model(item) for item in items]
        finally:
            ended.set()

    slow = worker.submit("slow", run, 0)
    assert started.wait(10)
    assert not slow.cancel()  # it is running
    assert ended.wait(10)  # all steps would take 30 s
    assert worker.submit("next", lambda items: items, 1).result(10) == 1
    worker.stop()


def test_a_call_goes_on_while_one_of_its_results_is_wanted():
    worker, hold, go = Worker(5), threading.Event(), threading.Event()
    worker.submit("hold", lambda items: [go.wait(10)], None)
    started = threading.Event()

    class Step(torch.nn.Module):
        def forward(self, x):
            started.set()
            hold.wait(10)
            return x

    model = torch.nn.Sequential(Step(), Step())
    unwanted, wanted = (worker.submit("key", lambda items: [model(x) for x in items], n, 2) for n in (1, 2))
    go.set()
    assert started.wait(10)
    unwanted.cancel()
    hold.set()
    assert wanted.result(10) == 2
    worker.stop()


def test_modules_of_other_threads_are_not_stopped():
    worker, started, go = Worker(5), threading.Event(), threading.Event()

    def run(items):
        started.set()
        return [go.wait(10)]

    running = worker.submit("key", run, 0)
    assert started.wait(10)
    running.cancel()
    assert torch.nn.Identity()(3) == 3
    go.set()
    worker.stop()
