"""What all attacks need: a payload that leaves a trace, and a run of a loader whose memory and time are measured.

A loader runs in a forked child, so that a crash, a hang or a full memory ends that child and not the tests.
"""

import gc
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from visionattn.errors import VisionattnError

sys.path.append(str(Path(__file__).parent))  # annotation_loaders, image_loaders
SECONDS = 20
ROOM = 6 << 30
"""Bytes that a child may take before the system stops it; what a loader may take is `Attempt.megabytes`."""


class Payload:
    """Makes a folder when it is unpickled by a loader that runs what a pickle says."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@dataclass
class Attempt:
    """How a loader took a file.

    Attributes:
        error: class of what it raised, None if it returned.
        ours: whether that is one of `visionattn.errors`.
        text: its message, or the repr of what was returned.
        megabytes: by which the resident memory grew at its peak.
        ran: whether a payload left its trace.
        trace: of the error.
    """

    error: str | None
    ours: bool
    text: str
    megabytes: float
    ran: bool = False
    trace: str = ""


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def attempts(calls: dict[str, Callable[[], Any]], trace: Path) -> dict[str, Attempt]:
    """Run loaders one after another in a forked child; where one ends the child, the next gets a new one."""
    if not sys.platform.startswith("linux"):
        pytest.skip("measures memory by /proc, which is Linux's")
    found: dict[str, Attempt] = {}
    waiting = dict(calls)
    while waiting:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                gc.freeze()  # a collection would copy every page that the child shares with the tests
                os.close(reading)
                with os.fdopen(writing, "wb") as stream:
                    for name, call in waiting.items():
                        pickle.dump((name, vars(_measured(call, trace))), stream)
                        stream.flush()
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            while True:
                try:
                    name, said = pickle.load(stream)
                except EOFError:
                    break
                found[name] = Attempt(**said)
                del waiting[name]
        _, status = os.waitpid(child, 0)
        if waiting:
            why = signal.Signals(status & 127).name if status & 127 else f"exit {status >> 8}"
            name = next(iter(waiting))
            found[name] = Attempt(f"the process ended by {why}", False, "", 0, trace.exists())
            del waiting[name]
            if trace.exists():
                trace.rmdir()
    return found


def _measured(call: Callable[[], Any], trace: Path) -> Attempt:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _peak()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))
    used = int(time.process_time()) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(10 * SECONDS)
    try:
        found = Attempt(None, False, repr(call())[:500], 0)
    except BaseException as error:
        ours = isinstance(error, VisionattnError)
        found = Attempt(type(error).__name__, ours, str(error), 0, False, traceback.format_exc()[-1500:])
    found.megabytes, found.ran = _peak() - before, trace.exists()
    if found.ran:
        trace.rmdir()
    return found


def check(found: Attempt, megabytes: float, others: tuple[str, ...]) -> Attempt:
    """What every attempt must be: nothing was run, errors are ours and of one line, little memory was taken."""
    assert not found.ran, f"the payload ran; the loader said {found.error}: {found.text}"
    known = found.error is None or found.ours or found.error in others
    assert known, f"{found.error}: {found.text[:500]}\n{found.trace}"
    if found.ours:
        assert found.text.strip(), "no message"
        assert "\n" not in found.text, found.text
        assert len(found.text) < 2000, found.text
    assert "MemoryError" not in found.text, found.text
    assert found.megabytes < megabytes, f"took {found.megabytes:.0f} MB: {found.text}"
    return found


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The folder that a payload makes."""
    return tmp_path / "trace"


@pytest.fixture
def payload(trace: Path) -> Payload:
    """To be pickled."""
    return Payload(trace)


@pytest.fixture
def ran(trace: Path) -> Callable[[Callable[[], Any]], Attempt]:
    """Runs a call in a child, whatever comes; a trace stays."""

    def run(call: Callable[[], Any]) -> Attempt:
        found = attempts({"": call}, trace)[""]
        if found.ran:
            trace.mkdir()
        return found

    return run


@pytest.fixture
def harmless(trace: Path) -> Callable[..., Attempt]:
    """Checks a loader's attempt, or runs a loader, which may read the file or refuse it; see `check`."""

    def judge(call: Any, megabytes: float = 300, others: tuple[str, ...] = ()) -> Attempt:
        found = call if isinstance(call, Attempt) else attempts({"": call}, trace)[""]
        return check(found, megabytes, others)

    return judge


@pytest.fixture
def refused(harmless: Callable[..., Attempt]) -> Callable[..., str]:
    """As `harmless`, of a file that must be refused; gives the message."""

    def judge(call: Any, megabytes: float = 300, others: tuple[str, ...] = ()) -> str:
        found = harmless(call, megabytes, others)
        assert found.error is not None, f"was taken: {found.text}"
        return found.text

    return judge


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Attempt]:
    """One attack on all loaders, in one child: a fork for each would take longer than the loaders.

    ``row(key, loader, {name: prepare})`` gives the attempt of a loader; ``prepare(folder, trace)`` is called for each,
    with a folder of its own, and returns the call.
    """
    known: dict[Any, dict[str, Attempt]] = {}

    def get(key: Any, loader: str, prepare: dict[str, Callable[[Path, Path], Callable[[], Any]]]) -> Attempt:
        if key not in known:
            top = tmp_path_factory.mktemp("row")
            trace, calls = top / "trace", {}
            for name, make in prepare.items():
                (top / name).mkdir()
                calls[name] = make(top / name, trace)
            known[key] = attempts(calls, trace)
        return known[key][loader]

    return get
