"""Exceptions for errors that users can cause and correct. The command line prints their messages as one line.

A message names the file, config key or argument (in backticks), and states the problem and the allowed values or the
remedy.
"""

import importlib
import re
from collections.abc import Sequence
from types import ModuleType

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "ConfigProblemsError",
    "DataError",
    "FormatError",
    "LimitError",
    "MismatchError",
    "MissingDependencyError",
    "OutOfMemoryError",
    "TrainingError",
    "VisionattnError",
    "require",
    "summary",
]


LONGEST = 1500
"""Maximum number of characters in a line of a message, as messages may quote untrusted files."""
SUMMARY = 400
"""Maximum number of characters in a summary of an error of another library."""


class VisionattnError(Exception):
    """Base class of all errors that users can cause and correct."""

    def __init__(self, *args: object) -> None:
        if args and isinstance(args[0], str) and len(args[0]) > LONGEST:
            args = ("\n".join(map(_cut, args[0].split("\n"))), *args[1:])
        super().__init__(*args)


def summary(error: BaseException) -> str:
    """Return an error of another library as one line of at most `SUMMARY` characters.

    Compilers quote whole programs and commands. Of long messages the introduction is kept, and the first line that a
    compiler marks as an error.
    """
    lines = [line for line in (" ".join(line.split()) for line in str(error).splitlines()) if line]
    text = " ".join(lines) or type(error).__name__
    if len(text) <= SUMMARY:
        return text
    count = next((i for i, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    marked = [line for line in lines[count:] if re.search(r"\berror: ", line)]
    each = SUMMARY // 2 - 5
    kept = [*lines[: min(count, 3)], *marked[:1]]
    parts = [line if len(line) <= each else f"{line[:each]} ..." for line in kept]
    return " ".join(parts)[:SUMMARY]


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} ... {line[-280:]}"


class BackendError(VisionattnError, RuntimeError):
    """A kernel backend or exported program cannot run; the message gives the reason."""


class ConfigError(VisionattnError):
    """A config file, an option or an argument is missing, malformed or inconsistent."""


class ConfigProblemsError(ConfigError):
    """One or more problems of a config.

    Args:
        name: config file.
        problems: one line per problem, at least one.
    """

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.name, self.problems = name, tuple(problems)
        count = len(self.problems)
        super().__init__(
            f"{name}: {self.problems[0]}" if count == 1 else "\n  ".join([f"{name}: {count} problems", *self.problems])
        )

    def __reduce__(self) -> tuple:
        return type(self), (self.name, self.problems)


class CheckpointError(VisionattnError):
    """A checkpoint cannot be read safely, or does not fit the model."""


class MismatchError(CheckpointError):
    """A checkpoint does not fit the model.

    Args:
        text: what does not fit.
        advice: a sentence with the remedy.
    """

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(f"{text}. {advice}" if advice else text)
        self.text, self.advice = text, advice

    def __reduce__(self) -> tuple:
        return type(self), (self.text, self.advice)


class DataError(VisionattnError):
    """An image, annotation file or dataset folder is missing, unreadable or inconsistent."""


class FormatError(DataError):
    """A file is of a format that is not supported."""


class LimitError(DataError):
    """A file is larger than a limit."""


class TrainingError(VisionattnError):
    """Training cannot continue, for example because the loss is not finite."""


class OutOfMemoryError(VisionattnError):
    """Not even a single image or tile fits into memory."""


class MissingDependencyError(VisionattnError, ImportError):
    """An optional package is not installed; the message contains the pip command."""


def require(module: str, extra: str = "openmmlab") -> ModuleType:
    """Import an optional dependency.

    Args:
        module: module name, such as ``"cv2"``.
        extra: extra of this package that installs it.

    Raises:
        MissingDependencyError: the package, or a system library that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise  # the module is installed, but one of its imports is missing
        raise MissingDependencyError(f"{module} is not installed; run: pip install 'visionattn[{extra}]'") from error
    except ImportError as error:
        if "libGL" in str(error):
            raise MissingDependencyError(
                f"{module} needs the system library libGL; run: apt-get install libgl1"
            ) from error
        raise
