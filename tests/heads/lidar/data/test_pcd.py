"""PCD files: what PCL writes is read, and what contradicts itself is refused before memory is asked for."""

import struct

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.lidar.data.pcd import lzf_decompress, parse_header, read_pcd

FIELDS = [("x", "F", 4, 1), ("y", "F", 4, 1), ("z", "F", 4, 1), ("_", "U", 1, 4), ("intensity", "F", 4, 1),
          ("ring", "U", 2, 1), ("normal", "F", 4, 3)]  # fmt: skip


def header(points: int, data: str, fields=FIELDS, width: int | None = None) -> bytes:
    names, kinds, sizes, counts = zip(*fields, strict=True)
    lines = [
        "# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", f"FIELDS {' '.join(names)}",
        f"SIZE {' '.join(map(str, sizes))}", f"TYPE {' '.join(kinds)}",
        f"COUNT {' '.join(map(str, counts))}", f"WIDTH {points if width is None else width}", "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {points}", f"DATA {data}",
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture
def records() -> np.ndarray:
    rng = np.random.default_rng(0)
    dtype = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("pad", "u1", (4,)), ("intensity", "<f4"), ("ring", "<u2"),
             ("normal", "<f4", (3,))]  # fmt: skip
    values = np.zeros(50, dtype)
    for name in ("x", "y", "z", "intensity"):
        values[name] = rng.normal(0, 10, 50).round(2)
    values["ring"] = np.arange(50) * 700
    values["normal"] = 0.5
    return values


def compress(data: bytes) -> bytes:
    """A plain LZF: literals, and references to the last place of the same three bytes."""
    out, literal, seen, at = bytearray(), bytearray(), {}, 0

    def flush() -> None:
        for start in range(0, len(literal), 32):
            part = literal[start : start + 32]
            out.append(len(part) - 1)
            out.extend(part)
        literal.clear()

    while at < len(data):
        key = data[at : at + 3]
        back = at - seen[key] if len(key) == 3 and key in seen else 0
        seen[key] = at
        if not 0 < back <= 8192:
            literal.append(data[at])
            at += 1
            continue
        length = 3
        while length < 264 and at + length < len(data) and data[at + length - back] == data[at + length]:
            length += 1
        flush()
        high, low = (back - 1) >> 8, (back - 1) & 255
        if length - 2 < 7:
            out += bytes([(length - 2) << 5 | high, low])
        else:
            out += bytes([7 << 5 | high, length - 9, low])
        at += length
    flush()
    return bytes(out)


def as_ascii(records: np.ndarray) -> bytes:
    rows = []
    for record in records:
        values = [v for name in records.dtype.names for v in np.atleast_1d(record[name])]
        rows.append(" ".join(repr(float(v)) for v in values))
    return "\n".join(rows).encode()


def packed(records: np.ndarray) -> bytes:
    plain = b"".join(np.ascontiguousarray(records[name]).tobytes() for name in records.dtype.names)
    small = compress(plain)
    assert len(small) < len(plain)
    return struct.pack("<II", len(small), len(plain)) + small


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_reads_each_kind_of_data(tmp_path, records, kind):
    body = {"ascii": as_ascii, "binary": np.ndarray.tobytes, "binary_compressed": packed}[kind](records)
    path = tmp_path / "a.pcd"
    path.write_bytes(header(50, kind) + body)
    columns = read_pcd(path)
    assert list(columns) == ["x", "y", "z", "intensity", "ring"]
    for name, values in columns.items():
        np.testing.assert_allclose(values, records[name], rtol=1e-6)


def test_decompression_by_hand():
    assert lzf_decompress(b"\x02abc", 3) == b"abc"
    assert lzf_decompress(b"\x00a\xa0\x00", 8) == b"a" * 8
    assert lzf_decompress(b"\x01ab\xe0\x05\x01", 16) == b"ab" * 8
    rng = np.random.default_rng(1)
    for size in (1, 31, 32, 33, 1000, 20000):
        data = rng.integers(0, 4, size, dtype=np.uint8).tobytes()
        assert lzf_decompress(compress(data), size) == data


@pytest.mark.parametrize(
    ("data", "size", "reason"),
    [
        (b"\x05ab", 6, "truncated"),
        (b"\x00a\xa0", 8, "truncated"),
        (b"\x20\x00", 3, "before its start"),
        (b"\x02abc", 4, "3 bytes instead of 4"),
        (b"\x02abc", 2, "more than 2"),
        (b"\x00a", 10**9, "cannot expand"),
    ],
)
def test_broken_compression_is_refused(data, size, reason):
    with pytest.raises(ValueError, match=reason):
        lzf_decompress(data, size)


def test_damaged_files_are_refused_by_name(tmp_path, records):
    path = tmp_path / "bad.pcd"
    whole = {
        "binary": header(50, "binary") + records.tobytes(),
        "ascii": header(50, "ascii") + as_ascii(records),
        "binary_compressed": header(50, "binary_compressed") + packed(records),
    }
    for kind, content in whole.items():
        path.write_bytes(content[:-30])
        with pytest.raises(DataError, match=r"bad\.pcd"):
            read_pcd(path)
        assert kind in content.decode("latin1")
    path.write_bytes(header(50, "ascii") + as_ascii(records).replace(b"0.5", b"x.5", 1))
    with pytest.raises(DataError, match="not a number"):
        read_pcd(path)
    for content in (b"", b"hello\n", header(3, "binary")[:-9], header(3, "zipped"), header(3, "binary", width=4)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.pcd"):
            read_pcd(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_pcd(tmp_path / "none.pcd")


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_a_header_that_claims_more_than_there_is_asks_for_no_memory(tmp_path, kind):
    path = tmp_path / "huge.pcd"
    path.write_bytes(header(10**15, kind) + b"\0" * 64)
    with pytest.raises(DataError, match=r"huge\.pcd"):
        read_pcd(path)
    claimed = struct.pack("<II", 40, 2**32 - 1)
    path.write_bytes(header(50, "binary_compressed") + claimed + b"\0" * 40)
    with pytest.raises(DataError, match="4294967295"):
        read_pcd(path)


def test_header():
    found = parse_header(header(7, "binary"))
    assert (found.points, found.step, found.data) == (7, 4 * 3 + 4 + 4 + 2 + 12, "binary")
    short = b"FIELDS x y z\nSIZE 4 4\nTYPE F F F\nWIDTH 1\nHEIGHT 1\nDATA ascii\n"
    with pytest.raises(DataError, match="malformed"):
        parse_header(short)


def test_no_points(tmp_path):
    for kind, body in (("ascii", b""), ("binary", b""), ("binary_compressed", struct.pack("<II", 0, 0))):
        path = tmp_path / f"{kind}.pcd"
        path.write_bytes(header(0, kind) + body)
        assert all(len(values) == 0 for values in read_pcd(path).values())
