"""Predict on files and write the results. The files are named in the same way for all jobs.

| file | content | entry of the record |
|---|---|---|
| ``predictions.json`` | model, settings, classes, and one record per input with the prediction or the error | |
| ``report.html`` | thumbnails of all overlays with their predictions; needs no other file | |
| ``<name>.png`` | overlay: predictions drawn on the input, or the restored image | ``overlay`` |
| ``<name>.webm`` | overlay of a video (WebM, VP8) | ``overlay`` |
| ``<name>.frames.json`` | one record per frame of a video | ``frames_file`` |
| ``maps/<name>.png`` | class index of each pixel | ``map`` |
| ``heatmaps/<name>.png`` | 16-bit gray values; 65535 is 1 | ``heatmap`` |
| ``masks/<name>.png`` | 255 inside the mask, 0 outside | ``mask`` |
| ``panoptic/<name>.png`` | segments in the format of COCO panoptic; the record has ``segments_info`` | ``panoptic`` |
| ``<name>.html`` | 3-D view of a point cloud | ``page`` |
| ``labels/<name>.txt`` | objects in the format of YOLO, with ``save_txt`` | ``labels`` |
| ``crops/<class>/<name>_<number>.png`` | the boxes, cut out of the image, with ``save_crops`` | ``crops`` |
| ``results.bbox.json``, ``results.segm.json`` | boxes and masks of all images as COCO results | |
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visionattn import __version__
from visionattn.errors import DataError
from visionattn.inference.file_run import Entry, FileRun, Summary, VideoOptions
from visionattn.inference.predictor import Predictor
from visionattn.inference.report import REPORT_FILE, Report
from visionattn.inference.writing import JsonRecords, output_names, remove_unfinished
from visionattn.io.console import count_of
from visionattn.io.inputs import Source

__all__ = ["PREDICTIONS_FILE", "Plan", "describe_run", "plan_files", "predict_files"]

PREDICTIONS_FILE = "predictions.json"


@dataclass(frozen=True)
class Plan:
    """The input files, the names of their results, and the folder for them."""

    sources: Sequence[Source]
    names: Sequence[str]
    out: Path


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


def describe_run(predictor: Predictor, about: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a predictions file that concern all inputs.

    Args:
        predictor: the model.
        about: description of the model, such as its config and checkpoint.
    """
    return {
        "visionattn": __version__,
        "model": about,
        "settings": asdict(predictor.options) | asdict(predictor.job.own),
        **predictor.job.describe_model(),
    }


def predict_files(
    predictor: Predictor,
    plan: Plan,
    about: dict[str, Any],
    on_progress: Callable[[int], None] = lambda count: None,
    on_error: Callable[[str], None] = lambda message: None,
    overlays: bool = True,
    video: VideoOptions | None = None,
) -> Summary:
    """Predict on every file of the plan and write the results.

    Inputs that cannot be read are reported and skipped. One batch is in memory at a time.

    Args:
        predictor: the model.
        plan: from `plan_files`.
        about: description of the model for the predictions file, such as its config and checkpoint.
        on_progress: called with the number of inputs or frames finished since the last call.
        on_error: called with one line for each input that could not be read.
        overlays: draw the predictions and write ``report.html``.
        video: options for videos.

    Raises:
        DataError: a result cannot be written.
    """
    job = predictor.job
    run = FileRun(predictor, plan.out, on_progress, on_error, overlays, video)
    entries = (
        Entry(index, source.path, name, source.label, source.is_video, source.address)
        for index, (source, name) in enumerate(zip(plan.sources, plan.names, strict=True))
    )
    settings = asdict(predictor.options) | asdict(job.own)
    settings = {key: value for key, value in settings.items() if value is not None}
    if not job.thresholded:
        del settings["score_thr"]
    facts = {
        **{key: value for key, value in about.items() if not isinstance(value, dict)},
        "visionattn": __version__,
        **settings,
    }
    noun = "input" if any(source.is_video for source in plan.sources) else job.noun
    title = f"Predictions for {count_of(len(plan.sources), noun)}"
    with contextlib.ExitStack() as stack:
        head = describe_run(predictor, about)
        records = stack.enter_context(JsonRecords(plan.out / PREDICTIONS_FILE, head, job.records))
        report = stack.enter_context(Report(plan.out / REPORT_FILE, title, facts)) if overlays else None
        add = stack.enter_context(job.run_files(plan.out))
        for record in run.records(entries, len(plan.sources)):
            records.add(record)
            add(record)
            if report is not None:
                report.add(record, run.overlay, run.lines)
        if report is not None:
            report.summary, report.legend = _summary_line(run.summary, job.noun), _legend(run.summary, predictor)
    return run.summary


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
