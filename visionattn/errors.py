"""The errors a user can meet. The commands print their message as one line; nothing else ends a command.

A message names the thing (file, key, argument), says what is wrong with it, and what to do.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "ConfigProblemsError",
    "DataError",
    "MissingDependencyError",
    "OutOfMemoryError",
    "TrainingError",
    "VisionattnError",
    "require",
]


LONGEST = 1500
"""Characters of a line of a message, which may quote a file that nobody vouches for."""


class VisionattnError(Exception):
    """Base of every error that a user can cause and mend."""

    def __init__(self, *args: object) -> None:
        if args and isinstance(args[0], str) and len(args[0]) > LONGEST:
            args = ("\n".join(map(_cut, args[0].split("\n"))), *args[1:])
        super().__init__(*args)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} ... {line[-280:]}"


class BackendError(VisionattnError, RuntimeError):
    """A kernel backend was named that cannot run here; the message gives the reason."""


class ConfigError(VisionattnError):
    """A config file is missing, malformed or contradicts itself."""


class ConfigProblemsError(ConfigError):
    """All that is wrong with a config at once; ``problems`` has one line for each.

    Args:
        name: the config.
        problems: at least one line.
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


class DataError(VisionattnError):
    """An image, annotation file or dataset folder is missing, unreadable or inconsistent."""


class TrainingError(VisionattnError):
    """Training cannot go on, such as when the loss is not finite."""


class OutOfMemoryError(VisionattnError):
    """The memory does not hold a single picture or tile."""


class MissingDependencyError(VisionattnError, ImportError):
    """An optional package is not installed; the message has the command that brings it."""


def require(module: str, extra: str = "openmmlab") -> ModuleType:
    """Import an optional dependency, or raise `MissingDependencyError` with the pip command that brings it.

    Args:
        module: name to import, such as ``"cv2"``.
        extra: the extra of this package that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise  # the module is there; something it imports is not
        raise MissingDependencyError(f"{module} is not installed; run: pip install 'visionattn[{extra}]'") from error
    except ImportError as error:
        if "libGL" in str(error):
            raise MissingDependencyError(
                f"{module} needs the system library libGL; run: apt-get install libgl1"
            ) from error
        raise
