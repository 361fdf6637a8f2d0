"""reStructuredText as strings."""

import re
import textwrap


def title(text: str, line: str = "=") -> str:
    """Return a heading, underlined with a character."""
    return f"{text}\n{line * len(text)}\n"


def escaped(text: str) -> str:
    """Return plain text with the characters escaped that reStructuredText would interpret, and options as literals."""
    return literal_options(re.sub(r"([\\*`|]|_(?=\W|$))", r"\\\1", text))


def literal_options(text: str) -> str:
    """Return text with ``--option`` as a literal."""
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"``\1``", text)


def block(directive: str, argument: str, body: str = "", **options: str) -> str:
    """Return a directive with an indented body."""
    lines = [
        f".. {directive}:: {argument}".rstrip(),
        *(f"   :{key}: {value}".rstrip() for key, value in options.items()),
    ]
    return "\n".join([*lines, "", textwrap.indent(body, "   "), ""])
