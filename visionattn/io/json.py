"""JSON from files that nobody vouches for."""

import json
from pathlib import Path
from typing import Any

__all__ = ["read_json"]


def read_json(path: str | Path) -> Any:
    """The content of a JSON file in UTF-8.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON text in UTF-8, has a number of more digits than Python reads (4300), or is nested
            deeper than Python's stack; json lets the last of these pass as RecursionError.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
