"""Read untrusted XML files, with the line of each element."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from visionattn.errors import DataError

__all__ = ["Element", "read_xml"]

LARGEST = 1 << 30
"""Default limit on the size of a file in bytes."""
DEEPEST = 64
"""Limit on the nesting of elements: annotations need about 8, and ElementTree recurses."""


class Element(ElementTree.Element):
    """An element with the number of its line in the file."""

    line: int


def read_xml(path: str | Path, max_bytes: int = LARGEST) -> Element:
    """Read an XML file of any encoding that expat supports, with or without a byte order mark.

    Entities are refused, since a short file can expand to gigabytes or include other files.

    Args:
        path: the file.
        max_bytes: limit on the size of the file.

    Returns:
        The root element.

    Raises:
        DataError: the file is missing, too large, malformed, nested too deeply, or declares entities. The message has
            the line.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    builder = ElementTree.TreeBuilder(element_factory=Element)
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise DataError(f"{path}:{parser.CurrentLineNumber}: elements are nested deeper than {DEEPEST} levels")
        builder.start(tag, attributes).line = parser.CurrentLineNumber  # type: ignore[attr-defined]

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: Any) -> None:
        raise DataError(f"{path}:{parser.CurrentLineNumber}: declares XML entities, which are refused; remove them")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.EntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    try:
        if Path(path).stat().st_size > max_bytes:
            raise DataError(f"{path}: is larger than {max_bytes >> 20} MB; annotations of this format are smaller")
        parser.Parse(Path(path).read_bytes(), True)
        return builder.close()  # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (expat.ExpatError, LookupError, ValueError) as error:  # an encoding can be unknown, or of several bytes
        line = getattr(error, "lineno", 1)
        raise DataError(f"{path}:{line}: is not valid XML ({error}); export it again") from error
