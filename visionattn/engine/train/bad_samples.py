"""Skip training samples that cannot be read, up to a limit, and list them."""

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
    """Replaces a sample that cannot be read.

    Attributes:
        name: name of the file.
        reason: the error message.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Collected:
    """A batch and its unreadable samples.

    Attributes:
        batch: the collated samples, or None if there are none.
        bad: the skipped samples.
    """

    batch: Any
    bad: tuple[BadSample, ...]


class Collate:
    """A collate function that skips `BadSample` objects and returns them with the batch as `Collected`.

    Args:
        collate: collate function for the other samples.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Collected:
        """Collate the readable samples."""
        good = [sample for sample in samples if not isinstance(sample, BadSample)]
        bad = tuple(sample for sample in samples if isinstance(sample, BadSample))
        return Collected(self.collate(good) if good else None, bad)


class BadSamples:
    """The unreadable samples of a training run.

    Args:
        limit: maximum number of different samples; 0 stops at the first one.
        folder: work dir. The samples are listed in ``bad_samples.json`` (``bad_samples_rank_R.json`` for ranks above
            0) with their error messages and the first iteration.
        report: called with one line when a sample is first skipped.

    Attributes:
        known: files found to be unreadable before the run: error messages by absolute path.
    """

    def __init__(self, limit: int, folder: Path, report: Callable[[str], None]) -> None:
        self.limit, self.report = limit, report
        self.known: dict[str, str] = {}
        self.file = folder / (FILE if get_rank() == 0 else f"bad_samples_rank_{get_rank()}.json")
        self.found: dict[str, dict[str, Any]] = {}
        self.left_out = 0

    def take(self, collected: Any, iteration: int) -> Any:
        """Record the unreadable samples of a batch and return the batch.

        Args:
            collected: as returned by `Collate`; other batches are returned unchanged.
            iteration: number of the iteration, from 1.

        Raises:
            DataError: the limit is exceeded, or no sample of the batch is readable.
        """
        if not isinstance(collected, Collected):
            return collected
        for sample in collected.bad:
            self.left_out += 1
            if sample.name in self.found:
                continue
            self.found[sample.name] = {"reason": sample.reason, "iteration": iteration}
            write_text(self.file, json.dumps(self.found, indent=1))
            self.report(f"skipped: {sample.reason} ({len(self.found)} of at most {self.limit} bad samples)")
            if len(self.found) > self.limit:
                raise DataError(
                    f"{sample.reason}; this is bad sample number {len(self.found)}, and `max_bad_samples` is "
                    f"{self.limit}; see {self.file}"
                )
        if collected.batch is None:
            raise DataError(f"no sample in the batch of iteration {iteration} can be read; see {self.file}")
        return collected.batch

    def summary(self) -> str | None:
        """Return one line with the number of skipped samples, or None if there are none."""
        if not self.found:
            return None
        return f"skipped so far: {self.left_out} samples, {len(self.found)} different ones, listed in {self.file}"
