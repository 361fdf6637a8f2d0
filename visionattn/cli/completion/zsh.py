"""The completion script for zsh."""

import re
from collections.abc import Mapping, Sequence

from visionattn.cli import COMMANDS
from visionattn.cli.completion.arguments import Argument

__all__ = ["script"]

MOST = 8
"""Number of values after an option that are completed."""

TEMPLATE = """\
#compdef visionattn
# Completion for visionattn, written by: visionattn --install-completion zsh

{sets}
_visionattn_commands() {{
  local -a commands=(
{commands}
  )
  _describe command commands
}}

_visionattn() {{
  local curcontext=$curcontext state line
  typeset -A opt_args
  _arguments -C \\
    '(- *)--help[list the commands]' \\
    '(- *)--version[print the version]' \\
    '(- *)--install-completion[complete with the Tab key]:shell:(bash zsh fish)' \\
    '(- *)--show-completion[print the completion script]:shell:(bash zsh fish)' \\
    '1:command:_visionattn_commands' \\
    '*::argument:->arguments'
  [[ $state == arguments ]] || return
  case $words[1] in
{cases}
  esac
}}

if [[ $funcstack[1] == _visionattn ]]; then _visionattn "$@"; else compdef _visionattn visionattn; fi
"""


def script(arguments: Mapping[str, Sequence[Argument]]) -> str:
    """Return the script for the arguments of all commands."""
    sets: dict[tuple[str, tuple[str, ...]], str] = {}  # functions that several arguments share
    cases = []
    for command, entries in arguments.items():
        specs = []
        for number, entry in enumerate((entry for entry in entries if not entry.options), 1):
            specs.append(f"'{number if entry.most == 1 else '*'}:{_escaped(entry.metavar)}:{_action(entry, sets)}'")
        specs += [_option(entry, sets) for entry in entries if entry.options]
        cases.append(f"    {command})\n      _arguments \\\n        " + " \\\n        ".join(specs) + " ;;")
    functions = []
    for (paths, words), name in sets.items():
        lines = [f"  compadd -- {' '.join(words)}"] if words else []
        lines += [{"files": "  _files", "folders": "  _files -/"}[paths]] if paths else []
        functions.append("\n".join([f"{name}() {{", *lines, "}"]))
    return TEMPLATE.format(
        sets="\n".join(functions) + "\n",
        commands="\n".join(f"    '{name}:{_escaped(COMMANDS[name])}'" for name in arguments),
        cases="\n".join(cases),
    )


def _option(entry: Argument, sets: dict) -> str:
    """Return the specification of an option; its names exclude each other."""
    value = f":{_escaped(entry.metavar)}:{_action(entry, sets)}" if entry.most else ""
    # Not `:*-*:`, with which the option that ends the values would be completed as one of them.
    optional = min(entry.most - entry.least, MOST)
    text = f"[{_escaped(entry.help)}]{value * entry.least}{f':{value}' * optional}"
    if len(entry.options) == 1:
        return f"'{entry.options[0]}{text}'"
    return f"'({' '.join(entry.options)})'{{{','.join(entry.options)}}}'{text}'"


def _action(entry: Argument, sets: dict) -> str:
    if not entry.words and not entry.paths:
        return " "
    return sets.setdefault((entry.paths, entry.words), f"_visionattn_{len(sets)}")


def _escaped(text: str) -> str:
    """Return text with the characters escaped that `_arguments` interprets, for use in single quotes."""
    return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''")
