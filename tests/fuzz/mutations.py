"""Changes to files as plain values, so that one which broke a loader can stay in its test as an ``@example``."""

import copy
import re
from collections.abc import Callable
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st

from visionattn.errors import ConfigProblemsError, VisionattnError

__all__ = [
    "byte_edits",
    "edited_bytes",
    "edited_document",
    "edited_text",
    "fewer",
    "hostile",
    "tree_edits",
    "try_read",
    "word_edits",
]


def try_read(call: Callable[[], Any]) -> Any:
    """What a loader returns, or the error of ours by which it refuses; anything else it raises is let through."""
    try:
        return call()
    except VisionattnError as error:
        refusal = error
    assert str(refusal).strip(), "an error without a message"
    assert "\n" not in str(refusal) or isinstance(refusal, ConfigProblemsError), refusal
    return refusal


def fewer(share: int) -> settings:
    """Settings for a test whose examples are slow: one where the profile has ``share``, and none to make it smaller."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(max_examples=max(3, settings().max_examples // share), phases=phases)


# --- trees: JSON documents, configs ----------------------------------------------------------------------------------

_SPECIAL = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 255, 256, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0,
     1e-320, 1e38, 1e39, 1e308, float("inf"), float("nan"), "", "0", "1", "nan", "x", "a.png", "a.bin", ".", "..",
     "../a.png", "/", "~", "a\0", "\ud800", "é", "٣", "%s{}", [], {}, [[]], [None], {"": 0}]
)  # fmt: skip
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-10, 300), st.integers(), st.floats(), st.floats(-100, 100, width=32),
    st.text(max_size=8),
)  # fmt: skip
hostile = st.one_of(
    _SPECIAL,
    _SPECIAL,
    st.recursive(
        _SCALARS,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.just("id"), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)
"""Values that nobody expects, all of which JSON can hold."""

_PLACES = st.integers(0, 10_000)
tree_edits = st.lists(
    st.one_of(
        st.tuples(st.just("replace"), _PLACES, hostile),
        st.tuples(st.just("replace"), _PLACES, hostile),
        st.tuples(st.just("remove"), _PLACES),
        st.tuples(st.just("rename"), _PLACES, st.sampled_from(["", "x", "id", "type", "name", "_delete_", "0"])),
        st.tuples(st.just("repeat"), _PLACES, st.integers(1, 3)),
        st.tuples(st.just("wrap"), _PLACES),
        st.tuples(st.just("copy"), _PLACES, _PLACES),
    ),
    min_size=1,
    max_size=4,
)


def _slots(value: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of each value below the top."""
    found = []
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            keys: Any = list(here)
        elif isinstance(here, list):
            keys = range(len(here))
        else:
            continue
        for key in keys:
            found.append((here, key))
            waiting.append(here[key])
    return found


def edited_document(document: Any, edits: list[tuple]) -> Any:
    """A copy with some values replaced, removed, repeated, wrapped in a list, put in each other's place."""
    top = {"": copy.deepcopy(document)}
    for kind, number, *rest in edits:
        slots = _slots(top)
        holder, key = slots[number % len(slots)]
        if kind == "replace":
            holder[key] = copy.deepcopy(rest[0])
        elif kind == "wrap":
            holder[key] = [holder[key]]
        elif kind == "copy":
            source, name = slots[rest[0] % len(slots)]
            holder[key] = copy.deepcopy(source[name])
        elif holder is top:
            continue  # what is left is no file
        elif kind == "remove":
            del holder[key]
        elif kind == "repeat" and isinstance(holder, list):
            holder += [copy.deepcopy(holder[key]) for _ in range(rest[0])]
        elif kind == "rename" and isinstance(holder, dict):
            holder[rest[0]] = holder.pop(key)
    return top[""]


# --- bytes -----------------------------------------------------------------------------------------------------------

byte_edits = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 2**20), st.integers(0, 255)),
        st.tuples(st.just("set"), st.integers(0, 64), st.integers(0, 255)),
        st.tuples(st.just("flip"), st.integers(0, 2**20), st.integers(0, 7)),
        st.tuples(st.just("put"), st.integers(0, 2**20), st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("insert"), st.integers(0, 2**20), st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("remove"), st.integers(0, 2**20), st.integers(1, 40)),
        st.tuples(st.just("copy"), st.integers(0, 2**20), st.integers(0, 2**20)),
        st.tuples(st.just("cut"), st.integers(0, 2**20)),
    ),
    min_size=1,
    max_size=5,
)


def edited_bytes(content: bytes, edits: list[tuple]) -> bytes:
    """Some bytes set, flipped, put in, left out, copied from elsewhere; the end cut off. Places count modulo."""
    data = bytearray(content)
    for kind, number, *rest in edits:
        at = number % (len(data) + 1)
        if kind == "set" and at < len(data):
            data[at] = rest[0]
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << rest[0]
        elif kind == "put":
            data[at : at + len(rest[0])] = rest[0]
        elif kind == "insert":
            data[at:at] = rest[0]
        elif kind == "remove":
            del data[at : at + rest[0]]
        elif kind == "copy":
            start = rest[0] % (len(data) + 1)
            data[at : at + 16] = data[start : start + 16]
        elif kind == "cut":
            del data[at:]
    return bytes(data)


# --- text of words ---------------------------------------------------------------------------------------------------

_WORDS = st.sampled_from(
    ["", "nan", "-inf", "1e999", "-1", "0", "0.5", "1", "2", "3", "10", "1000", "9" * 30, "1_0", "0x1", "²", "x", "\0",
     '"', "'", "\t", "\n", "\r", "\n\n", ",", " ", ":", "#", "\ufeff", "\u2028", "\x85", "<a>", "</a>", "&amp;",
     "&#0;", "a.png", "../a.png"]
)  # fmt: skip
word_edits = st.lists(
    st.one_of(
        st.tuples(st.just("word"), _PLACES, _WORDS | st.text(max_size=6) | st.integers().map(str)),
        st.tuples(st.just("gap"), _PLACES, _WORDS),
        st.tuples(st.just("word from"), _PLACES, _PLACES),
        st.tuples(st.just("line out"), _PLACES),
        st.tuples(st.just("line twice"), _PLACES, _PLACES),
        st.tuples(st.just("end"), _PLACES),
    ),
    min_size=1,
    max_size=4,
)


_WORD, _GAP = re.compile(r"[^\s,<>/:=()\[\]]+"), re.compile(r"[\s,<>/:=()\[\]]+")


def edited_text(text: str, edits: list[tuple]) -> str:
    """Some words or the gaps between them replaced, lines left out or doubled, the end cut off."""
    for kind, number, *rest in edits:
        if kind in ("line out", "line twice"):
            lines = text.split("\n")
            at = number % len(lines)
            if kind == "line out":
                del lines[at]
            else:
                lines.insert(rest[0] % (len(lines) + 1), lines[at])
            text = "\n".join(lines)
        elif kind == "end":
            text = text[: number % (len(text) + 1)]
        else:
            spans = [found.span() for found in (_GAP if kind == "gap" else _WORD).finditer(text)]
            if spans:
                start, end = spans[number % len(spans)]
                if kind == "word from":
                    first, last = spans[rest[0] % len(spans)]
                    new = text[first:last]
                else:
                    new = rest[0]
                text = text[:start] + new + text[end:]
    return text
