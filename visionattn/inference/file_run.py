"""Predict on files one after the other; errors of single files are reported and the others are predicted."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import CheckpointError, ConfigError, DataError
from visionattn.inference.job import RunTotals
from visionattn.inference.predictor import Predictor
from visionattn.inference.writing import MAP_FOLDERS, to_json, write_png

__all__ = ["Entry", "FileRun", "Summary", "VideoOptions"]

BATCH_PIXELS = 64_000_000
"""Images are read ahead for one batch, but at most this many pixels."""


@dataclass(frozen=True)
class VideoOptions:
    """Options for videos.

    Attributes:
        track: objects have the same id in all frames, see `visionattn.inference.video.Tracker`.
        max_frames: number of frames after which a video ends; None is all.
    """

    track: bool = False
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError(f"`max_frames` must be at least 1, got {self.max_frames}")


@dataclass(frozen=True)
class Entry:
    """One input of a run.

    Attributes:
        index: its position, the id in the records.
        path: the file.
        name: name of its results, without suffix; it may have folders.
        label: its name in records and messages.
        is_video: it is a video.
        address: index of a camera or address of a stream, which is predicted until it ends or Ctrl-C.
    """

    index: int
    path: Path
    name: str
    label: str
    is_video: bool = False
    address: str | None = None


@dataclass
class Summary:
    """Totals of a run over files.

    Attributes:
        inputs: number of inputs predicted, such as images or point clouds; videos that were predicted frame by frame
            do not count.
        videos: number of videos that were predicted frame by frame.
        frames: number of their frames.
        skipped: number of inputs that were left out, as the results have them already.
        failed: (file, reason) of each input that could not be read completely.
        found: sum of the job's counts, such as detections by class.
        seconds: inference time in seconds.
    """

    inputs: int = 0
    videos: int = 0
    frames: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    found: Counter = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def tally(self) -> RunTotals:
        """Totals for `Job.summary`."""
        return RunTotals(self.inputs + self.frames, self.found)


class FileRun:
    """Predicts on files one after the other and writes the result files of each.

    Args:
        predictor: the model.
        out: folder of the results.
        on_progress: called with the number of inputs or frames finished since the last call.
        on_error: called with one line for each input that could not be read.
        overlays: draw the predictions.
        video: options for videos.

    Attributes:
        summary: totals so far.
        video: options for videos.
        overlay: overlay of the latest record, BGR uint8 ``[H, W, 3]``, or None.
        lines: report lines of the latest record.
    """

    def __init__(
        self,
        predictor: Predictor,
        out: Path,
        on_progress: Callable,
        on_error: Callable,
        overlays: bool = True,
        video: VideoOptions | None = None,
    ) -> None:
        self.video = video or VideoOptions()
        if self.video.track and not predictor.job.trackable:
            raise ConfigError(f"`track` is not supported for {predictor.job.name} models; it requires boxes")
        self.predictor, self.job, self.out, self.summary = predictor, predictor.job, out, Summary()
        self.on_progress, self.on_error = on_progress, on_error
        self.overlays = overlays or self.job.overlay_is_result
        self.overlay: np.ndarray | None = None
        self.lines: list[str] = []
        self._total: float = float("inf")

    def records(self, entries: Iterable[Entry], total: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield one record per input, in order.

        Args:
            entries: the inputs; each file is read before the next entry is requested.
            total: their number, if it is known.
        """
        self._total = self._total if total is None else total
        batch: list[tuple[Entry, Any]] = []
        pixels, limit = 0, min(self.predictor.options.batch_size, self.job.max_batch_size)
        for entry in entries:
            if entry.is_video and not self.job.accepts_video:
                yield from self._batch(batch)
                batch, pixels = [], 0
                yield self._video(entry)
                continue
            item = self._attempt(entry, lambda path=entry.path: self.job.read(path))
            batch.append((entry, item))
            pixels += item.size if isinstance(item, np.ndarray) else 0
            if len(batch) >= limit or pixels >= 3 * BATCH_PIXELS:
                yield from self._batch(batch)
                batch, pixels = [], 0
        yield from self._batch(batch)

    def _attempt(self, entry: Entry, action: Callable[[], Any]) -> Any:
        """Return the result of an action for an input, or the error as a `DataError`.

        Errors of the config concern all inputs and are raised. So are those of the checkpoint, such as predictions of
        NaN, unless the model works for other inputs.
        """
        try:
            return action()
        except DataError as error:
            return DataError(str(error).replace(str(entry.path), entry.label))
        except ConfigError:
            raise
        except CheckpointError as error:
            if not self.summary.tally.inputs and len(self.summary.failed) >= min(3, self._total) - 1:
                raise
            return DataError(f"{entry.label}: {error}")
        except Exception as error:  # for example, the image is too small for the model
            reason = " ".join(str(error).split())[:200]
            return DataError(f"{entry.label}: prediction failed ({type(error).__name__}: {reason})")

    def _batch(self, batch: list[tuple[Entry, Any]]) -> Iterator[dict[str, Any]]:
        readable = [(entry, item) for entry, item in batch if not isinstance(item, DataError)]
        items = [item for _, item in readable]
        try:
            found: Any = self.predictor.predict(items)
        except Exception:  # find out which of the inputs it is
            found = [
                self._attempt(entry, lambda item=item: self.predictor.predict([item])[0]) for entry, item in readable
            ]
        predictions = iter(found)
        for entry, item in batch:
            prediction = item if isinstance(item, DataError) else next(predictions)
            yield self._record(entry, item, prediction)
            self.on_progress(1)

    def _record(self, entry: Entry, item: Any, prediction: Any) -> dict[str, Any]:
        record = {self._id: entry.index, "file": entry.label}
        self.overlay, self.lines = None, []
        if not isinstance(prediction, DataError):
            found = self._attempt(entry, lambda: (self._drawn(item, prediction), self.found(prediction, entry.index)))
            prediction = found if isinstance(found, DataError) else prediction
        if isinstance(prediction, DataError):
            for earlier in (f"{entry.name}.png", *(f"{folder}/{entry.name}.png" for folder in MAP_FOLDERS.values())):
                (self.out / earlier).unlink(missing_ok=True)  # of an earlier run
            return record | {"error": self._failed(entry, prediction)}
        self.overlay, values = found
        if isinstance(item, np.ndarray):
            record |= {"width": item.shape[1], "height": item.shape[0]}
        if self.overlay is not None:
            write_png(self.out / f"{entry.name}.png", self.overlay)
            record["overlay"] = f"{entry.name}.png"
        self.summary.inputs += 1
        return record | values | self.job.write(self.out, entry.name, self.job.attach(prediction, item))

    def _drawn(self, item: Any, prediction: Any) -> np.ndarray | None:
        return self.job.draw(item, prediction) if self.overlays else None

    @property
    def _id(self) -> str:
        return f"{self.job.records.removesuffix('s')}_id"

    def _failed(self, entry: Entry, error: DataError) -> str:
        reason = str(error)
        self.summary.failed.append((entry.label, reason))
        self.on_error(reason)
        return reason

    def found(self, prediction: Any, index: int) -> dict[str, Any]:
        """Return the record of a prediction, and add it to the summary."""
        counts = self.job.count(prediction)
        record = {"seconds": round(prediction.seconds, 5)} | self.job.record(prediction, index)
        to_json(record)  # NaN raises an error here, where it concerns only one input
        self.lines = self.job.lines(record, counts)
        self.summary.seconds += prediction.seconds
        self.summary.found.update(counts)
        return record

    def _video(self, entry: Entry) -> dict[str, Any]:
        name, record = entry.name, {self._id: entry.index, "file": entry.label, "frames": 0}
        before = self.summary.seconds
        self.overlay = None
        error = self._attempt(entry, lambda: self._frames(entry, record))
        if isinstance(error, DataError):
            record["error"] = self._failed(entry, error)
            if not (self.out / f"{name}.frames.json").is_file():  # the error occurred before the last frame
                record.pop("overlay", None)
                record.pop("frames_file", None)
                if (self.out / (partial := f"{name}.frames.partial.json")).is_file():
                    record["frames_file"] = partial
        frames = record["frames"]
        self.lines = [f"{frames} frames; the thumbnail is the first one"] if frames else []
        return record | {"seconds": round(self.summary.seconds - before, 5)}

    def _frames(self, entry: Entry, record: dict[str, Any]) -> None:
        from visionattn.inference.video.frames import predict_frames

        predict_frames(self, entry, record)
