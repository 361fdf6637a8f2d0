"""Pages with the options of every command, from its argument parser."""

import argparse

from extension.rst import block, escaped, title
from visionattn.cli import COMMANDS, build_parser, values_of

TITLES = {"positional arguments": "Arguments", "options": "Options"}


def pages() -> dict[str, str]:
    """Return the page of each command, and the list of all commands, by file name."""
    rows = [f"| [`{name}`](../_generated/commands/{name}.rst) | {text} |" for name, text in COMMANDS.items()]
    names = [f"../_generated/commands/{name}" for name in COMMANDS]
    lines = ["| command | |", "|---|---|", *rows, "", "```{toctree}", ":hidden:", "", *names, "```", ""]
    return {
        "command_list.md": "\n".join(lines),  # included by reference/commands.md
        **{f"commands/{name}.rst": page(name) for name in COMMANDS},
    }


def page(command: str) -> str:
    """Return the page of a command."""
    parser = build_parser(command)
    parts = [
        title(f"visionattn {command}"),
        f"{parser.description}\n",
        block("code-block", "text", parser.usage),
        block("program", f"visionattn {command}"),
    ]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            name = TITLES.get(group.title, group.title)
            parts.append(title(name[0].upper() + name[1:], "-"))
            parts += [f"{escaped(group.description)}.\n"] if group.description else []
            parts += [
                block("option", _signature(action), escaped(parser._get_formatter()._expand_help(action)))
                for action in actions
            ]
    return "\n".join(parts)


def _signature(action: argparse.Action) -> str:
    """Return an option with its values, such as ``--out DIR``, or a positional argument."""
    values = values_of(action)
    if not action.option_strings:
        return values
    return ", ".join(f"{option} {values}".rstrip() for option in action.option_strings)
