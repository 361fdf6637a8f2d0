"""``kill -9`` anywhere and inside of writing, full disks, damaged files: does the run end with the same bits?"""

import itertools
import os
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.load import load_config
from visionattn.engine.train.train import train

from .setting import Row, in_child, make_config, same_weights

__all__ = ["damaged_files", "full_disk", "killed_anywhere", "killed_while_writing", "stopped", "unbroken"]

LAST = "iter_40.pth"


def unbroken(folder: Path) -> Path:
    """The run that the others must equal; gives its work dir."""
    config = make_config(folder / "data")
    _wait(in_child(lambda: train(load_config(config), work_dir=folder / "unbroken"), folder / "unbroken.log"))
    assert (folder / "unbroken" / LAST).is_file(), (folder / "unbroken.log").read_text()
    return folder / "unbroken"


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _finish(folder: Path, name: str) -> bool:
    """Resume a run without more faults; whether it ends with the bits of the unbroken one."""
    config = folder / "data" / "tiny.py"
    code = _wait(
        in_child(lambda: train(load_config(config), work_dir=folder / name, resume=True), folder / "kills.log")
    )
    return code == 0 and same_weights(folder / name / LAST, folder / "unbroken" / LAST)


def killed_anywhere(folder: Path, kills: int = 30) -> Row:
    """Kill after a random time, resume, kill again, until the run is done; runs enough for so many kills."""
    rng, done, runs, same = random.Random(1), 0, 0, 0
    config = folder / "data" / "tiny.py"
    while done < kills:
        name = f"killed_{runs}"
        for attempt in itertools.count(1):
            work = folder / name
            pid = in_child(lambda w=work: train(load_config(config), work_dir=w, resume=True), folder / "kills.log")
            end, over = time.monotonic() + rng.uniform(0.2, 3.0 + 2.0 * attempt), False
            while time.monotonic() < end and not over:
                over = os.waitpid(pid, os.WNOHANG)[0] == pid
                time.sleep(0.01)
            if over:
                break
            os.kill(pid, signal.SIGKILL)
            _wait(pid)
            done += 1
        runs += 1
        same += _finish(folder, name)
    return Row(
        f"kill -9 at {done} random times during {runs} runs, each resumed",
        done,
        f"{same} of {runs} runs were bit-identical to an uninterrupted run",
        "nothing" if same == runs else "a run",
    )


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at(event: str, occurrence: int) -> None:
    """Let this process kill itself inside of writing a checkpoint, at the given occurrence of an event."""
    left = [occurrence]

    def counted() -> bool:
        left[0] -= 1
        return left[0] == 0

    def before(name: str, original):
        def call(*args, **kwargs):
            if counted():
                _die()
            return original(*args, **kwargs)

        setattr(os, name, call)

    if event == "before the file is synced":
        before("fsync", os.fsync)
    elif event == "before it is renamed":
        before("replace", os.replace)
    elif event == "after it is renamed":
        original = os.replace

        def replaced(*args, **kwargs):
            original(*args, **kwargs)
            if counted():
                _die()

        os.replace = replaced
    else:  # in the middle of the bytes
        save = checkpoints.torch.save

        class Cut:
            def __init__(self, stream):
                self.stream, self.bytes, self.now = stream, 0, counted()

            def write(self, data):
                written = self.stream.write(data)
                self.bytes += written
                if self.now and self.bytes > 20_000:
                    self.stream.flush()
                    _die()
                return written

            def __getattr__(self, name):
                return getattr(self.stream, name)

        checkpoints.torch.save = lambda content, stream: save(content, Cut(stream))


def killed_while_writing(folder: Path) -> Row:
    """Four places inside of a write, each at three iterations."""
    config, tries, same = folder / "data" / "tiny.py", 0, 0
    for event in ("in its bytes", "before the file is synced", "before it is renamed", "after it is renamed"):
        for occurrence in (2, 9, 21):
            name = f"write_{tries}"

            def run(event=event, occurrence=occurrence, work=folder / name) -> None:
                _kill_at(event, occurrence)
                train(load_config(config), work_dir=work)

            code = _wait(in_child(run, folder / "kills.log"))
            assert code == -signal.SIGKILL, f"{event} {occurrence}: exit {code}"
            tries += 1
            same += _finish(folder, name)
    return Row(
        "kill -9 while writing a checkpoint (during the write, before sync, before and after the rename)",
        tries,
        f"{same} of {tries} resumed runs were bit-identical to an uninterrupted run",
        "nothing" if same == tries else "a run",
    )


def full_disk(folder: Path) -> Row:
    """No more room in the middle of a checkpoint: the run stops with one line, and the file before is whole."""
    config, tries, clean, same = folder / "data" / "tiny.py", 0, 0, 0
    size = (folder / "unbroken" / LAST).stat().st_size
    for number, share in enumerate((0.2, 0.6, 0.98)):
        work, log = folder / f"full_{number}", folder / f"full_{number}.log"

        def run(work=work, share=share) -> None:
            train(load_config(config, {"train_cfg.max_iters": 5, "train_cfg.val_interval": 5}), work_dir=work)

        def limited(work=work, share=share) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), int(size * share)))
            train(load_config(config), work_dir=work, resume=True)

        assert _wait(in_child(run, log)) == 0
        assert _wait(in_child(limited, log)) == 1
        tries += 1
        said = log.read_text().strip().splitlines()[-1]
        found, _ = checkpoints.newest(work)
        left = [p for p in work.iterdir() if p.name.endswith(".tmp")]
        failed = re.search(r"iter_(\d+)\.pth: cannot be written", said)
        before = f"iter_{int(failed[1]) - 1}.pth" if failed else ""
        clean += found is not None and found.name == before and not left
        same += _finish(folder, work.name)
    return Row(
        "disk full while writing a checkpoint (limited file size)",
        tries,
        f"{clean} of {tries} stopped with a one-line error, previous checkpoint intact, no partial file; after "
        f"space was freed, {same} resumed runs were bit-identical to an uninterrupted run",
        "nothing" if same == clean == tries else "a run",
    )


def damaged_files(folder: Path, tries: int = 60) -> list[Row]:
    """Flip a bit of, or cut, the newest checkpoint: the one before is taken, or what is read is what was written."""
    rng, rows = random.Random(2), []
    source = folder / "unbroken"
    for kind in ("a flipped bit", "a cut"):
        passed, harmless = 0, 0
        for number in range(tries):
            work = folder / f"damaged_{kind[2:5]}_{number}"
            work.mkdir()
            for file in source.glob("iter_*.pth"):
                shutil.copy(file, work)
            content = bytearray((work / LAST).read_bytes())
            place = rng.randrange(len(content))
            if kind == "a cut":
                content = content[:place]
            else:
                content[place] ^= 1 << rng.randrange(8)
            (work / LAST).write_bytes(content)
            found, _ = checkpoints.newest(work)
            if found is not None and found.name != LAST:
                passed += 1
            elif found is not None:
                harmless += same_weights(found, source / LAST)
            shutil.rmtree(work)
        rows.append(
            Row(
                f"{kind} at a random position of the newest checkpoint",
                tries,
                f"{passed} detected, and the previous checkpoint used; {harmless} in unused bytes",
                "nothing" if passed + harmless == tries else f"{tries - passed - harmless} read wrong",
            )
        )
    return rows


def stopped(folder: Path) -> list[Row]:
    """SIGTERM and Ctrl-C: the state is saved, and the resumed run is the unbroken one."""
    rows, rng = [], random.Random(3)
    config = folder / "data" / "tiny.py"
    for number, label in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")):
        tries, same, seconds = 6, 0, []
        for index in range(tries):
            work = folder / f"stop_{label}_{index}"

            def run(work=work) -> None:
                options = {"train_dataloader.num_workers": 2}
                train(load_config(config, options), work_dir=work)

            pid = in_child(run, folder / "kills.log")
            while not list(work.glob("iter_*.pth")):
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 1.0))
            os.kill(pid, number)
            start = time.monotonic()
            _wait(pid)
            seconds.append(time.monotonic() - start)
            same += _finish(folder, work.name)
        rows.append(
            Row(
                f"{label} while training with 2 data workers",
                tries,
                f"saved and exited within {max(seconds):.1f} s; {same} of {tries} resumed runs were bit-identical to "
                "an uninterrupted run",
                "nothing" if same == tries else "a run",
            )
        )
    return rows
