"""From keyword arguments of a program to a group: the options of a worker section, without a file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from taskqueue.config.groups import Read, one_group, read_options
from taskqueue.config.ini import Entry, Place, Report, Section
from taskqueue.config.options import WORKERS, nearest
from taskqueue.config.values import Group
from taskqueue.errors import ConfigError

__all__ = ["group"]


def group(
    type: str, entry_point: str, arguments: Mapping[str, object], *, settings: Mapping[str, str], caller: str
) -> Group:
    """The group of `type` that keyword arguments describe.

    arguments: what a section may have, as it would be written there, or as numbers, a bool, a timedelta, a mapping.
    settings: the options that are the plugin's own.  caller: who was called with them, for errors.

    Raises ConfigError with all that is wrong.
    """
    nowhere = Place(0, 0, Path(caller))
    report = Report(nowhere.path)

    def unknown(name: str) -> None:
        meant = nearest(name, WORKERS)
        hint = f"did you mean {meant}?" if meant else "what is the worker's own goes into settings"
        report.problem(nowhere, f"[{type}] {name}: there is no such option; {hint}")

    entries = {name: Entry(name, _written(value), nowhere) for name, value in arguments.items()}
    section = Section(type, nowhere, entries)
    values = read_options(section, WORKERS, report, unknown)
    found = one_group(type, type, entry_point, [Read(section, values, settings)], report)
    if report.problems:
        raise ConfigError(*report.problems)
    return found


def _written(value: object) -> str:
    """As it would be in a file."""
    if isinstance(value, Mapping):
        return " ".join(shlex.quote(f"{name}={content}") for name, content in value.items())
    if isinstance(value, timedelta):
        value = value.total_seconds()
    return f"{value:.9f}" if isinstance(value, float) else str(value)
