"""Read untrusted JSON files."""

import json
from pathlib import Path
from typing import Any

__all__ = ["read_json"]


def read_json(path: str | Path, encoding: str = "utf-8") -> Any:
    """Read a JSON file in UTF-8; with ``encoding="utf-8-sig"``, a byte order mark is skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not JSON in UTF-8, contains a number with more digits than Python's limit (4300), or is
            nested too deeply, for which `json` raises RecursionError.
    """
    text = Path(path).read_text(encoding=encoding)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
