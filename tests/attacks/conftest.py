"""What all attacks need: a payload that leaves a trace, and a run of a loader whose memory and time are measured.

A loader runs in a forked child, so that a crash, a hang or a full memory ends that child and not the tests.
"""

import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from visionattn.errors import VisionattnError

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
        trace: of the error.
    """

    error: str | None
    ours: bool
    text: str
    megabytes: float
    trace: str = ""


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def attempt(call: Callable[[], Any]) -> Attempt:
    """Run a loader in a forked child."""
    if not sys.platform.startswith("linux"):
        pytest.skip("measures memory by /proc, which is Linux's")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = _peak()
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10 * SECONDS)
            try:
                text = repr(call())[:500]
                found = Attempt(None, False, text, 0)
            except BaseException as error:
                ours = isinstance(error, VisionattnError)
                found = Attempt(type(error).__name__, ours, str(error), 0, traceback.format_exc()[-3000:])
            found.megabytes = _peak() - before
            with os.fdopen(writing, "wb") as stream:
                pickle.dump(vars(found), stream)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    if not said:
        why = signal.Signals(status & 127).name if status & 127 else f"exit {status >> 8}"
        return Attempt(f"the process ended by {why}", False, "", 0)
    return Attempt(**pickle.loads(said))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The folder that a payload makes."""
    return tmp_path / "trace"


@pytest.fixture
def payload(trace: Path) -> Payload:
    """To be pickled."""
    return Payload(trace)


@pytest.fixture
def ran() -> Callable[[Callable[[], Any]], Attempt]:
    """`attempt`: test modules cannot import from a conftest."""
    return attempt


@pytest.fixture
def refused(trace: Path) -> Callable[..., str]:
    """Runs a loader, which must refuse in one line, run nothing, and take little memory; gives the message."""

    def check(call: Callable[[], Any], megabytes: float = 300, others: tuple[str, ...] = ()) -> str:
        found = attempt(call)
        assert not trace.exists(), f"the payload ran; the loader said {found.error}: {found.text}"
        assert found.error is not None, f"was taken: {found.text}"
        assert found.ours or found.error in others, f"{found.error}: {found.text[:500]}\n{found.trace[-1500:]}"
        assert found.text.strip(), "no message"
        assert "\n" not in found.text, found.text
        assert len(found.text) < 2000
        assert "MemoryError" not in found.text, found.text
        assert found.megabytes < megabytes, f"took {found.megabytes:.0f} MB before it said {found.text}"
        return found.text

    return check


@pytest.fixture
def harmless(trace: Path) -> Callable[..., Attempt]:
    """Runs a loader, which may refuse as `refused` has it, or read the file; but runs nothing and takes little."""

    def check(call: Callable[[], Any], megabytes: float = 300, others: tuple[str, ...] = ()) -> Attempt:
        found = attempt(call)
        assert not trace.exists(), f"the payload ran; the loader said {found.error}: {found.text}"
        known = found.error is None or found.ours or found.error in others
        assert known, f"{found.error}: {found.text[:500]}\n{found.trace[-1500:]}"
        assert "MemoryError" not in found.text, found.text
        assert found.megabytes < megabytes, f"took {found.megabytes:.0f} MB: {found.text}"
        return found

    return check
