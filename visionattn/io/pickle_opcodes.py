"""What a pickle would do, looked at before it is done.

Python's unpickler makes room for what an instruction claims before it finds out that it is not there: five bytes that
keep a value under the number 2^28 fill four gigabytes.
"""

import re

__all__ = ["check_opcodes"]

_PLAIN = rb"[()01N\]}abdelstuR\x85-\x89\x8f-\x91\x93\x94]"  # no NEWOBJ, INST, OBJ, persistent or extension codes
_STEP = 1000
_LENGTHS = {
    0x58: 4, 0x54: 4, 0x42: 4, 0x8B: 4, 0x55: 1, 0x43: 1, 0x8C: 1, 0x8A: 1, 0x8D: 8, 0x8E: 8, 0x96: 8,
}  # fmt: skip
"""Codes that are followed by a length of so many bytes, and then by as many bytes as that says."""


def _steps(size: int) -> re.Pattern[bytes]:
    """Many instructions of fixed length at once; those that keep a value have numbers of the size of the file."""
    small, large = rb"..[\x00-\x%02x]\x00", rb"...[\x00-\x%02x]"  # with the upper bytes of a number last
    number = small % (size >> 16) if size < 1 << 24 else large % min(size >> 24, 255)
    digits = rb"\d{1,%d}\n" % len(str(size))
    fixed = (
        _PLAIN, rb"[Khq\x80].", rb"M..", rb"[Jj].{4}", rb"[G\x95].{8}", rb"r" + number, rb"[pg]" + digits,
        rb"[IFLVS][^\n]*\n", rb"c[^\n]*\n[^\n]*\n",
    )  # fmt: skip
    # without an end to the repetition the matcher would keep each step of millions
    return re.compile(rb"(?:" + rb"|".join(fixed) + rb"){1,%d}" % _STEP, re.DOTALL)


def check_opcodes(data: bytes) -> None:
    """Look through the instructions of a pickle.

    Raises:
        ValueError: one that pickles of plain data do not have, or one that claims more than the data holds.
    """
    steps, at, end = _steps(len(data)), 0, len(data)
    while at < end:
        if found := steps.match(data, at):
            at = found.end()
            continue
        code = data[at]
        if code == 0x2E:
            return
        width = _LENGTHS.get(code)
        if width is None:
            raise ValueError(f"the instruction {data[at : at + 5]!r} at byte {at} is not of plain data")
        at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "little")
    raise ValueError("ends in the middle")
