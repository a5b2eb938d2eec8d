"""Finds plugins in the metadata of installed packages, without importing them; and loads one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskqueue.errors import PluginError
from taskqueue.workitem import is_type

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "chosen", "discover", "entry_points", "load", "refusal"]

GROUP = "worker.plugins"


def discover() -> tuple[dict[str, str], tuple[str, ...]]:
    """Type name to `module:attribute`, for every installed plugin; and what is wrong with others, in sentences."""
    return entry_points(GROUP, "type", refusal)


def refusal(name: str) -> str:
    """Why no worker type can have this name; empty: one can."""
    return "" if is_type(name) else "the name is no valid type"


def entry_points(group: str, kind: str, refusal: Callable[[str], str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Name to `module:attribute` of what is installed in `group`; and what is wrong with the rest, in sentences.

    kind: what its names are.  refusal: why a name can't be used; empty: it can.
    """
    found, problems = chosen(group, kind, refusal)
    return {name: entry_point.value for name, entry_point in found.items()}, problems


def chosen(group: str, kind: str, refusal: Callable[[str], str]) -> tuple[dict[str, EntryPoint], tuple[str, ...]]:
    """The entry points that `entry_points` names, whole."""
    from importlib import metadata  # worker processes load plugins and discover none

    # A daemon has closed all files that it inherited: forget zipped eggs that the metadata finder holds open.
    metadata.MetadataPathFinder.invalidate_caches(metadata.MetadataPathFinder)  # type: ignore[call-arg, unused-ignore]
    found: dict[str, EntryPoint] = {}
    problems = []
    for entry_point in sorted(metadata.entry_points(group=group), key=lambda e: (e.name, e.value)):
        if why := refusal(entry_point.name):
            problems.append(f"entry point {entry_point.name!r} = {entry_point.value!r} in {group}: {why}")
        elif (first := found.setdefault(entry_point.name, entry_point).value) != entry_point.value:
            problems.append(
                f"{kind} {entry_point.name!r} is claimed by {first!r} and {entry_point.value!r}; the first one is used"
            )
    return found, tuple(problems)


def load(value: str) -> Callable[[], Any]:
    """What `module:attribute` names: a factory.  Raises PluginError, or whatever its import raises."""
    module_name, _, attributes = value.partition(":")
    loaded: Any = importlib.import_module(module_name.strip())
    for attribute in filter(None, attributes.partition("[")[0].strip().split(".")):
        loaded = getattr(loaded, attribute)
    if not callable(loaded):
        raise PluginError(f"{value} is not callable; it should be a factory")
    return loaded  # type: ignore[no-any-return]
