"""Progress bars and texts for the console."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import progress
from rich.console import Console
from rich.text import Text

__all__ = ["count_of", "examples", "progress_bar", "track"]


def count_of(number: int, noun: str) -> str:
    """Return the number with its noun, in the plural unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def examples(names: Sequence[object], limit: int = 6) -> str:
    """Return the first names, joined by commas, with ``...`` if there are more."""
    return ", ".join(map(str, names[:limit])) + (", ..." if len(names) > limit else "")


def progress_bar(noun: str, console: Console | None = None, *columns: Any, **options: Any) -> progress.Progress:
    """Return a progress bar with rate and remaining time.

    Args:
        noun: noun for one of the counted items, in the singular.
        console: by default standard error.
        *columns: further columns, or texts with the fields of a task, such as ``"{task.fields[text]}"``.
        **options: arguments of ``Progress``, such as ``transient=True``.
    """

    class Rate(progress.ProgressColumn):
        """Items per second, or seconds per item below one item per second."""

        def render(self, task: progress.Task) -> Text:
            rate = task.finished_speed or task.speed
            if not rate:
                return Text(f"- {noun}/s")
            return Text(f"{rate:.1f} {noun}/s" if rate >= 1 else f"{1 / rate:.1f} s/{noun}")

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(compact=True),
        *(progress.TextColumn(column) if isinstance(column, str) else column for column in columns),
        console=Console(stderr=True) if console is None else console,
        **options,
    )


def track(items: Iterable[Any], label: str, total: int, noun: str = "image", disable: bool = False) -> Iterator[Any]:
    """Iterate over items with a progress bar on standard error, if that is a terminal.

    Args:
        items: the items.
        label: text before the bar.
        total: number of items.
        noun: noun for one of the counted items, in the singular.
        disable: show no bar.
    """
    console = Console(stderr=True)
    with progress_bar(noun, console, transient=True, disable=disable or not console.is_terminal) as bar:
        yield from bar.track(items, total=total, description=label)
