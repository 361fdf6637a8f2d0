"""``visionattn --install-completion`` and ``--show-completion``: scripts for bash, zsh and fish.

The scripts are written from the argument parsers, with the names of models and configs, and do not start Python while
completing. They have to be written again after an update of the package.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from visionattn.cli.completion import bash, fish, zsh
from visionattn.cli.completion.arguments import all_arguments
from visionattn.errors import ConfigError, VisionattnError

__all__ = ["SHELLS", "run", "script", "target"]

SHELLS = {"bash": bash.script, "zsh": zsh.script, "fish": fish.script}

HINTS = {
    "bash": "it is used in new shells with the package bash-completion; without it, add to ~/.bashrc: source {file}",
    "zsh": "it is used in new shells if ~/.zshrc has: fpath=({folder} $fpath); autoload -Uz compinit; compinit",
    "fish": "it is used in new shells",
}


def run(argv: Sequence[str]) -> int:
    """Print or install the script of a shell, and return the exit status.

    Args:
        argv: ``--install-completion`` or ``--show-completion``, and optionally the shell.
    """
    try:
        shell = _shell(argv[1:])
        text = script(shell)
        if argv[0] == "--show-completion":
            print(text, end="")
            return 0
        file = target(shell)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except VisionattnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"wrote {file}\n{HINTS[shell].format(file=file, folder=file.parent)}")
    return 0


def _shell(given: Sequence[str]) -> str:
    """Return the shell that is given, or that of the user.

    Raises:
        ConfigError: it is not supported.
    """
    names = ", ".join(SHELLS)
    if len(given) > 1:
        raise ConfigError(f"one shell must be given, {names}, got {' '.join(given)}")
    name = given[0] if given else Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise ConfigError(f"the shell must be one of {names}, got {name or 'none: $SHELL is not set'}")
    return name


def script(shell: str) -> str:
    """Return the completion script of a shell, one of `SHELLS`."""
    return SHELLS[shell](all_arguments())


def target(shell: str) -> Path:
    """Return the file where a shell looks for the script."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    if shell == "bash":
        folder = Path(os.environ.get("BASH_COMPLETION_USER_DIR") or data / "bash-completion")
        return folder / "completions/visionattn"
    if shell == "zsh":
        return data / "zsh/site-functions/_visionattn"
    return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "fish/completions/visionattn.fish"
