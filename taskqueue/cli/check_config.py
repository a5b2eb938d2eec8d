"""`taskqueue check-config`: every problem of the configuration, or the plan that follows from it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskqueue import formats
from taskqueue.config import (
    Config,
    Group,
    check_users,
    effective_user,
    load,
    mask_pairs,
    mask_url,
    service_user,
    user_exists,
)
from taskqueue.errors import ConfigError
from taskqueue.plugins import discover

__all__ = ["add_parser", "run"]

WRONG = 6  # exit status
COLUMNS = ("group", "type", "processes", "user", "queue", "settings")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command to a program's commands."""
    parser = subparsers.add_parser(
        "check-config",
        help="show what is wrong with the configuration, and what follows from it",
        description="Show every problem and every warning about the configuration, and the worker processes that "
        "follow from it on this host.  The exit status is 0 where the daemons can use it, else 6.",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace, plugins: Mapping[str, str] | None = None) -> int:
    """Do it; `args` has `config` and `url` (None or empty: not given) and `json`.

    plugins: worker type -> entry point; None: those that are installed.
    """
    installed, oddities = discover() if plugins is None else (plugins, ())
    third, refused = formats.discover()
    root = os.geteuid() == 0
    try:
        path = Path(args.config) if args.config else None
        config = load(path, installed, formats=(*formats.BUILTIN, *third), url=args.url or "")
    except ConfigError as error:
        _show([{"kind": "problem", "text": problem} for problem in error.problems], json_lines=args.json)
        return WRONG
    warnings = (*oddities, *refused, *config.warnings, *check_users(config, root=root))
    _show([{"kind": "warning", "text": warning} for warning in warnings], json_lines=args.json)
    options, groups = _options(config, root), [_row(group, config, root) for group in config.groups]
    if args.json:
        _show([{"kind": "options", **options}, *({"kind": "group", **group} for group in groups)], json_lines=True)
    else:
        print("\n".join(_text(config, options, groups)))
    return 0


def _show(lines: Iterable[Mapping[str, object]], *, json_lines: bool) -> None:
    """One JSON object a line to the standard output, or sentences to the standard error."""
    for line in lines:
        if json_lines:
            print(json.dumps(line))
        else:
            print(f"{line['kind']}: {line['text']}", file=sys.stderr)


def _options(config: Config, root: bool) -> dict[str, object]:
    """The options that hold for all groups, as they take effect."""
    return {
        "path": str(config.path),
        "conf.d": [str(path) for path in config.more],
        "url": mask_url(config.url),
        "user": service_user(config, root=root, exists=user_exists),
        "log_level": None if config.logging else config.log_level,
        "max_body": config.max_body,
        "default_workitem_type": config.default_workitem_type,
        "workitem_type_map": dict(config.workitem_type_map),
        "max_types": config.max_types,
        "results_max_length": config.results_max_length,
        "dead_retention": config.dead_retention,
        "history_retention": config.history_retention,
        "history_max": config.history_max,
        "statistics_retention": config.statistics_retention,
        "queue_type": config.queue_type,
        "heartbeat": config.heartbeat,
    }


def _row(group: Group, config: Config, root: bool) -> dict[str, Any]:
    """A group as it may be shown."""
    return {
        **{name: value for name, value in asdict(group).items() if name != "installation"},
        "group": group.name,
        "processes": group.workers if group.entry_point else 0,
        "installed": bool(group.entry_point),
        "user": effective_user(group, config, root=root, exists=user_exists),
        "queue": group.queue,
        "environment": mask_pairs(group.environment),
        "settings": mask_pairs(group.settings),
    }


def _text(config: Config, options: Mapping[str, object], groups: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    current = "root" if os.geteuid() == 0 else "the user that starts it"
    for name, value in options.items():
        if value is None:
            shown = "as [loggers] says"
        elif isinstance(value, float):
            shown = f"{value:.15g} s"
        elif isinstance(value, list):
            shown = ", ".join(value)
        elif isinstance(value, dict):
            shown = ", ".join(f"{given} = {meant}" for given, meant in value.items())
        elif name == "user":
            shown = str(value or current)
        else:
            shown = str(value)
        yield f"{name:<23}{shown}".rstrip()
    yield ""
    if not groups:
        yield "No worker processes: no plugin is installed here, and no section names a worker type."
        return
    rows = [
        (
            str(row["group"]),
            str(row["type"]),
            str(row["processes"]) if row["installed"] else "0 (no plugin)",
            str(row["user"] or current),
            str(row["queue"]),
            ", ".join(f"{name} = {value!r}" for name, value in row["settings"].items()),
        )
        for row in groups
    ]
    header = tuple(column.upper() for column in COLUMNS)
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(COLUMNS))]
    for row in (header, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
