"""Tables of tiles that were measured to be the fastest on a GPU, as written by `benchmarks/tune.py`.

A kernel takes the tile of the table for problems like its own, and that of its estimate for others. The table of the
package is `tuned.csv` beside this file, if it exists; the environment variable ``VISIONATTN_TUNED`` names another one.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from visionattn.errors import ConfigError

__all__ = ["Choice", "Key", "bucket", "key_of", "neighborhood_tile", "read_table", "row_of", "table_path", "tuned_tile"]

TABLE = Path(__file__).with_name("tuned.csv")


class TileLike(Protocol):
    """What is compared with the table: a tile of `neighborhood.triton.tiles`."""

    shape: tuple[int, ...]
    block: int
    warps: int
    stages: int


AnyTile = TypeVar("AnyTile", bound=TileLike)


@dataclass(frozen=True)
class Key:
    """Problems that share a tile.

    Attributes:
        kernel: such as "forward" or "key"; kernels of another structure have another name.
        rank: number of axes.
        window: kernel size, such as "7x7".
        length: lengths of a dilation group, each rounded up to a power of two, such as "64x64".
        dilated: whether any dilation exceeds 1.
        dim: columns of keys and values together.
        dtype: such as "bfloat16".
        rpb: whether there is a position bias.
        capability: compute capability, such as "9.0".
    """

    kernel: str
    rank: int
    window: str
    length: str
    dilated: bool
    dim: int
    dtype: str
    rpb: bool
    capability: str


@dataclass(frozen=True)
class Choice:
    """The description of a tile: the box of positions, such as "8x8x1", positions per step, warps and stages."""

    tile: str
    block: int
    warps: int
    stages: int

    @classmethod
    def of(cls, tile: TileLike) -> "Choice":
        return cls(_product(tile.shape), tile.block, tile.warps, tile.stages)


COLUMNS = tuple(field.name for field in (*fields(Key), *fields(Choice)))
"""Columns that a table must have; others, such as times, are ignored."""


def _product(values: Sequence[int]) -> str:
    return "x".join(map(str, values))


def bucket(length: int) -> int:
    """Return a length rounded up to a power of two."""
    return 1 << max(length - 1, 0).bit_length()


def key_of(
    kernel: str,
    lengths: Sequence[int],
    window: Sequence[int],
    dilation: Sequence[int],
    dim: int,
    dtype: torch.dtype,
    rpb: bool,
    capability: tuple[int, int],
) -> Key:
    """Return the key of a problem.

    Args:
        lengths, window, dilation: one value per axis.
        dim: head dimension of keys plus that of values.
    """
    groups = [bucket(-(-n // d)) for n, d in zip(lengths, dilation, strict=True)]
    return Key(
        kernel, len(groups), _product(window), _product(groups), any(d > 1 for d in dilation), dim,
        str(dtype).removeprefix("torch."), rpb, _product(capability).replace("x", "."),
    )  # fmt: skip


def table_path() -> Path:
    """Return the path of the table in use; it need not exist."""
    return Path(os.environ.get("VISIONATTN_TUNED") or TABLE)


def _parse(row: Mapping[str, str]) -> tuple[Key, Choice]:
    def read(cls: type) -> Any:
        values = {}
        for field in fields(cls):
            text = row[field.name]
            if field.type is bool:
                values[field.name] = {"True": True, "False": False}[text]
            else:
                values[field.name] = field.type(text)
        return cls(**values)

    return read(Key), read(Choice)


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> dict[Key, Choice]:
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return dict(_parse(row) for row in csv.DictReader(file))
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is not a table of tiles with the columns {', '.join(COLUMNS)}: {error}"
            ) from error


def read_table(path: Path) -> dict[Key, Choice]:
    """Read a table; an empty one if the file does not exist.

    Raises:
        ConfigError: the file is not such a table.
    """
    try:
        return _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return {}


def row_of(key: Key, choice: Choice) -> dict[str, object]:
    """Return a row of the table."""
    return asdict(key) | asdict(choice)


def tuned_tile(tiles: Sequence[AnyTile], key: Key) -> AnyTile | None:
    """Return the tile of the table among the legal tiles of a kernel, or None.

    None if there is no entry for the key, or its tile is not legal any more, so that a table of an older version does
    no harm.
    """
    choice = read_table(table_path()).get(key)
    if choice is None:
        return None
    return next((tile for tile in tiles if Choice.of(tile) == choice), None)


def neighborhood_tile(kernel: str, tiles: Sequence[AnyTile], problem: Any, device: torch.device) -> AnyTile | None:
    """Return the tile of the table for a kernel of neighborhood attention, or None to use the estimate.

    Args:
        kernel: name of the kernel.
        tiles: its legal tiles.
        problem: a `neighborhood.triton` problem: tensors ``q``, ``v`` and ``rpb``, ``geometry`` and ``rank``.
        device: the device that runs the kernel; the tensors may be on the meta device.
    """
    geometry, rank = problem.geometry, problem.rank
    if device.type != "cuda" or any(s != 1 for s in geometry.stride) or any(geometry.causal):
        return None
    axes = [values[:rank] for values in (geometry.lengths, geometry.kernel, geometry.dilation)]
    dim = problem.q.shape[-1] + problem.v.shape[-1]
    capability = torch.cuda.get_device_capability(device)
    return tuned_tile(tiles, key_of(kernel, *axes, dim, problem.q.dtype, problem.rpb is not None, capability))
