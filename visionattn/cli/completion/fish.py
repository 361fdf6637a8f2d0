"""The completion script for fish."""

from collections.abc import Mapping, Sequence

from visionattn.cli import COMMANDS
from visionattn.cli.completion.arguments import Argument

__all__ = ["script"]

# fish completes only the first value of an option by itself.
AFTER = """\
function __visionattn_after -d 'the last option before the cursor is one of the arguments'
    for word in (commandline -opc)[-1..2]
        if string match -qr -- '^-[^0-9]' $word
            contains -- $word $argv
            return $status
        end
    end
    return 1
end
"""


def script(arguments: Mapping[str, Sequence[Argument]]) -> str:
    """Return the script for the arguments of all commands."""
    lines = [
        "# Completion for visionattn, written by: visionattn --install-completion fish",
        AFTER,
        "complete -c visionattn -f",
        "complete -c visionattn -n __fish_use_subcommand -l help -d 'list the commands'",
        "complete -c visionattn -n __fish_use_subcommand -l version -d 'print the version'",
        *(
            f"complete -c visionattn -n __fish_use_subcommand -l {name} -x -a 'bash zsh fish'"
            for name in ("install-completion", "show-completion")
        ),
    ]
    for command, entries in arguments.items():
        lines.append(f"complete -c visionattn -n __fish_use_subcommand -a {command} -d {_quoted(COMMANDS[command])}")
        for entry in entries:
            lines.append(f"complete -c visionattn -n '__fish_seen_subcommand_from {command}' {_definition(entry)}")
            if entry.options and entry.most > 1 and (values := _values(entry)):
                condition = f"__fish_seen_subcommand_from {command}; and __visionattn_after {' '.join(entry.options)}"
                lines.append(f"complete -c visionattn -n '{condition}' {values}")
    return "\n".join(lines) + "\n"


def _definition(entry: Argument) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in entry.options]
    parts = [*names, *([f"-d {_quoted(entry.help)}"] if names and entry.help else [])]
    if names and entry.least:
        parts.append("-r" if entry.paths == "files" else "-x")
    return " ".join([*parts, _values(entry)]).rstrip()


def _values(entry: Argument) -> str:
    """Return the options of `complete` for the values of an argument, or ""."""
    choices = [*entry.words, *(["(__fish_complete_directories)"] if entry.paths == "folders" else [])]
    parts = ["-F"] if entry.paths == "files" else []
    parts += [f"-a {_quoted(' '.join(choices))}"] if choices else []
    return " ".join(parts)


def _quoted(text: str) -> str:
    """Return text in single quotes, in which fish interprets only backslashes and quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
