"""Predict on any number of files, with results in parts."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visionattn.errors import ConfigError, DataError
from visionattn.inference.bulk.inputs import Shard, bulk_entries
from visionattn.inference.bulk.parts import FORMATS, PARTS_FOLDER, PartWriter, finished_files
from visionattn.inference.file_run import FileRun, Summary, VideoOptions
from visionattn.inference.files import describe_run
from visionattn.inference.predictor import Predictor
from visionattn.inference.writing import remove_unfinished, temporary_name, to_json
from visionattn.io.inputs import Source

__all__ = ["SETTINGS_FILE", "BulkOptions", "predict_bulk", "without_index"]

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class BulkOptions:
    """Options of `predict_bulk`.

    Attributes:
        format: ``"jsonl"`` or ``"parquet"``.
        shard: the part of the inputs that this process predicts.
        skip_done: leave out inputs that are in the results already; those that failed are tried again.
        overlays: draw the predictions.
        video: options for videos.
        part_size: number of records in one file. A killed process loses at most this many.

    Raises:
        ConfigError: a value is out of range.
    """

    format: str = "jsonl"
    shard: Shard = field(default_factory=Shard)
    skip_done: bool = False
    overlays: bool = False
    video: VideoOptions = field(default_factory=VideoOptions)
    part_size: int = 1000

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"`format` must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.part_size < 1:
            raise ConfigError(f"`part_size` must be at least 1, got {self.part_size}")


def predict_bulk(
    predictor: Predictor,
    sources: Iterable[Source],
    inputs: Sequence[str | Path],
    out: Path,
    options: BulkOptions,
    about: dict[str, Any],
    on_progress: Callable[[int], None] = lambda count: None,
    on_error: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Predict on files in a memory that does not grow with their number.

    Writes ``settings.json`` (the model, its classes and all options), the records of the inputs in
    ``predictions/part-*.jsonl`` or ``.parquet``, those of inputs that could not be read in ``failed-*.jsonl``, and the
    maps of the job, whose names are the paths of the inputs. Several processes may write to one folder, each with its
    own shard.

    Args:
        predictor: the model.
        sources: the files, such as those of `visionattn.inference.job.Job.iterate`.
        inputs: the arguments from which they were found; names of results are relative to their common folder.
        out: folder of the results.
        options: the options.
        about: description of the model for the settings.
        on_progress: called with the number of inputs or frames finished since the last call.
        on_error: called with one line for each input that could not be read.

    Raises:
        DataError: a result cannot be written, or the folder has results and ``skip_done`` is off.
        ConfigError: the folder has the results of another model or other options.
    """
    name, parts = options.shard.part_name, out / PARTS_FOLDER
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"`out` {out}: the folder cannot be created ({error.strerror})") from error
    _check_settings(out, describe_run(predictor, about), any(parts.glob("part-*")))
    if not options.skip_done and any(parts.glob(f"{name}-*")):
        raise DataError(f"`out` {out}: has results already; continue with `skip_done`, or choose another folder")
    remove_unfinished(parts, name)
    done = finished_files(parts) if options.skip_done else set()
    failed = out / f"failed{name.removeprefix('part')}.jsonl"
    failed.unlink(missing_ok=True)
    run = FileRun(predictor, out, on_progress, on_error, options.overlays, options.video)

    def broken_archive(reason: str) -> None:
        run.summary.failed.append((reason.partition(":")[0], reason))
        on_error(reason)

    def is_done(label: str) -> bool:
        run.summary.skipped += label in done
        return label in done

    entries = bulk_entries(sources, inputs, options.shard, is_done, broken_archive)
    types = predictor.job.record_types
    with PartWriter(parts, name, options.format, options.part_size, types) as writer, contextlib.ExitStack() as stack:
        log = None
        for record in run.records(entries):
            record = without_index(record)
            if "error" not in record:
                writer.add(record)
                continue
            log = log or stack.enter_context(failed.open("w", encoding="utf-8"))
            log.write(f"{to_json(record)}\n")
            log.flush()
    return run.summary


def without_index(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without the index of its input, which differs between shards and runs."""
    detections = [{name: entry[name] for name in entry if name != "image_id"} for entry in record.get("detections", ())]
    kept = {name: value for name, value in record.items() if name not in ("image_id", "frame_id")}
    return kept | ({"detections": detections} if "detections" in record else {})


def _check_settings(out: Path, settings: dict[str, Any], has_results: bool) -> None:
    """Write the settings, or compare them with those of the results in the folder.

    Raises:
        ConfigError: they differ.
    """
    path = out / SETTINGS_FILE
    settings = json.loads(to_json(settings))
    if has_results and path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); choose another folder for the results") from error
        ignored = {"visionattn", "device", "batch_size"}
        if changed := [key for key in _changed(before, settings) if not ignored & set(key.split("."))]:
            raise ConfigError(
                f"`out` {out}: has results with other settings ({', '.join(changed[:4])}); choose another folder"
            )
        return
    temporary = temporary_name(path)
    temporary.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _changed(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """Yield the keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _changed(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield key
