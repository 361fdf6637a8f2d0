"""PCD files of the Point Cloud Library (version 0.7) with ASCII, binary or LZF-compressed data.

Sizes in the header are checked against the file size before memory is allocated.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.errors import DataError

__all__ = ["PcdHeader", "lzf_decompress", "parse_header", "read_pcd"]

HEADER_BYTES = 65536
MAX_COUNT = 65536
"""Maximum number of values of one field per point; feature descriptors have some hundreds."""
MAX_NUMBER_CHARS = 64
_DTYPES = {("F", 4): "<f4", ("F", 8): "<f8"} | {
    (type_, size): f"<{type_.lower()}{size}" for type_ in "IU" for size in (1, 2, 4, 8)
}
_LZF_RATIO = 88  # a back-reference of 3 bytes expands to at most 264


@dataclass(frozen=True)
class PcdHeader:
    """Header of a PCD file.

    Attributes:
        fields: field names; ``_`` is padding.
        dtypes: NumPy type string of each field.
        counts: number of values of each field per point.
        points: number of points.
        data: ``"ascii"``, ``"binary"`` or ``"binary_compressed"``.
        offset: position of the data in the file, in bytes.
    """

    fields: tuple[str, ...]
    dtypes: tuple[str, ...]
    counts: tuple[int, ...]
    points: int
    data: str
    offset: int

    @property
    def step(self) -> int:
        """Bytes per point in binary data."""
        return sum(np.dtype(d).itemsize * c for d, c in zip(self.dtypes, self.counts, strict=True))


def read_pcd(path: str | Path) -> dict[str, np.ndarray]:
    """Read the fields of a PCD file.

    Padding and fields with several values per point are skipped.

    Returns:
        Arrays ``[N]`` by field name, with the types of the file; float64 for ASCII data.

    Raises:
        DataError: if the file is missing, not a PCD file, truncated, or its header and data are inconsistent.
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
    """Parse the header at the beginning of the file content.

    Args:
        content: the bytes of the file.
        path: name for error messages.

    Raises:
        DataError: if the header is missing, incomplete or malformed.
    """
    entries: dict[str, list[str]] = {}
    offset = 0
    while "DATA" not in entries:
        end = content.find(b"\n", offset, HEADER_BYTES)
        if end < 0:
            raise DataError(f"{path}: is not a PCD file: the header has no DATA line")
        words = content[offset:end].decode("ascii", "replace").split()
        offset = end + 1
        if words and not words[0].startswith("#"):
            entries[words[0].upper()] = words[1:]
    try:
        fields = tuple(entries["FIELDS"])
        sizes = [int(s) for s in entries["SIZE"]]
        counts = tuple(int(c) for c in entries.get("COUNT", ["1"] * len(fields)))
        dtypes = tuple(_DTYPES[type_.upper(), size] for type_, size in zip(entries["TYPE"], sizes, strict=True))
        width, height = int(entries["WIDTH"][0]), int(entries.get("HEIGHT", ["1"])[0])
        points = int(entries["POINTS"][0]) if "POINTS" in entries else width * height
        data = entries["DATA"][0].lower()
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"{path}: the PCD header is malformed ({type(error).__name__}: {error})") from error
    fit = len(fields) == len(dtypes) == len(counts) and all(0 < count <= MAX_COUNT for count in counts)
    if not fields or not fit or min(width, height, points) < 0:
        raise DataError(f"{path}: the PCD header is malformed (FIELDS, SIZE, TYPE and COUNT are inconsistent)")
    if points != width * height:
        raise DataError(f"{path}: POINTS must be WIDTH {width} x HEIGHT {height}, got {points}")
    if data not in ("ascii", "binary", "binary_compressed"):
        raise DataError(f"{path}: DATA must be ascii, binary or binary_compressed, got {data!r}")
    return PcdHeader(fields, dtypes, counts, points, data, offset)


def lzf_decompress(data: bytes | memoryview, size: int) -> bytes:
    """Decompress data of LibLZF.

    A control byte c below 32 is followed by c + 1 literal bytes. Any other control byte starts a back-reference: its
    upper three bits hold the length (7: the next byte is added), its lower five bits and one more byte the distance.

    Args:
        data: the compressed data.
        size: size of the decompressed data, in bytes.

    Raises:
        ValueError: if the data is truncated, refers to a position before the start, or has another decompressed size.
    """
    if size > _LZF_RATIO * len(data):
        raise ValueError(f"of {len(data)} bytes cannot expand to {size} bytes")
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
                    raise ValueError("has a back-reference before its start")
                piece = out[start : start + length]
                if len(piece) < length:  # source and destination overlap, which repeats the piece
                    piece = (piece * (length // len(piece) + 1))[:length]
                out += piece
            if len(out) > size:
                raise ValueError(f"expands to more than {size} bytes")
    except IndexError:
        raise ValueError("is truncated") from None
    if len(out) != size:
        raise ValueError(f"expands to {len(out)} bytes instead of {size}")
    return bytes(out)


def _unique_dtype(header: PcdHeader) -> np.dtype:
    """NumPy record type of one point; padding and repeated names get unique names."""
    seen: set[str] = set()
    parts = []
    for number, (name, dtype, count) in enumerate(zip(header.fields, header.dtypes, header.counts, strict=True)):
        unique = f"_{number}" if name == "_" or name in seen else name
        seen.add(unique)
        parts.append((unique, dtype) if count == 1 else (unique, dtype, (count,)))
    return np.dtype(parts)


def _binary(body: memoryview, header: PcdHeader, path: Path) -> dict[str, np.ndarray]:
    need = header.points * header.step
    if len(body) < need:
        raise DataError(
            f"{path}: is truncated: the header announces {header.points} points ({need} bytes), got {len(body)} bytes"
        )
    records = np.frombuffer(body, _unique_dtype(header), header.points)
    return {name: records[name] for name in records.dtype.names or ()}


def _compressed(body: memoryview, header: PcdHeader, path: Path) -> dict[str, np.ndarray]:
    if len(body) < 8:
        raise DataError(f"{path}: is truncated: the sizes before the compressed data are missing")
    packed, full = (int(s) for s in np.frombuffer(body, "<u4", 2))
    need = header.points * header.step
    if full != need or packed > len(body) - 8:
        raise DataError(
            f"{path}: the header announces {need} bytes of points, the data section {full} ({packed} compressed), "
            f"got {len(body) - 8} compressed bytes"
        )
    try:
        plain = lzf_decompress(body[8 : 8 + packed], full) if full else b""
    except ValueError as error:
        raise DataError(f"{path}: the compressed data {error}") from error
    columns, at = {}, 0
    for name, dtype, count in zip(header.fields, header.dtypes, header.counts, strict=True):  # stored field by field
        values = np.frombuffer(plain, dtype, header.points * count, at)
        columns.setdefault(name, values)
        at += values.nbytes
    return columns


def _ascii(body: memoryview, header: PcdHeader, path: Path) -> dict[str, np.ndarray]:
    width = sum(header.counts)
    need = header.points * width
    words = bytes(body).split() if len(body) >= 2 * need - 1 else []
    if len(words) < need or (need == 0 and len(words)):
        raise DataError(
            f"{path}: is truncated or malformed: the header announces {header.points} points of {width} values, "
            f"got {len(words) or 'fewer'} values"
        )
    words = words[:need]
    longest = max(map(len, words), default=0)
    if longest > MAX_NUMBER_CHARS:  # a NumPy string array allocates the longest width for every element
        raise DataError(f"{path}: numbers must have at most {MAX_NUMBER_CHARS} characters, got {longest}")
    try:
        values = np.array(words, dtype=np.bytes_).astype(np.float64).reshape(header.points, width)
    except ValueError as error:
        raise DataError(f"{path}: contains a value that is not a number ({error})") from error
    columns, at = {}, 0
    for name, count in zip(header.fields, header.counts, strict=True):
        columns.setdefault(name, values[:, at])
        at += count
    return columns
