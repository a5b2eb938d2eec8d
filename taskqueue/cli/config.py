"""`taskqueue config show`: the configuration as it takes effect."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from taskqueue import formats
from taskqueue.config import find, load, settings, text
from taskqueue.plugins import discover

__all__ = ["add_parser", "show"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add the command to a program's commands."""
    config = subparsers.add_parser("config", help="show the configuration as it takes effect")
    commands = config.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = commands.add_parser(
        "show",
        help="show the configuration as it takes effect",
        description="Print the options of the configuration as they take effect, each with where its value came from, "
        "secrets as ***.  But for these, the output is a configuration that means the same.",
    )
    parser.add_argument("--effective", action="store_true", help="every option of every section, with its default, too")
    parser.set_defaults(run=show)
    return [parser]


def show(args: argparse.Namespace, plugins: Mapping[str, str] | None = None) -> int:
    """Do it; `args` has `config` and `url` (empty: not given), `effective` and `json`.

    plugins: worker type -> entry point; None: those that are installed.  Raises ConfigError.
    """
    installed = discover()[0] if plugins is None else plugins
    path = Path(args.config) if args.config else None
    known = (*formats.BUILTIN, *formats.discover()[0])
    file = find(path)
    config = load(path, installed, formats=known, url=args.url)
    named_by = "" if file.there else "the embedded broker, as there is no configuration"
    if args.url:
        named_by = "TASKQUEUE_URL" if args.url == os.environ.get("TASKQUEUE_URL") else "--url"
    shown = settings(config, file.sections(), named_by=named_by)
    if not args.effective:
        there = {"taskqueue", *file.sections()} if named_by else file.sections()
        shown = {
            section: tuple(each for each in options if each.origin != "default" and not each.inherited)
            for section, options in shown.items()
            if section in there
        }
    if args.json:
        for section, options in shown.items():
            for each in options:
                shown_option = {name: value for name, value in asdict(each).items() if name != "file" or value}
                print(json.dumps({"kind": "setting", "section": section, **shown_option}))
    else:
        print("\n".join(text(shown)))
    return 0
