"""The score thresholds that ``visionattn test --report`` finds: written beside its results, read by `Predictor`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionattn.errors import ConfigError, DataError
from visionattn.io.json import read_json

__all__ = ["THRESHOLDS_FILE", "find_thresholds", "write_thresholds"]

THRESHOLDS_FILE = "thresholds.json"


def write_thresholds(
    folder: Path, thresholds: Mapping[str, float | None], criterion: str, record: Mapping[str, Any]
) -> Path:
    """Write ``thresholds.json``.

    Args:
        folder: folder of the results of the test.
        thresholds: thresholds by name, see `Findings`.
        criterion: what they maximize.
        record: contents of ``results.json``, which describe the data and the checkpoint.
    """
    about = {key: record[key] for key in ("checkpoint", "checkpoint_sha256", "config", "dataset", "date")}
    path = folder / THRESHOLDS_FILE
    path.write_text(json.dumps({"score_thr": dict(thresholds), "criterion": criterion, **about}, indent=1) + "\n")
    return path


def find_thresholds(source: str, checkpoint: str | os.PathLike | None) -> dict[str, float]:
    """Read thresholds.

    Args:
        source: ``"best"`` for those of the checkpoint, which are in the folder ``test`` beside it; or a file.
        checkpoint: the checkpoint, or None for models that are not loaded from a checkpoint.

    Returns:
        Thresholds by name, without names for which the test found none.

    Raises:
        ConfigError: there are no thresholds, or they belong to another checkpoint.
        DataError: the file cannot be read, or has no thresholds.
    """
    if source == "best":
        if checkpoint is None:
            raise ConfigError(
                f"`score_thr` 'best' requires a training run; give the file {THRESHOLDS_FILE} of its test"
            )
        path = Path(checkpoint).parent / "test" / THRESHOLDS_FILE
        if not path.is_file():
            if path.with_name("analysis.json").is_file():
                raise ConfigError(f"`score_thr` 'best': {path.parent} has a report without score thresholds")
            raise ConfigError(
                f"`score_thr` 'best': {path} does not exist; visionattn test --report writes it for the run of a "
                f"detector or a forgery model; for other output folders, give their {THRESHOLDS_FILE}"
            )
    else:
        path = Path(source)
    content = _read(path)
    if source == "best":
        from visionattn.engine.train.record import file_sha256

        if content.get("checkpoint_sha256") != file_sha256(checkpoint):
            raise ConfigError(
                f"{path}: is of another checkpoint, {content.get('checkpoint')}; run visionattn test --report again"
            )
    return {name: float(value) for name, value in content["score_thr"].items() if value is not None}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"`score_thr` {path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"`score_thr` {path}: not a readable JSON file ({error})") from error
    found = content.get("score_thr") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(v is None or isinstance(v, (int, float)) for v in found.values()):
        raise DataError(f"`score_thr` {path}: has no thresholds; visionattn test --report writes {THRESHOLDS_FILE}")
    return content
