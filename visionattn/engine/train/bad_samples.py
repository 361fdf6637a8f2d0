"""Training samples that cannot be read: left out of their batches, listed, and limited in number."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank

from visionattn.engine.compat.checkpoint import write_text
from visionattn.errors import DataError

__all__ = ["FILE", "BadSample", "BadSamples", "Collate", "Collected"]

FILE = "bad_samples.json"


@dataclass(frozen=True)
class BadSample:
    """In a sample's place where it cannot be read: the file's name, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Collected:
    """A batch, None where nothing is left of it, and what was left out."""

    batch: Any
    bad: tuple[BadSample, ...]


class Collate:
    """A collate function that leaves out bad samples and passes on which they were; works in data workers too."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Collected:
        """Collate what can be used."""
        good = [sample for sample in samples if not isinstance(sample, BadSample)]
        bad = tuple(sample for sample in samples if isinstance(sample, BadSample))
        return Collected(self.collate(good) if good else None, bad)


class BadSamples:
    """The account of a run's bad samples.

    Args:
        limit: how many different ones the run may meet; 0 stops at the first.
        folder: the work dir; ``bad_samples.json`` there (``bad_samples_rank_R.json`` of the other processes) lists
            them with the reason and the first iteration.
        report: told one line of each when it is first met.

    Attributes:
        known: bad files known before the run begins, absolute path to reason.
    """

    def __init__(self, limit: int, folder: Path, report: Callable[[str], None]) -> None:
        self.limit, self.report = limit, report
        self.known: dict[str, str] = {}
        self.file = folder / (FILE if get_rank() == 0 else f"bad_samples_rank_{get_rank()}.json")
        self.found: dict[str, dict[str, Any]] = {}
        self.left_out = 0

    def take(self, collected: Any, iteration: int) -> Any:
        """The batch without its bad samples, which are put on record.

        Raises:
            DataError: there are more different ones than the limit, or nothing is left of the batch.
        """
        if not isinstance(collected, Collected):
            return collected
        for sample in collected.bad:
            self.left_out += 1
            if sample.name in self.found:
                continue
            self.found[sample.name] = {"reason": sample.reason, "iteration": iteration}
            write_text(self.file, json.dumps(self.found, indent=1))
            self.report(f"left out: {sample.reason} ({len(self.found)} of at most {self.limit} bad samples)")
            if len(self.found) > self.limit:
                raise DataError(
                    f"{sample.reason}; that is the {len(self.found)}th bad sample, and --max-bad-samples is "
                    f"{self.limit}; see {self.file}"
                )
        if collected.batch is None:
            raise DataError(f"no sample of the batch of iteration {iteration} can be read; see {self.file}")
        return collected.batch

    def summary(self) -> str | None:
        """One line on what has been left out so far, or None."""
        if not self.found:
            return None
        return f"left out so far: {self.left_out} samples, {len(self.found)} different ones, listed in {self.file}"
