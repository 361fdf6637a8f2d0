"""The thread that runs the models of a server: a bounded queue, and batches of what waits for the same model."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["BusyError", "Worker"]


class BusyError(Exception):
    """The queue is full."""


class AbandonedError(Exception):
    """Nobody waits for the results of the running call."""


class _Result(Future):
    """A future that knows whether it was cancelled while it was running, too."""

    abandoned = False

    def cancel(self) -> bool:
        self.abandoned = True
        return super().cancel()


@dataclass
class _Task:
    key: Any
    run: Callable[[Sequence[Any]], Sequence[Any]]
    item: Any
    limit: int
    future: _Result = field(default_factory=_Result)


class Worker:
    """Runs tasks in one thread, the oldest first.

    PyTorch uses all cores, or the whole GPU, for one call, so that several threads would not be faster. Also, reading
    attention weights replaces functions of PyTorch for the time of a call. A call whose futures were all cancelled ends
    before its next module of PyTorch.

    Args:
        capacity: number of items that may be admitted at one time.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._admitted = 0
        self._tasks: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._running: list[_Task] = []
        self._hook = register_module_forward_pre_hook(self._check)
        self._thread = threading.Thread(target=self._work, name="visionattn-worker", daemon=True)
        self._thread.start()

    @property
    def admitted(self) -> int:
        """Number of items that are read, waiting or running."""
        return self._admitted

    @contextlib.contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Reserve places in the queue for the time of the block.

        Raises:
            BusyError: there are not enough places.
        """
        with self._changed:
            if self._admitted + count > self.capacity:
                raise BusyError
            self._admitted += count
        try:
            yield
        finally:
            with self._changed:
                self._admitted -= count

    def submit(self, key: Any, run: Callable[[Sequence[Any]], Sequence[Any]], item: Any, limit: int = 1) -> Future:
        """Add an item to the queue, and return its result as a future; cancel it if the result is not needed any more.

        Args:
            key: items with equal keys may share a call.
            run: returns one result for each of a list of items; an exception is the error of all of them, unless it
                runs for each of them alone.
            item: the item.
            limit: number of items of a call.
        """
        task = _Task(key, run, item, limit)
        with self._changed:
            if self._stopped:
                raise BusyError
            self._tasks.append(task)
            self._changed.notify()
        return task.future

    def stop(self) -> None:
        """End the thread after the running call, and cancel what waits."""
        with self._changed:
            self._stopped = True
            for task in self._tasks:
                task.future.cancel()
            self._tasks.clear()
            self._changed.notify()
        self._thread.join(timeout=10)
        self._hook.remove()

    def _check(self, module: Any, inputs: Any) -> None:
        """Called before each forward pass of a module, in any thread."""
        if not self._running or threading.current_thread() is not self._thread:
            return
        if all(task.future.abandoned for task in self._running):
            raise AbandonedError

    def _next(self) -> list[_Task]:
        """Wait for a task, and return it with the others of its key; an empty list ends the thread."""
        with self._changed:
            while not self._tasks and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return []
            first = self._tasks.popleft()
            batch, others = [first], []
            for task in self._tasks:
                (batch if task.key == first.key and len(batch) < first.limit else others).append(task)
            self._tasks = deque(others)
            return batch

    def _work(self) -> None:
        while batch := self._next():
            running = [task for task in batch if task.future.set_running_or_notify_cancel()]
            self._running = running
            if running:
                _run(running)
            self._running = []
            del batch, running  # so that the images are freed while the thread waits


def _run(tasks: Sequence[_Task]) -> None:
    try:
        results = tasks[0].run([task.item for task in tasks])
    except Exception as error:
        if len(tasks) == 1 or isinstance(error, AbandonedError):
            for task in tasks:
                task.future.set_exception(error)
            return
        for task in tasks:  # find out which of the items it is
            _run([task])
        return
    for task, result in zip(tasks, results, strict=True):
        task.future.set_result(result)
