"""Writes the man pages: `python3 docs/manpages.py DIRECTORY`.

The prose is in docs/man; commands and options come from where the program itself has them. In the prose a line
`@options COMMAND@` stands for the options of a command, `@commands@` for all commands, `@section NAME@` for the
options of a section of the configuration.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from taskqueue.cli import command_line
from taskqueue.config.options import AMQP, TASKQUEUE, WORKERS

TOP = Path(__file__).resolve().parent.parent
DAEMONS = ("dispatcher", "workerpool")  # which have pages of their own
COMMON = {"-h", "-c", "--url", "--json", "-v", "-q"}  # shown once for all commands
SECTIONS = {"taskqueue": TASKQUEUE, "amqp": AMQP, "DEFAULT": WORKERS}


def main(directory: Path) -> None:
    """Write all pages."""
    directory.mkdir(parents=True, exist_ok=True)
    for prose in sorted((TOP / "docs" / "man").glob("*.in")):
        (directory / prose.stem).write_text(page(prose.read_text(encoding="utf-8")), encoding="utf-8")


def page(prose: str) -> str:
    """A man page of its prose."""
    version = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    parts = {
        "version": lambda _: version,
        "commands": lambda _: "\n".join(commands()),
        "options": lambda name: "\n".join(options(parsers()[name], leave=frozenset({"-h"}))),
        "common": lambda _: "\n".join(options(parsers()["send"], only=COMMON - {"-h"})),
        "section": lambda name: "\n".join(section(name)),
    }
    return re.sub(r"@(\w+)(?: (\w+))?@", lambda match: parts[match[1]](match[2]), prose)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """All commands, those below others as `dead list`."""
    found: dict[str, argparse.ArgumentParser] = {}

    def add(parser: argparse.ArgumentParser, prefix: str) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, below in action.choices.items():
                    found[prefix + name] = below
                    add(below, f"{prefix}{name} ")

    add(command_line(), "")
    return found


def commands() -> Iterator[str]:
    """Each command that has no page of its own and none below it."""
    for name, parser in parsers().items():
        if name not in DAEMONS and not any(isinstance(a, argparse._SubParsersAction) for a in parser._actions):
            places = [str(action.metavar) for action in parser._actions if not action.option_strings]
            yield f".SS {text(' '.join(('taskqueue', name, *places)))}"
            yield text(parser.description or "")
            yield from options(parser, leave=COMMON)


def options(
    parser: argparse.ArgumentParser, *, leave: frozenset[str] | set[str] = frozenset(), only: set[str] | None = None
) -> Iterator[str]:
    """The arguments of a command, without those that `leave` has, or only those that `only` has."""
    for action in parser._actions:
        names = set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction) or names & leave or (only is not None and not names & only):
            continue
        value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
        shown = ", ".join(rf"\fB{text(name)}\fR" for name in action.option_strings)
        yield ".TP"
        yield f"{shown} {emphasized(value)}".strip()
        yield text((action.help or "") % {"default": action.default, "prog": parser.prog})


def section(name: str) -> Iterator[str]:
    """The options of a section of the configuration."""
    for option in SECTIONS[name].values():
        yield ".TP"
        yield rf"\fB{text(option.name)}\fR = {text(option.default)}".rstrip()
        yield text(option.meaning)


def emphasized(value: str) -> str:
    """What stands for a value."""
    return rf"\fI{text(value)}\fR" if value else ""


def text(plain: str) -> str:
    """Plain text as roff takes it."""
    escaped = plain.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{escaped}" if escaped.startswith(".") else escaped


if __name__ == "__main__":
    main(Path(sys.argv[1]))
