"""What a change of a model did."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ReplaceReport", "some"]


@dataclass(frozen=True)
class ReplaceReport:
    """Result of `replace_attention` or `insert_after`: names of modules and parameters of the model.

    Attributes:
        modules: new modules.
        kept: parameters with the values of those they replace.
        new: newly initialized parameters.
        dropped: removed parameters.
        notes: options that were chosen automatically.
    """

    modules: tuple[str, ...]
    kept: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.modules)} modules: {some(self.modules)}"]
        for word, names in (("kept", self.kept), ("new", self.new), ("dropped", self.dropped)):
            if names:
                lines.append(f"{word} {len(names)} tensors: {some(names)}")
        return "\n".join([*lines, *self.notes])


def some(names: Sequence[str]) -> str:
    """Return the first names as text."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
