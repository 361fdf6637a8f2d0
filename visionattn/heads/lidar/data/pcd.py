"""The Point Cloud Library's PCD files (version 0.7): header, ASCII, binary and LZF-compressed data.

What the header says is compared with what the file holds before anything of that size is made.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.errors import DataError

__all__ = ["PcdHeader", "lzf_decompress", "parse_header", "read_pcd"]

HEADER_BYTES = 65536
MAX_COUNT = 65536
"""Values of one field in a point; descriptors have some hundreds."""
LONGEST_NUMBER = 64
_KINDS = {("F", 4): "<f4", ("F", 8): "<f8"} | {
    (kind, size): f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)
}
_LZF_RATIO = 88  # 3 bytes of a reference give at most 264


@dataclass(frozen=True)
class PcdHeader:
    """What comes before the data.

    Attributes:
        fields: name of each field; ``_`` is padding.
        dtypes: NumPy's name of each field's type.
        counts: values of each field in a point.
        points: how many there are.
        data: ``"ascii"``, ``"binary"`` or ``"binary_compressed"``.
        offset: where the data begins in the file.
    """

    fields: tuple[str, ...]
    dtypes: tuple[str, ...]
    counts: tuple[int, ...]
    points: int
    data: str
    offset: int

    @property
    def step(self) -> int:
        """Bytes of a point in binary data."""
        return sum(np.dtype(d).itemsize * c for d, c in zip(self.dtypes, self.counts, strict=True))


def read_pcd(path: str | Path) -> dict[str, np.ndarray]:
    """The fields of a PCD file by name, ``[N]`` each, in the file's types; ASCII gives float64.

    Padding and fields of several values for each point are left out.

    Raises:
        DataError: the file is missing, is no PCD file, is cut short, or its header and data contradict each other.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    header = parse_header(content, path)
    body = memoryview(content)[header.offset :]
    if header.data == "ascii":
        columns = _ascii(body, header, path)
    elif header.data == "binary":
        columns = _binary(body, header, path)
    else:
        columns = _compressed(body, header, path)
    names = [n for n, c in zip(header.fields, header.counts, strict=True) if n != "_" and c == 1]
    return {name: columns[name] for name in names}


def parse_header(content: bytes, path: str | Path = "PCD file") -> PcdHeader:
    """Read the header at the beginning of a file's bytes.

    Raises:
        DataError: it is none, or is incomplete.
    """
    entries: dict[str, list[str]] = {}
    offset = 0
    while "DATA" not in entries:
        end = content.find(b"\n", offset, HEADER_BYTES)
        if end < 0:
            raise DataError(f"{path}: is no PCD file: its header has no DATA line")
        words = content[offset:end].decode("ascii", "replace").split()
        offset = end + 1
        if words and not words[0].startswith("#"):
            entries[words[0].upper()] = words[1:]
    try:
        fields = tuple(entries["FIELDS"])
        sizes = [int(s) for s in entries["SIZE"]]
        counts = tuple(int(c) for c in entries.get("COUNT", ["1"] * len(fields)))
        dtypes = tuple(_KINDS[kind.upper(), size] for kind, size in zip(entries["TYPE"], sizes, strict=True))
        width, height = int(entries["WIDTH"][0]), int(entries.get("HEIGHT", ["1"])[0])
        points = int(entries["POINTS"][0]) if "POINTS" in entries else width * height
        data = entries["DATA"][0].lower()
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"{path}: its PCD header is malformed ({type(error).__name__}: {error})") from error
    fit = len(fields) == len(dtypes) == len(counts) and all(0 < count <= MAX_COUNT for count in counts)
    if not fields or not fit or min(width, height, points) < 0:
        raise DataError(f"{path}: its PCD header is malformed (FIELDS, SIZE, TYPE and COUNT do not fit together)")
    if points != width * height:
        raise DataError(f"{path}: its PCD header says POINTS {points}, but WIDTH {width} x HEIGHT {height}")
    if data not in ("ascii", "binary", "binary_compressed"):
        raise DataError(f"{path}: DATA {data!r} must be ascii, binary or binary_compressed")
    return PcdHeader(fields, dtypes, counts, points, data, offset)


def lzf_decompress(data: bytes | memoryview, size: int) -> bytes:
    """Undo LibLZF's compression.

    A control byte below 32 is followed by that many literal bytes plus one; any other has a length in its upper
    three bits (7: a further byte is added) and, with the next byte, how far back to copy from.

    Args:
        data: compressed.
        size: of the result.

    Raises:
        ValueError: the data is cut short, points before its beginning, or gives another size.
    """
    if size > _LZF_RATIO * len(data):
        raise ValueError(f"{len(data)} bytes cannot hold {size}")
    data, out, at, end = bytes(data), bytearray(), 0, len(data)
    try:
        while at < end:
            control = data[at]
            at += 1
            if control < 32:
                literal = data[at : at + control + 1]
                if len(literal) <= control:
                    raise IndexError
                out += literal
                at += control + 1
            else:
                length = control >> 5
                if length == 7:
                    length += data[at]
                    at += 1
                length += 2
                start = len(out) - ((control & 31) << 8) - data[at] - 1
                at += 1
                if start < 0:
                    raise ValueError("a reference points before the beginning")
                piece = out[start : start + length]
                if len(piece) < length:  # the copy overlaps what it writes: a repetition
                    piece = (piece * (length // len(piece) + 1))[:length]
                out += piece
            if len(out) > size:
                raise ValueError(f"holds more than {size} bytes")
    except IndexError:
        raise ValueError("is cut short") from None
    if len(out) != size:
        raise ValueError(f"holds {len(out)} bytes and not {size}")
    return bytes(out)


def _unique_dtype(header: PcdHeader) -> np.dtype:
    """One record; padding gets names of its own, and so do repeated names."""
    seen: set[str] = set()
    parts = []
    for number, (name, kind, count) in enumerate(zip(header.fields, header.dtypes, header.counts, strict=True)):
        unique = f"_{number}" if name == "_" or name in seen else name
        seen.add(unique)
        parts.append((unique, kind) if count == 1 else (unique, kind, (count,)))
    return np.dtype(parts)


def _binary(body: memoryview, header: PcdHeader, path: Path) -> dict[str, np.ndarray]:
    need = header.points * header.step
    if len(body) < need:
        raise DataError(
            f"{path}: is cut short: its header says {header.points} points, {need} bytes; {len(body)} are there"
        )
    records = np.frombuffer(body, _unique_dtype(header), header.points)
    return {name: records[name] for name in records.dtype.names or ()}


def _compressed(body: memoryview, header: PcdHeader, path: Path) -> dict[str, np.ndarray]:
    if len(body) < 8:
        raise DataError(f"{path}: is cut short: no sizes before its compressed data")
    packed, full = (int(s) for s in np.frombuffer(body, "<u4", 2))
    need = header.points * header.step
    if full != need or packed > len(body) - 8:
        raise DataError(
            f"{path}: its header says {need} bytes of points; the data says {full}, and {packed} compressed, of which "
            f"{len(body) - 8} are there"
        )
    try:
        plain = lzf_decompress(body[8 : 8 + packed], full) if full else b""
    except ValueError as error:
        raise DataError(f"{path}: its compressed data {error}") from error
    columns, at = {}, 0
    for name, kind, count in zip(header.fields, header.dtypes, header.counts, strict=True):  # one field after another
        values = np.frombuffer(plain, kind, header.points * count, at)
        columns.setdefault(name, values)
        at += values.nbytes
    return columns


def _ascii(body: memoryview, header: PcdHeader, path: Path) -> dict[str, np.ndarray]:
    width = sum(header.counts)
    need = header.points * width
    words = bytes(body).split() if len(body) >= 2 * need - 1 else []
    if len(words) < need or (need == 0 and len(words)):
        raise DataError(
            f"{path}: is cut short or malformed: its header says {header.points} points of {width} values; "
            f"{len(words) or 'fewer'} values are there"
        )
    words = words[:need]
    longest = max(map(len, words), default=0)
    if longest > LONGEST_NUMBER:  # an array of text has room for the longest in every place
        raise DataError(f"{path}: holds a number of {longest} characters; {LONGEST_NUMBER} is the most")
    try:
        values = np.array(words, dtype=np.bytes_).astype(np.float64).reshape(header.points, width)
    except ValueError as error:
        raise DataError(f"{path}: holds what is no number ({error})") from error
    columns, at = {}, 0
    for name, count in zip(header.fields, header.counts, strict=True):
        columns.setdefault(name, values[:, at])
        at += count
    return columns
