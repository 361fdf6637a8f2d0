"""Predict on files and write the results. The files are named in the same way for all jobs.

| file | content | entry of the record |
|---|---|---|
| ``predictions.json`` | model, settings, classes, and one record per input with the prediction or the error | |
| ``report.html`` | thumbnails of all overlays with their predictions; needs no other file | |
| ``<name>.png`` | overlay: predictions drawn on the input | ``overlay`` |
| ``<name>.webm`` | overlay of a video (WebM, VP8) | ``overlay`` |
| ``<name>.frames.json`` | one record per frame of a video | ``frames_file`` |
| ``maps/<name>.png`` | class index of each pixel | ``map`` |
| ``heatmaps/<name>.png`` | 16-bit gray values; 65535 is 1 | ``heatmap`` |
| ``masks/<name>.png`` | 255 inside the mask, 0 outside | ``mask`` |
| ``panoptic/<name>.png`` | segments in the format of COCO panoptic; the record has ``segments_info`` | ``panoptic`` |
| ``<name>.html`` | 3-D view of a point cloud | ``page`` |
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionattn import __version__
from visionattn.errors import CheckpointError, ConfigError, DataError
from visionattn.inference.job import RunTotals
from visionattn.inference.predictor import Predictor
from visionattn.inference.report import REPORT_FILE, Report
from visionattn.inference.writing import MAP_FOLDERS, JsonRecords, output_names, remove_unfinished, to_json, write_png
from visionattn.io.console import count_of
from visionattn.io.inputs import Source

__all__ = ["PREDICTIONS_FILE", "Plan", "Summary", "plan_files", "predict_files"]

PREDICTIONS_FILE = "predictions.json"
BATCH_PIXELS = 64_000_000
"""Images are read ahead for one batch, but at most this many pixels."""


@dataclass(frozen=True)
class Plan:
    """The input files, the names of their results, and the folder for them."""

    sources: Sequence[Source]
    names: Sequence[str]
    out: Path


@dataclass
class Summary:
    """Totals of a run over files.

    Attributes:
        inputs: number of inputs predicted, such as images or point clouds; videos that were predicted frame by frame
            do not count.
        videos: number of videos that were predicted frame by frame.
        frames: number of their frames.
        failed: (file, reason) of each input that could not be read completely.
        found: sum of the job's counts, such as detections by class.
        seconds: inference time in seconds.
    """

    inputs: int = 0
    videos: int = 0
    frames: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    found: Counter = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def tally(self) -> RunTotals:
        """Totals for `Job.summary`."""
        return RunTotals(self.inputs + self.frames, self.found)


def plan_files(sources: Sequence[Source], out: Path) -> Plan:
    """Choose the names of the results, create their folder, and remove unfinished files of earlier runs from it.

    Raises:
        DataError: the folder cannot be created, or a result would overwrite an input.
    """
    names = output_names(sources)
    inputs = {os.path.realpath(source.path) for source in sources}
    for source, name in zip(sources, names, strict=True):
        targets = {out / f"{name}{suffix}" for suffix in ((".webm", ".png") if source.is_video else (".png",))}
        for target in sorted(t for t in targets if os.path.realpath(t) in inputs):
            raise DataError(f"`out` {out}: the results would overwrite the input {target}; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"`out` {out}: the folder cannot be created ({error.strerror})") from error
    remove_unfinished(out)
    return Plan(sources, names, out)


def predict_files(
    predictor: Predictor,
    plan: Plan,
    about: dict[str, Any],
    on_progress: Callable[[int], None] = lambda count: None,
    on_error: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Predict on every file of the plan and write the results.

    Inputs that cannot be read are reported and skipped. One batch is in memory at a time.

    Args:
        predictor: the model.
        plan: from `plan_files`.
        about: description of the model for the predictions file, such as its config and checkpoint.
        on_progress: called with the number of inputs or frames finished since the last call.
        on_error: called with one line for each input that could not be read.

    Raises:
        DataError: a result cannot be written.
    """
    job, run = predictor.job, _Run(predictor, plan, on_progress, on_error)
    own = asdict(job.own)
    head = {
        "visionattn": __version__,
        "model": about,
        "settings": asdict(predictor.options) | own,
        **job.describe_model(),
    }
    settings = {key: value for key, value in (asdict(predictor.options) | own).items() if value is not None}
    if not job.thresholded:
        del settings["score_thr"]
    facts = {**about, "visionattn": __version__, **settings}
    noun = "input" if any(source.is_video for source in plan.sources) else job.noun
    with (
        JsonRecords(plan.out / PREDICTIONS_FILE, head, job.records) as records,
        Report(plan.out / REPORT_FILE, f"Predictions for {count_of(len(plan.sources), noun)}", facts) as report,
    ):
        for record in run.records():
            records.add(record)
            report.add(record, run.overlay, run.lines)
        report.summary, report.legend = _summary_line(run.summary, job.noun), _legend(run.summary, predictor)
    return run.summary


class _Run:
    def __init__(self, predictor: Predictor, plan: Plan, on_progress: Callable, on_error: Callable) -> None:
        self.predictor, self.job, self.plan, self.summary = predictor, predictor.job, plan, Summary()
        self.on_progress, self.on_error = on_progress, on_error
        self.overlay: np.ndarray | None = None  # overlay and report lines of the latest record
        self.lines: list[str] = []

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one record per input, in order."""
        batch: list[tuple[int, Any]] = []
        pixels, limit = 0, min(self.predictor.options.batch_size, self.job.max_batch_size)
        for index, source in enumerate(self.plan.sources):
            if source.is_video and not self.job.accepts_video:
                yield from self._batch(batch)
                batch, pixels = [], 0
                yield self._video(index)
                continue
            item = self._attempt(source.path, lambda path=source.path: self.job.read(path))
            batch.append((index, item))
            pixels += item.size if isinstance(item, np.ndarray) else 0
            if len(batch) >= limit or pixels >= 3 * BATCH_PIXELS:
                yield from self._batch(batch)
                batch, pixels = [], 0
        yield from self._batch(batch)

    def _attempt(self, path: Path, action: Callable[[], Any]) -> Any:
        """Return the result of an action for an input, or the error as a `DataError`.

        Errors of the config concern all inputs and are raised. So are those of the checkpoint, such as predictions of
        NaN, unless the model works for other inputs.
        """
        try:
            return action()
        except DataError as error:
            return error
        except ConfigError:
            raise
        except CheckpointError as error:
            if not self.summary.tally.inputs and len(self.summary.failed) >= min(3, len(self.plan.sources)) - 1:
                raise
            return DataError(f"{path}: {error}")
        except Exception as error:  # for example, the image is too small for the model
            reason = " ".join(str(error).split())[:200]
            return DataError(f"{path}: prediction failed ({type(error).__name__}: {reason})")

    def _batch(self, batch: list[tuple[int, Any]]) -> Iterator[dict[str, Any]]:
        readable = [(self.plan.sources[index].path, item) for index, item in batch if not isinstance(item, DataError)]
        items = [item for _, item in readable]
        try:
            found: Any = self.predictor.predict(items)
        except Exception:  # find out which of the inputs it is
            found = [
                self._attempt(path, lambda item=item: self.predictor.predict([item])[0]) for path, item in readable
            ]
        predictions = iter(found)
        for index, item in batch:
            prediction = item if isinstance(item, DataError) else next(predictions)
            yield self._record(index, item, prediction)
            self.on_progress(1)

    def _record(self, index: int, item: Any, prediction: Any) -> dict[str, Any]:
        path, name = self.plan.sources[index].path, self.plan.names[index]
        record = {self._id: index, "file": str(path)}
        self.overlay, self.lines = None, []
        if not isinstance(prediction, DataError):
            found = self._attempt(path, lambda: (self.job.draw(item, prediction), self._found(prediction, index)))
            prediction = found if isinstance(found, DataError) else prediction
        if isinstance(prediction, DataError):
            for earlier in (f"{name}.png", *(f"{folder}/{name}.png" for folder in MAP_FOLDERS.values())):
                (self.plan.out / earlier).unlink(missing_ok=True)  # of an earlier run
            return record | {"error": self._failed(path, prediction)}
        self.overlay = found[0]
        write_png(self.plan.out / f"{name}.png", self.overlay)
        if isinstance(item, np.ndarray):
            record |= {"width": item.shape[1], "height": item.shape[0]}
        self.summary.inputs += 1
        return record | {"overlay": f"{name}.png"} | found[1] | self.job.write(self.plan.out, name, prediction)

    @property
    def _id(self) -> str:
        return f"{self.job.records.removesuffix('s')}_id"

    def _failed(self, path: Path, error: DataError) -> str:
        reason = str(error)
        self.summary.failed.append((str(path), reason))
        self.on_error(reason)
        return reason

    def _found(self, prediction: Any, index: int) -> dict[str, Any]:
        """Return the record of a prediction, and add it to the summary."""
        counts = self.job.count(prediction)
        record = {"seconds": round(prediction.seconds, 5)} | self.job.record(prediction, index)
        to_json(record)  # NaN raises an error here, where it concerns only one input
        self.lines = self.job.lines(record, counts)
        self.summary.seconds += prediction.seconds
        self.summary.found.update(counts)
        return record

    def _video(self, index: int) -> dict[str, Any]:
        path, name = self.plan.sources[index].path, self.plan.names[index]
        record: dict[str, Any] = {self._id: index, "file": str(path), "frames": 0}
        before = self.summary.seconds
        self.overlay = None
        error = self._attempt(path, lambda: self._predict_frames(path, name, record))
        if isinstance(error, DataError):
            record["error"] = self._failed(path, error)
            if not (self.plan.out / f"{name}.webm").is_file():  # the error occurred before the last frame
                record.pop("overlay", None)
                record.pop("frames_file", None)
                if (self.plan.out / (partial := f"{name}.frames.partial.json")).is_file():
                    record["frames_file"] = partial
        frames = record["frames"]
        self.lines = [f"{frames} frames; the thumbnail is the first one"] if frames else []
        return record | {"seconds": round(self.summary.seconds - before, 5)}

    def _predict_frames(self, path: Path, name: str, record: dict[str, Any]) -> None:
        """Predict on the frames of a video, write its overlay and its records, and complete its own record."""
        from visionattn.inference.video import VideoReader, VideoWriter

        with VideoReader(path, self.predictor.options.max_pixels) as reader:
            head = {"width": reader.width, "height": reader.height, "fps": reader.fps}
            record |= head | {"overlay": f"{name}.webm", "frames_file": f"{name}.frames.json"}
            for file in (self.plan.out / f"{name}.webm", self.plan.out / f"{name}.frames.json"):
                file.unlink(missing_ok=True)  # file of an earlier run
            writer = VideoWriter(self.plan.out / f"{name}.webm", reader.width, reader.height, reader.fps)
            times: deque[float] = deque()  # of the frames of the current batch
            content = JsonRecords(self.plan.out / f"{name}.frames.json", {"file": str(path), **head}, "frames")
            with writer, content as records:
                frames = _timed(reader, times)
                if self.predictor.options.channel_order == "rgb":
                    frames = (frame[..., ::-1] for frame in frames)
                for frame, prediction in enumerate(self.predictor.stream(frames)):
                    drawn = prediction.draw()
                    writer.write(drawn)
                    self.overlay = drawn if frame == 0 else self.overlay
                    found = self._found(prediction, frame)
                    records.add({"frame": frame, "time": times.popleft(), **found})
                    record["frames"] += 1
                    self.summary.frames += 1
                    self.on_progress(1)
                if not record["frames"]:
                    reader.check_complete()  # raises an error, after which no empty files remain
            self.summary.videos += 1
            reader.check_complete()


def _timed(reader: Any, times: deque[float]) -> Iterator[np.ndarray]:
    """Yield the frames of a video, and append the time stamp of each."""
    for frame in reader:
        times.append(round(reader.time, 4))
        yield frame


def _summary_line(summary: Summary, noun: str) -> str:
    """Return the summary line of the report."""
    parts = [f"{noun}s: {summary.inputs}"]
    if summary.videos:
        parts.append(f"videos: {summary.videos} with {summary.frames} frames in total")
    if summary.failed:
        parts.append(f"failed: {len(summary.failed)}, shown first")
    if total := summary.tally.inputs:
        parts.append(f"{summary.seconds / total * 1000:.0f} ms per {noun}")
    return "; ".join(parts)


def _legend(summary: Summary, predictor: Predictor) -> list[tuple[str, tuple[int, int, int], str]]:
    """Return the classes found, most frequent first, with their colors in the overlays."""
    colors, names = predictor.job.colors(), list(predictor.classes)
    found = ((name, names.index(name), text) for name, text in predictor.job.legend(summary.tally).items())
    return [(name, colors[label], text) for name, label, text in found if label in colors]
