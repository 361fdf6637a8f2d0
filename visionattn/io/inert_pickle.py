"""Parse pickles without executing them: every class, function and call becomes a description of itself.

Python's unpickler imports names and calls them. This parser only builds lists, `Mapping_`, `Global`, `Call` and
`Reference` objects from the opcodes, which `pickletools` decodes. It imports and calls nothing that a file names, so
any file can be parsed, and the caller decides which descriptions it understands.
"""

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

__all__ = ["Call", "Global", "Mapping_", "PickleError", "Reference", "parse"]

_MOST = 20_000_000  # opcodes; each may create an object


class PickleError(Exception):
    """The stream is malformed or uses opcodes that this parser does not know."""


@dataclass(frozen=True)
class Global:
    """A class or function, by its name such as ``"collections.OrderedDict"``."""

    name: str


@dataclass(eq=False)
class Mapping_:  # noqa: N801  not a dict, because its keys may be unhashable descriptions
    """A dict: its keys and values in order."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """An object that the unpickler would have created by a call.

    Attributes:
        function: what would have been called, a `Global` or another description.
        arguments: the positional arguments.
        state: the argument of ``__setstate__``, or None.
        entries: entries that would have been appended.
        pairs: keys and values that would have been set.
    """

    function: Any
    arguments: Sequence[Any]
    state: Any = None
    entries: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Reference:
    """A reference to data outside of the pickle, such as a storage of a tensor."""

    content: Any


_MARK = object()
_SKIPPED = {"PROTO", "FRAME"}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Parser:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("a mark in the place of a value")
        return value

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise PickleError("no mark on the stack")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def step(self, name: str, argument: Any) -> None:
        """Run one opcode."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack.append(tuple(self.pop() for _ in range(count))[::-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("GLOBAL", "INST"):
            found = Global(".".join(argument.split(" ")))
            stack.append(found if name == "GLOBAL" else Call(found, self.pop_to_mark()))
        elif name == "STACK_GLOBAL":
            last, module = self.pop(), self.pop()
            stack.append(Global(f"{module}.{last}"))
        elif not self._create(name) and not self._change(name):
            raise PickleError(f"the opcode {name} is not supported")

    def _create(self, name: str) -> bool:
        """Run an opcode that creates a container or an object, and return whether the opcode is one of these."""
        stack = self.stack
        if name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name in ("LIST", "FROZENSET"):
            stack.append(self.pop_to_mark())
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name == "EMPTY_DICT":
            stack.append(Mapping_())
        elif name == "DICT":
            stack.append(Mapping_(_paired(self.pop_to_mark())))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self.pop(), self.pop()
            stack.append(Call(function, _checked(arguments, tuple)))
        elif name == "NEWOBJ_EX":
            self.pop()  # keyword arguments
            arguments, function = self.pop(), self.pop()
            stack.append(Call(function, _checked(arguments, tuple)))
        elif name == "OBJ":
            function, *arguments = self.pop_to_mark()
            stack.append(Call(function, arguments))
        elif name == "BINPERSID":
            stack.append(Reference(self.pop()))
        else:
            return False
        return True

    def _change(self, name: str) -> bool:
        """Run an opcode that changes the stack or the object on it, and return whether it is one of these."""
        if name == "POP":
            self.stack.pop()
        elif name == "POP_MARK":
            self.pop_to_mark()
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            new = [self.pop()] if name == "APPEND" else self.pop_to_mark()
            target = self.stack[-1]
            (target.entries if isinstance(target, Call) else _checked(target, list)).extend(new)
        elif name in ("SETITEM", "SETITEMS"):
            new = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.pop_to_mark()
            target = self.stack[-1]
            (target if isinstance(target, Call) else _checked(target, Mapping_)).pairs.extend(_paired(new))
        elif name == "BUILD":
            state = self.pop()
            _checked(self.stack[-1], Call).state = state
        else:
            return False
        return True


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PickleError(f"a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _paired(values: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))


def parse(stream: BinaryIO) -> Any:
    """Parse one pickle, and leave the stream after its end.

    Args:
        stream: ``io.BytesIO`` or ``mmap``, whose ``read`` does not allocate more than they hold.

    Raises:
        PickleError: the pickle is malformed or truncated, or has an unknown opcode.
    """
    parser = _Parser()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MOST:
                raise PickleError(f"more than {_MOST} opcodes")
            if opcode.name == "STOP":
                return parser.pop()
            if opcode.name not in _SKIPPED:
                parser.step(opcode.name, argument)
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise PickleError(" ".join(str(error).split())[:120] or type(error).__name__) from error
    raise PickleError("ends before the STOP opcode")
