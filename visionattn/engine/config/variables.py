"""Options on the variables of a config file, such as ``max_iters``, from which the file computes other keys.

When a config has been read, its variables are copies: a new value of ``max_iters`` would not reach the schedules.
Therefore the files are evaluated again, and the options are applied to each variable after every statement that
assigns it.
"""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmengine.config.config as stock
from mmengine.config import Config
from mmengine.config.utils import RemoveAssignFromAST

from visionattn.io.configs import PREFIX, find_config

__all__ = ["changed", "read_file", "read_with", "unused_overrides", "variables_read"]

_change: list[Callable[[str, Any], Any]] = []
_BASE = re.compile(r"\{\{\s*_base_\.(\w+)")


def variables_read(files: Sequence[Path]) -> set[str]:
    """Return the names of the top-level variables that a statement in one of the config files reads."""
    return {name for file in files for name in _read_by(file)}


def unused_overrides(file: Path, bases: Sequence[Path]) -> list[str]:
    """Return the variables that a config assigns and does not read, although one of its bases does.

    The base has been evaluated with its own value, so the assignment has no effect.

    Args:
        file: the config file.
        bases: all files that it inherits from.
    """
    return sorted((_assigned(_parse(file).body) - _own_reads(file)) & variables_read(bases))


def _read_by(file: Path) -> set[str]:
    """Names that a file reads, of its own variables or of those of its bases."""
    of_bases = {
        node.attr
        for node in ast.walk(_parse(file))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_base_"
    }
    return _own_reads(file) | of_bases | set(_BASE.findall(file.read_text(encoding="utf-8")))


def _own_reads(file: Path) -> set[str]:
    nodes = ast.walk(_parse(file))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _parse(file: Path) -> ast.Module:
    text = file.read_text(encoding="utf-8")
    # mmengine substitutes these before Python parses the text
    return ast.parse(re.sub(r"\{\{.*?\}\}", "None", text), str(file))


def read_file(path: Path) -> Config:
    """Read a config file and its bases, which may be files of this package: ``_base_ = "visionattn::PATH"``."""
    with _package_bases():
        return Config.fromfile(str(path), lazy_import=False)


@contextmanager
def _package_bases() -> Iterator[None]:
    """Let mmengine find the files of this package; it has a fixed list of the packages whose configs it finds."""
    before = Config._get_cfg_path

    def find(base: str, file: str) -> tuple[str, str | None]:
        return (str(find_config(base)), None) if base.startswith(PREFIX) else before(base, file)

    Config._get_cfg_path = staticmethod(find)
    try:
        yield
    finally:
        Config._get_cfg_path = staticmethod(before)


def read_with(path: Path, change: Callable[[str, Any], Any], names: set[str]) -> Config:
    """Read a config file and its bases, changing the values of variables where they are assigned.

    Args:
        path: the file.
        change: takes the name and value of a variable, and returns the value to go on with.
        names: the variables to change.
    """
    with _inserting(change, names):
        return read_file(path)


def changed(name: str, value: Any) -> Any:
    """Return the value of a variable with the options applied; called by the evaluated config files."""
    return _change[-1](name, value)


@contextmanager
def _inserting(change: Callable[[str, Any], Any], names: set[str]) -> Iterator[None]:
    """Insert a call of `changed` after each assignment of the variables, in config files that mmengine evaluates."""

    class Inserting(RemoveAssignFromAST):
        """The transformation that mmengine applies to each file, which removes ``_base_``; then the insertions."""

        def visit(self, node: ast.AST) -> Any:
            found = super().visit(node)
            if isinstance(found, ast.Module):
                found.body = _with_calls(found.body, names)
                if found.body:
                    found.body.insert(0, ast.parse(f"import {__name__} as __variables").body[0])
                ast.fix_missing_locations(found)
            return found

    before = stock.RemoveAssignFromAST
    stock.RemoveAssignFromAST = Inserting
    _change.append(change)
    try:
        yield
    finally:
        stock.RemoveAssignFromAST = before
        _change.pop()


def _with_calls(body: Sequence[ast.stmt], names: set[str]) -> list[ast.stmt]:
    result: list[ast.stmt] = []
    for statement in body:
        result.append(statement)
        for name in sorted(_assigned([statement]) & names):
            (call,) = ast.parse(f"{name} = __variables.changed({name!r}, {name})").body
            result.append(ast.copy_location(call, statement))
    return result


def _assigned(body: Sequence[ast.stmt]) -> set[str]:
    """Names that the statements assign, also inside ``if``, ``for``, ``with`` and ``try``."""
    finder = _Assignments()
    for statement in body:
        finder.visit(statement)
    return finder.names


class _Assignments(ast.NodeVisitor):
    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.names.add(node.id)

    def _skip(self, node: ast.AST) -> None:
        """Skip names with a scope of their own."""

    visit_FunctionDef = visit_ClassDef = visit_Lambda = visit_comprehension = _skip  # noqa: N815
