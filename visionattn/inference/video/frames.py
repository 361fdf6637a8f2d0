"""Predict on the frames of one video, and write its overlay and its records."""

import contextlib
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from visionattn.inference.video import LiveReader, Tracker, VideoReader, VideoWriter
from visionattn.inference.writing import JsonRecords

if TYPE_CHECKING:
    from visionattn.inference.file_run import Entry, FileRun

__all__ = ["predict_frames"]


def predict_frames(run: "FileRun", entry: "Entry", record: dict[str, Any]) -> None:
    """Predict on the frames of a video, write ``<name>.webm`` and ``<name>.frames.json``, and complete its record.

    Args:
        run: the run, whose summary counts the frames.
        entry: the video.
        record: its record so far.

    Raises:
        DataError: the video cannot be read to its end.
    """
    options, settings = run.predictor.options, run.video
    source = VideoReader if entry.address is None else LiveReader
    name, overlay = entry.name, run.out / f"{entry.name}.webm"
    records_file = run.out / f"{name}.frames.json"
    with source(entry.address or entry.path, options.max_pixels) as reader:
        head = {"width": reader.width, "height": reader.height, "fps": reader.fps}
        record |= head | {"overlay": f"{name}.webm"} if run.overlays else head
        record["frames_file"] = f"{name}.frames.json"
        tracker = Tracker(reader.fps, float(run.job.class_thresholds.min())) if settings.track else None
        tracks: dict[int, str] = {}  # class name by id
        overlay.parent.mkdir(parents=True, exist_ok=True)
        for file in (overlay, records_file):
            file.unlink(missing_ok=True)  # file of an earlier run
        times: deque[float] = deque()  # of the frames of the current batch
        with contextlib.ExitStack() as stack:
            if run.overlays:
                height, width = run.job.overlay_size(reader.height, reader.width)
                writer = stack.enter_context(VideoWriter(overlay, width, height, reader.fps))
            records = stack.enter_context(JsonRecords(records_file, {"file": entry.label, **head}, "frames"))
            if entry.address is not None:  # Ctrl-C ends a stream
                stack.enter_context(contextlib.suppress(KeyboardInterrupt))
            frames = _timed(itertools.islice(reader, settings.max_frames), reader, times)
            if options.channel_order == "rgb":
                frames = (frame[..., ::-1] for frame in frames)
            stream = run.predictor.stream(frames, 1 if entry.address is not None else None)
            for frame, prediction in enumerate(stream):
                time = times.popleft()
                if tracker is not None:
                    prediction = tracker.update(prediction, time)
                    named = zip(prediction.track_ids.tolist(), prediction.names, strict=True)
                    tracks |= {track: name for track, name in named if track >= 0}
                if run.overlays:
                    drawn = prediction.draw()
                    writer.write(drawn, time)
                    run.overlay = drawn if frame == 0 else run.overlay
                found = run.found(prediction, frame)
                records.add({"frame": frame, "time": time, **found})
                record["frames"] += 1
                run.summary.frames += 1
                run.on_progress(1)
            if not record["frames"]:
                reader.check_complete()  # raises an error, after which no empty files remain
        if tracker is not None:
            record["tracks"] = dict(Counter(tracks.values()))
        run.summary.videos += 1
        if settings.max_frames is None or record["frames"] < settings.max_frames:
            reader.check_complete()


def _timed(frames: Iterable[np.ndarray], reader: Any, times: deque[float]) -> Iterator[np.ndarray]:
    """Yield the frames of a video, and append the time stamp of each."""
    for frame in frames:
        times.append(round(reader.time, 4))
        yield frame
