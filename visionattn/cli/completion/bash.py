"""The completion script for bash, version 3.2 or newer."""

import shlex
from collections.abc import Mapping, Sequence

from visionattn.cli.completion.arguments import Argument

__all__ = ["script"]

# `_visionattn_values COMMAND ARGUMENT` sets `count`, `words` and `paths` for an option, or for a positional argument by
# its number from 1. `_visionattn_options COMMAND` sets `words`.
TEMPLATE = """\
# Completion for visionattn, written by: visionattn --install-completion bash

{sets}
_visionattn_values() {{
  count=0 words= paths=
  case "$1 $2" in
{values}
  esac
}}

_visionattn_options() {{
  words=
  case "$1" in
{options}
  esac
}}

_visionattn() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} option= left=0 position=1
  local count words paths word i IFS=$' \\t\\n'
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    words={commands} paths=
  elif [[ $command == --install-completion || $command == --show-completion ]]; then
    words="bash zsh fish" paths=
  else
    for ((i = 2; i < COMP_CWORD; i++)); do
      word=${{COMP_WORDS[i]}}
      case $word in
        =) ;;
        -[!0-9]*) option=$word; _visionattn_values "$command" "$option"; left=$count ;;
        *) if ((left > 0)); then ((left--)); else ((position++)); fi ;;
      esac
    done
    [[ $current == = ]] && current=
    if ((left == 0)); then option=$position; fi
    _visionattn_values "$command" "$option"
    if [[ $current == - || $current == -[!0-9]* ]] || [[ -z $current$words$paths && ($left -eq 0 || $left -lt $count) ]]
    then
      paths=
      _visionattn_options "$command"
    fi
  fi
  if [[ $current == "~"/* ]]; then current=$HOME${{current:1}}; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [[ -n $paths ]]; then
    compopt -o filenames 2> /dev/null
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -"$paths" -- "$current")
  fi
}}

complete -F _visionattn visionattn
"""
PATHS = {"files": "f", "folders": "d", "": ""}


def script(arguments: Mapping[str, Sequence[Argument]]) -> str:
    """Return the script for the arguments of all commands."""
    sets: dict[tuple[str, ...], str] = {}  # lists that several arguments share are variables
    values, options = [], []
    for command, entries in arguments.items():
        position = 0
        for entry in entries:
            position += not entry.options
            names = entry.options or (str(position) if entry.most == 1 else "[0-9]*",)
            if entry.most:
                name = sets.setdefault(entry.words, f"_visionattn_{len(sets)}") if entry.words else ""
                pattern = "|".join(_pattern(command, name) for name in names)
                words = f' words="${name}"' if name else ""
                paths = f" paths={PATHS[entry.paths]}" if entry.paths else ""
                values.append(f"    {pattern}) count={entry.most}{words}{paths} ;;")
        names = " ".join(name for entry in entries for name in entry.options if name != "-h")
        options.append(f"    {command}) words={shlex.quote(names)} ;;")
    return TEMPLATE.format(
        sets="".join(f"{name}={shlex.quote(' '.join(words))}\n" for words, name in sets.items()),
        values="\n".join(values),
        options="\n".join(options),
        commands=shlex.quote(
            " ".join((*arguments, "--help", "--version", "--install-completion", "--show-completion"))
        ),
    )


def _pattern(command: str, name: str) -> str:
    return f'"{command} "{name}' if name.startswith("[") else f'"{command} {name}"'
