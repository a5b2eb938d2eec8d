"""From the sections of worker types and groups to the groups that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from taskqueue.config.ini import Report, Section
from taskqueue.config.options import DEFAULT, WORKERS, Option, is_reserved, nearest, nearest_section
from taskqueue.config.values import Group
from taskqueue.workitem import is_type

__all__ = ["Read", "one_group", "read_options", "resolve"]

_TIME_LIMITS = ("soft_time_limit", "time_limit")
VALID_NAME = "expected up to 128 letters, digits, '.', '_' and '-', beginning with a letter or digit"


def read_options(
    section: Section, table: Mapping[str, Option], report: Report, unknown: Callable[[str], None]
) -> dict[str, Any]:
    """The values of a section's options by name, without defaults.

    `unknown` is called with the name of every option that is not in `table`.
    """
    names = {**{name: name for name in table}, **{o.alias: name for name, o in table.items() if o.alias}}
    values: dict[str, Any] = {}
    for entry in section.entries.values():
        name = names.get(entry.name)
        if name is None:
            unknown(entry.name)
            continue
        if name in values:
            message = f"[{section.name}] {entry.name}: expected either {name} or {table[name].alias}, not both"
            report.problem(entry.place, message)
        try:
            values[name] = table[name].parse(entry.value.strip())  # a list may begin in the line below
        except ValueError as error:
            report.wrong(section, entry, str(error))
    return values


class Read(NamedTuple):
    """A worker section's options, understood."""

    section: Section
    values: Mapping[str, Any]
    settings: Mapping[str, str]


def resolve(sections: Mapping[str, Section], plugins: Mapping[str, str], report: Report) -> tuple[Group, ...]:
    """The groups of all installed plugins and of all worker sections, sorted by type.

    plugins: worker type -> entry point.
    """
    read = {
        name: _read(section, report)
        for name, section in sections.items()
        if name == DEFAULT or (not is_reserved(name) and _named_well(section, report))
    }
    default = read.pop(DEFAULT, Read(Section(DEFAULT), {}, {}))
    if isinstance(default.values.get("workers"), tuple):
        report.wrong(default.section, default.section.entries["workers"], "expected a number")
    members = _members(read, report)
    owner = {group: type for type, names in members.items() for group in names}
    groups: list[Group] = []
    for type in sorted({*_runnable(plugins, owner, read, report), *(name for name in read if name not in owner)}):
        own = read.get(type, Read(Section(type), {}, {}))
        entry_point = plugins.get(type, "")
        if not entry_point:
            _not_installed(own.section, plugins, report)
        for name in members.get(type, (type,)):
            layers = (default, own) if name == type else (default, own, read[name])
            groups.append(one_group(name, type, entry_point, layers, report))
    return tuple(groups)


def _named_well(section: Section, report: Report) -> bool:
    if not is_type(section.name):
        report.problem(section.place, f"[{section.name}]: no worker type can have this name: {VALID_NAME}")
        return False
    return True


def _read(section: Section, report: Report) -> Read:
    settings: dict[str, str] = {}

    def setting(name: str) -> None:
        settings[name] = section.entries[name].value
        meant = nearest(name, WORKERS)
        if meant:
            place = section.entries[name].place
            report.warning(place, f"[{section.name}] {name}: did you mean {meant}? It is passed on to the plugin")

    return Read(section, read_options(section, WORKERS, report, setting), settings)


def _members(read: Mapping[str, Read], report: Report) -> dict[str, tuple[str, ...]]:
    """The sections of the groups that each type names."""
    members: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for type, own in read.items():
        names = own.values.get("workers")
        if not isinstance(names, tuple):
            continue
        groups = []
        for name in names:
            group = f"{type}_{name}"
            wrong = _cannot_be_group(group, type, name, read, owner)
            if wrong:
                report.wrong(own.section, own.section.entries["workers"], wrong)
            else:
                owner[group] = type
                groups.append(group)
        members[type] = tuple(groups)
    for group, type in owner.items():
        if group in members:
            section = read[group].section
            report.wrong(section, section.entries["workers"], f"expected a number, as this is a group of [{type}]")
    return members


def _cannot_be_group(group: str, type: str, name: str, read: Mapping[str, Read], owner: Mapping[str, str]) -> str:
    """What is wrong with naming `group` as a group of `type`; empty: nothing."""
    if owner.get(group) == type:
        return f"expected each group once, and {name} is there twice"
    if group in owner:
        return f"expected names of groups of this type alone, and [{group}] is a group of [{owner[group]}], too"
    if is_reserved(group):
        return f"expected a number or names of groups, and [{group}] is a reserved section"
    if group not in read:
        own = name.removeprefix(f"{type}_")
        meant = f"write {own} for [{name}]" if name in read and name != own else ""
        near = nearest(group, read)
        hint = meant or (f"did you mean [{near}]?" if near and near != type else "")
        return (
            f"expected a number or names of groups, each with its section, and there is no section [{group}]"
            f"{'; ' if hint else ''}{hint}"
        )
    return ""


def _runnable(
    plugins: Mapping[str, str], owner: Mapping[str, str], read: Mapping[str, Read], report: Report
) -> list[str]:
    """The installed types that can have processes."""
    types = []
    for type in sorted(plugins):
        if not is_type(type):
            report.warning(None, f"the plugin {type!r} is not run, as no worker type can have this name: {VALID_NAME}")
        elif type in owner:
            report.warning(
                read[type].section.place,
                f"[{type}] is a group of [{owner[type]}], and a plugin {type} is installed as well, which is not run: "
                f"expected another name for the group",
            )
        else:
            types.append(type)
            if is_reserved(type):
                report.warning(
                    None,
                    f"the plugin {type} runs with the options of [DEFAULT] alone, as [{type}] is a reserved section",
                )
    return types


def _not_installed(section: Section, plugins: Mapping[str, str], report: Report) -> None:
    hint = ""
    parents = [type for type in plugins if section.name.startswith(f"{type}_")]
    if parents:
        parent = max(parents, key=len)
        hint = f" (for a group of {parent}, name {section.name.removeprefix(f'{parent}_')} in workers of [{parent}])"
    elif meant := nearest_section(section.name, plugins):
        hint = f"; did you mean [{meant}]?"
    report.warning(section.place, f"[{section.name}]: no plugin for this worker type is installed here{hint}")


def one_group(name: str, type: str, entry_point: str, layers: Sequence[Read], report: Report) -> Group:
    """The group that some sections make together, the last one counting; what is wrong with it goes to `report`."""
    values: dict[str, Any] = {}
    settings: dict[str, str] = {}
    for layer in layers:
        # The names of groups are the type's own: its groups take the number of [DEFAULT].
        values.update({n: value for n, value in layer.values.items() if n != "workers" or isinstance(value, int)})
        settings.update(layer.settings)
    group = Group(name=name, type=type, entry_point=entry_point, settings=tuple(sorted(settings.items())), **values)
    if 0 < group.time_limit <= group.soft_time_limit:
        section = next(layer.section for layer in reversed(layers) if layer.values.keys() & set(_TIME_LIMITS))
        entry = next(section.entries[option] for option in _TIME_LIMITS if option in section.entries)
        report.wrong(
            section, entry, f"expected a soft_time_limit below time_limit, and for {name} they are "
            f"{group.soft_time_limit:g} s and {group.time_limit:g} s",
        )  # fmt: skip
    return group
