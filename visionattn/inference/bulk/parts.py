"""Records in files of limited size, each of which appears when it is complete: JSON Lines or Parquet."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visionattn.errors import DataError, require
from visionattn.inference.writing import temporary_name, to_json

__all__ = ["FORMATS", "PARTS_FOLDER", "PartWriter", "finished_files", "read_parts", "to_table"]

FORMATS = ("jsonl", "parquet")
PARTS_FOLDER = "predictions"
COMMON = {
    "file": str, "width": int, "height": int, "seconds": float, "overlay": str, "map": str, "heatmap": str,
    "mask": str, "panoptic": str, "page": str, "frames": int, "fps": float, "frames_file": str,
}  # fmt: skip
"""Types of the entries that records of every job may have."""


class PartWriter:
    """Context manager that writes records to ``<folder>/<name>-00000.<format>``, ``<name>-00001.<format>``, ...

    A part has a temporary name until it is complete. If the block ends, also with an error, the records so far are
    written. Numbers continue after those of existing parts.

    Args:
        folder: folder of the parts.
        name: start of their names.
        format: one of `FORMATS`.
        size: number of records in a part.
        types: types of the job's entries, the columns of Parquet files; see `to_table`.

    Raises:
        DataError: a part cannot be written.
        MissingDependencyError: pyarrow, which writes Parquet files, is not installed.
    """

    def __init__(self, folder: Path, name: str, format: str, size: int, types: Mapping[str, Any]) -> None:
        self._folder, self._name, self._format, self._size = folder, name, format, size
        self._types = COMMON | dict(types)
        if format == "parquet":
            require("pyarrow")
        self._records: list[dict[str, Any]] = []
        numbers = (path.stem.rpartition("-")[2] for path in folder.glob(f"{name}-*.{format}"))
        self._next = max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)

    def __enter__(self) -> "PartWriter":
        return self

    def add(self, record: dict[str, Any]) -> None:
        """Append one record of JSON values."""
        self._records.append(record)
        if len(self._records) >= self._size:
            self._write()

    def __exit__(self, kind, error, trace) -> None:
        if self._records:
            self._write()

    def _write(self) -> None:
        path = self._folder / f"{self._name}-{self._next:05d}.{self._format}"
        temporary = temporary_name(path)
        try:
            if self._format == "jsonl":
                with temporary.open("w", encoding="utf-8") as file:
                    file.writelines(f"{to_json(record)}\n" for record in self._records)
                    file.flush()
                    os.fsync(file.fileno())
            else:
                require("pyarrow.parquet").write_table(to_table(self._records, self._types), temporary)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
        self._records, self._next = [], self._next + 1


def to_table(records: Sequence[Mapping[str, Any]], types: Mapping[str, Any]) -> Any:
    """Return a ``pyarrow.Table`` of records, with one column for each entry of ``types`` and one for all others.

    Args:
        records: records of JSON values.
        types: types by entry, see `visionattn.inference.job.Job.record_types`. Other entries are in the column
            ``other``, as a JSON object.
    """
    arrow = require("pyarrow")
    rows = []
    for record in records:
        known = {key: value for key, value in record.items() if key in types}
        other = {key: value for key, value in record.items() if key not in types}
        rows.append(known | {"other": to_json(other) if other else None})
    schema = arrow.schema([(key, _arrow_type(kind)) for key, kind in {**types, "other": str}.items()])
    return arrow.Table.from_pylist(rows, schema)


def _arrow_type(kind: Any) -> Any:
    """Return the Arrow type of an entry of `visionattn.inference.job.Job.record_types`."""
    arrow = require("pyarrow")
    if isinstance(kind, list):
        return arrow.list_(_arrow_type(kind[0]))
    if isinstance(kind, dict):
        if str in kind:
            return arrow.map_(arrow.string(), _arrow_type(kind[str]))
        return arrow.struct([(key, _arrow_type(value)) for key, value in kind.items()])
    return {int: arrow.int64(), float: arrow.float64(), str: arrow.string(), bool: arrow.bool_()}[kind]


def finished_files(folder: Path) -> set[str]:
    """Return the entry ``file`` of every record in the parts of a folder.

    Raises:
        DataError: a part cannot be read.
    """
    done: set[str] = set()
    for path in _parts(folder):
        if path.suffix == ".parquet":
            done.update(_column(path))
        else:
            done.update(record["file"] for record in _lines(path))
    return done


def read_parts(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records in the parts of a folder, of JSON Lines and of Parquet files, as they were written.

    Args:
        folder: the folder of the parts, or that of the results, which contains it.

    Raises:
        DataError: a part cannot be read.
    """
    folder = Path(folder)
    for path in _parts(folder / PARTS_FOLDER if (folder / PARTS_FOLDER).is_dir() else folder):
        yield from _lines(path) if path.suffix == ".jsonl" else _rows(path)


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.suffix[1:] in FORMATS)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it, and its inputs are predicted again") from error


def _column(path: Path) -> list[str]:
    try:
        return require("pyarrow.parquet").read_table(path, columns=["file"])["file"].to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it, and its inputs are predicted again") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for row in require("pyarrow.parquet").read_table(path).to_pylist(maps_as_pydicts="strict"):
        other = row.pop("other")
        yield _without_nulls(row) | (json.loads(other) if other else {})


def _without_nulls(value: Any) -> Any:
    """Remove the entries that a record does not have, which Parquet stores as null."""
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value
