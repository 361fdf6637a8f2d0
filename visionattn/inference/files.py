"""Run a predictor over files and write what it finds: overlays, raw maps, and JSON.

In the results' folder:

- ``<name>.png``: an image's overlay; ``<name>.mp4``: a video's.
- ``maps/<name>.png``: from models that classify pixels, the class number of each pixel.
- ``panoptic/<name>.png``: from panoptic models, the segments in the colours of COCO's panoptic format.
- ``heat/``, ``maps/``, ``masks/``: from forgery models, see `visionattn.heads.forgery.results`.
- ``<name>.png`` of a video: from models of actions, the frames that were looked at, with the best class.
- ``predictions.json``: one record per input, under "images", with its boxes and masks as COCO results or,
  where it could not be read, the reason.
- ``<name>.frames.json``: the same of each frame of a video.
- ``report.html``: thumbnails of all overlays with what was found, one file that needs no other.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionattn import __version__
from visionattn.data.panoptic import id2rgb
from visionattn.errors import DataError
from visionattn.heads.action.results import action_record, draw_action
from visionattn.heads.forgery.results import forgery_record, write_forgery_maps
from visionattn.inference.heatmap import heatmap_to_png
from visionattn.inference.predictor import Predictor
from visionattn.inference.report import REPORT_FILE, Report
from visionattn.inference.results import Prediction
from visionattn.inference.writing import JsonRecords, output_names, write_png
from visionattn.io.images import read_image
from visionattn.io.inputs import Source

__all__ = ["PREDICTIONS_FILE", "Plan", "Summary", "plan_files", "predict_files"]

PREDICTIONS_FILE = "predictions.json"
BATCH_PIXELS = 64_000_000
"""Images are read ahead for one batch, but no further than this."""


@dataclass(frozen=True)
class Plan:
    """Which input's results go under which name in which folder."""

    sources: Sequence[Source]
    names: Sequence[str]
    out: Path


@dataclass
class Summary:
    """What came of a run over files.

    Attributes:
        images, videos, frames: how many were predicted on; a video's frames do not count as images.
        failed: (file, reason) of each input that could not be read, or not to its end.
        found: number of boxes by class; from models that classify pixels, share of all pixels by class.
        seconds: time in the model.
    """

    images: int = 0
    videos: int = 0
    frames: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    found: Counter = field(default_factory=Counter)
    seconds: float = 0.0


def plan_files(sources: Sequence[Source], out: Path) -> Plan:
    """Choose the results' names and make their folder.

    Raises:
        DataError: the folder cannot be made, or a result would overwrite an input.
    """
    names = output_names(sources)
    inputs = {os.path.realpath(source.path) for source in sources}
    for source, name in zip(sources, names, strict=True):
        targets = {out / f"{name}{suffix}" for suffix in ((".mp4", ".png") if source.is_video else (".png",))}
        for target in sorted(t for t in targets if os.path.realpath(t) in inputs):
            raise DataError(f"--out {out}: the results would overwrite the input {target}; name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: the folder cannot be made ({error.strerror})") from error
    return Plan(sources, names, out)


def predict_files(
    predictor: Predictor,
    plan: Plan,
    about: dict[str, Any],
    on_progress: Callable[[int], None] = lambda count: None,
    on_error: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Predict on every file of the plan and write the results.

    An input that cannot be read is reported and passed over. Memory holds one batch at a time.

    Args:
        predictor: the model.
        plan: from `plan_files`.
        about: what the predictions file says of the model, such as its config and checkpoint.
        on_progress: called with the number of images or frames done since the last call.
        on_error: called with one line for each input that could not be read.

    Raises:
        DataError: a result cannot be written.
    """
    run = _Run(predictor, plan, on_progress, on_error)
    ids = predictor.category_ids or range(1, len(predictor.classes) + 1)
    head = {
        "visionattn": __version__,
        "model": about,
        "settings": asdict(predictor.options),
        "categories": [{"id": i, "name": n} for i, n in zip(ids, predictor.classes, strict=True)],
    }
    settings = {k: v for k, v in asdict(predictor.options).items() if v is not None}
    if predictor.task in ("semantic", "action"):
        del settings["score_thr"]  # nothing is left out by its score
    facts = {**about, "visionattn": __version__, **settings}
    with (
        JsonRecords(plan.out / PREDICTIONS_FILE, head, "images") as records,
        Report(plan.out / REPORT_FILE, f"Predictions for {len(plan.sources)} inputs", facts) as report,
    ):
        for record in run.records():
            records.add(record)
            report.add(record, run.overlay, _found_lines(record, predictor.options.score_thr, run.counts))
        report.summary, report.legend = _summary_line(run.summary), _legend(run.summary, predictor)
    return run.summary


class _Run:
    def __init__(self, predictor: Predictor, plan: Plan, on_progress: Callable, on_error: Callable):
        self.predictor, self.plan, self.summary = predictor, plan, Summary()
        self.on_progress, self.on_error = on_progress, on_error
        self.overlay: np.ndarray | None = None  # of the record given last
        self.counts: Counter = Counter()  # of its boxes by class

    def records(self) -> Iterator[dict[str, Any]]:
        """One record per input, in order."""
        batch: list[tuple[int, np.ndarray | DataError]] = []
        pixels = 0
        for index, source in enumerate(self.plan.sources):
            if source.is_video:
                yield from self._images(batch)
                batch, pixels = [], 0
                yield self._action(index) if self.predictor.task == "action" else self._video(index)
                continue
            image = self._read(source.path)
            batch.append((index, image))
            pixels += 0 if isinstance(image, DataError) else image.shape[0] * image.shape[1]
            if len(batch) >= self.predictor.options.batch_size or pixels >= BATCH_PIXELS:
                yield from self._images(batch)
                batch, pixels = [], 0
        yield from self._images(batch)

    def _read(self, path: Path) -> np.ndarray | DataError:
        if self.predictor.task == "action":
            return DataError(f"{path}: is a picture; this model classifies videos")
        try:
            return read_image(path, self.predictor.options.max_pixels)
        except DataError as error:
            return error

    def _images(self, batch: list[tuple[int, np.ndarray | DataError]]) -> Iterator[dict[str, Any]]:
        predictions = iter(self.predictor.predict([x for _, x in batch if not isinstance(x, DataError)]))
        for index, image in batch:
            path, name = self.plan.sources[index].path, self.plan.names[index]
            record = {"image_id": index, "file": str(path)}
            self.overlay, self.counts = None, Counter()
            if isinstance(image, DataError):
                record["error"] = self._failed(path, image)
            else:
                prediction = next(predictions)
                self.overlay, self.counts = prediction.draw(image), Counter(prediction.names)
                write_png(self.plan.out / f"{name}.png", self.overlay)
                record |= _size(prediction) | {"overlay": f"{name}.png"} | self._found(prediction, index)
                if prediction.forgery_score is not None:
                    record |= write_forgery_maps(self.plan.out, name, prediction)
                elif prediction.heatmap is not None:
                    record["heatmap"] = self._write_heatmap(name, prediction)
                elif prediction.semantic is not None:
                    record["map"] = self._write_map(name, prediction)
                if prediction.panoptic is not None:
                    record |= self._write_panoptic(name, prediction)
                self.summary.images += 1
            yield record
            self.on_progress(1)

    def _failed(self, path: Path, error: DataError) -> str:
        reason = str(error)
        self.summary.failed.append((str(path), reason))
        self.on_error(reason)
        return reason

    def _found(self, prediction: Prediction, image_id: int) -> dict[str, Any]:
        """What a record says of a prediction; adds to the summary."""
        self.summary.seconds += prediction.seconds
        record: dict[str, Any] = {"seconds": round(prediction.seconds, 5)}
        if self.predictor.task == "forgery":
            record |= forgery_record(prediction)
            self.summary.found["forged" if record["forged"] else "authentic"] += 1
            return record
        if self.predictor.task != "semantic":
            self.summary.found.update(prediction.names)
            record["detections"] = prediction.to_coco(image_id)
        if prediction.image_scores is not None:
            scores = zip(self.predictor.classes, prediction.image_scores.tolist(), strict=True)
            record["image_scores"] = {name: round(score, 5) for name, score in scores}
        if prediction.semantic is not None:
            values, counts = np.unique(prediction.semantic, return_counts=True)
            classes = self.predictor.classes
            shares = {
                classes[value]: round(count / prediction.semantic.size, 5)
                for value, count in zip(values.tolist(), counts.tolist(), strict=True)
                if 0 <= value < len(classes)
            }
            record["pixel_shares"] = shares
            if self.predictor.task == "semantic":
                self.summary.found.update(shares)
        return record

    def _write_map(self, name: str, prediction: Prediction) -> str:
        folder = self.plan.out / "maps"
        folder.mkdir(exist_ok=True)
        kind = np.uint8 if prediction.semantic.max() <= 255 else np.uint16
        write_png(folder / f"{name}.png", prediction.semantic.astype(kind))
        return f"maps/{name}.png"

    def _write_panoptic(self, name: str, prediction: Prediction) -> dict[str, Any]:
        """The segments in COCO's panoptic format: a map whose colours are ids, and what the ids are."""
        folder = self.plan.out / "panoptic"
        folder.mkdir(exist_ok=True)
        found = prediction.panoptic
        write_png(folder / f"{name}.png", id2rgb(found.segments)[..., ::-1])
        ids = prediction.category_ids or range(1, len(prediction.classes) + 1)
        areas = np.bincount(found.segments.ravel(), minlength=len(found.labels) + 1)[1:]
        segments = [
            {"id": number, "category_id": int(ids[label]), "area": int(area)}
            for number, (label, area) in enumerate(zip(found.labels, areas, strict=True), 1)
        ]
        return {"panoptic": f"panoptic/{name}.png", "segments_info": segments}

    def _write_heatmap(self, name: str, prediction: Prediction) -> str:
        folder = self.plan.out / "heatmaps"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{name}.png", heatmap_to_png(prediction.heatmap))
        return f"heatmaps/{name}.png"

    def _action(self, index: int) -> dict[str, Any]:
        path, name = self.plan.sources[index].path, self.plan.names[index]
        record: dict[str, Any] = {"image_id": index, "file": str(path)}
        self.overlay, self.counts = None, Counter()
        try:
            result = self.predictor.predict_video(path)
        except DataError as error:
            return record | {"error": self._failed(path, error)}
        record |= {"overlay": f"{name}.png"} | action_record(result, self.predictor.classes)
        self.overlay = draw_action(result, f"{record['action']} {record['action_score']:.2f}")
        write_png(self.plan.out / f"{name}.png", self.overlay)
        self.summary.found[record["action"]] += 1
        self.summary.videos += 1
        self.summary.frames += sum(map(len, record["frames"]))
        self.summary.seconds += record["seconds"]
        self.on_progress(1)
        return record

    def _video(self, index: int) -> dict[str, Any]:
        from visionattn.inference.video import VideoReader, VideoWriter

        path, name = self.plan.sources[index].path, self.plan.names[index]
        record: dict[str, Any] = {"image_id": index, "file": str(path)}
        before, frames = self.summary.seconds, 0
        self.overlay, self.counts = None, Counter()
        try:
            with VideoReader(path, self.predictor.options.max_pixels) as reader:
                size = {"width": reader.width, "height": reader.height}
                record |= size | {
                    "fps": reader.fps,
                    "overlay": f"{name}.mp4",
                    "frames_file": f"{name}.frames.json",
                }
                writer = VideoWriter(self.plan.out / f"{name}.mp4", reader.width, reader.height, reader.fps)
                head = {"file": str(path), **size, "fps": reader.fps}
                with writer, JsonRecords(self.plan.out / f"{name}.frames.json", head, "frames") as records:
                    for frame, prediction in enumerate(self.predictor.stream(reader)):
                        drawn = prediction.draw()
                        writer.write(drawn)
                        if self.overlay is None:
                            self.overlay = drawn
                        found = self._found(prediction, frame)
                        records.add({"frame": frame, "time": round(frame / reader.fps, 4), **found})
                        frames += 1
                        self.summary.frames += 1
                        self.on_progress(1)
                self.summary.videos += 1
                reader.check_complete()
        except DataError as error:
            record["error"] = self._failed(path, error)
        return record | {"frames": frames, "seconds": round(self.summary.seconds - before, 5)}


def _found_lines(record: dict[str, Any], score_thr: float, counts: Counter) -> list[str]:
    """What the report says below a thumbnail."""
    lines = []
    if "forgery_score" in record:
        verdict = "forged" if record["forged"] else "authentic"
        lines.append(f"{verdict}, score {record['forgery_score']:.3f}, {record['forged_share']:.1%} marked")
    if "detections" in record:
        names = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        lines.append(names or f"nothing with a score of at least {score_thr:g}")
    if "action" in record:
        pose = "with key points" if record["with_pose"] else "without key points"
        lines.append(f"{record['action']}, score {record['action_score']:.3f}, {pose}")
    elif "frames" in record:
        lines.append(f"{record['frames']} frames, the first is shown")
    shares = sorted(record.get("pixel_shares", {}).items(), key=lambda item: -item[1])
    if shares:
        lines.append(", ".join(f"{name} {share:.1%}" for name, share in shares))
    return lines


def _summary_line(summary: Summary) -> str:
    """What the report says of the whole run."""
    pictures = summary.images + summary.frames
    parts = [f"images: {summary.images}"]
    if summary.videos:
        parts.append(f"videos: {summary.videos}, of {summary.frames} frames in all")
    if summary.failed:
        parts.append(f"failed: {len(summary.failed)}, shown first")
    if pictures:
        parts.append(f"{summary.seconds / pictures * 1000:.0f} ms per image in the model")
    return "; ".join(parts)


def _legend(summary: Summary, predictor: Predictor) -> list[tuple[str, tuple[int, int, int], str]]:
    """The classes found, most of them first, with their colours in the overlays."""
    from visionattn.inference.draw import map_colors

    colors = map_colors(predictor.classes, predictor.colors)
    pictures = max(1, summary.images + summary.frames)
    shares = predictor.task == "semantic"
    found = ((name, value, predictor.classes.index(name)) for name, value in summary.found.most_common())
    return [
        (name, colors[label], f"{value / pictures:.1%}" if shares else str(value))
        for name, value, label in found
        if label in colors
    ]


def _size(prediction: Prediction) -> dict[str, int]:
    return {"width": prediction.image_size[1], "height": prediction.image_size[0]}
