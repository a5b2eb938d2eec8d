"""A configuration as it took effect: every option with its value, without secrets, and where that came from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskqueue.config.ini import Entry, Section
from taskqueue.config.options import AMQP, DEFAULT, TASKQUEUE, WORKERS, Option, is_reserved
from taskqueue.config.secrets import mask, mask_pairs, mask_url
from taskqueue.config.values import Config

__all__ = ["Setting", "settings", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One option of one section.

    value: as it would be written in the file; secrets are masked.
    origin: `file`, `default`, or what names the broker instead of the file, such as `--url`.
    file, line: where it stands; empty and 0: in no file.
    inherited: it stands in another section.
    used: False where something else goes before it.
    """

    option: str
    value: str
    origin: str
    file: str = ""
    line: int = 0
    inherited: bool = False
    used: bool = True


def settings(config: Config, sections: Mapping[str, Section], *, named_by: str = "") -> dict[str, tuple[Setting, ...]]:
    """All sections with all their options.

    sections: of the files that `config` comes from.
    named_by: what names the broker instead of the file; empty: nothing does.
    """
    shown = {"taskqueue": _taskqueue(config, sections, named_by), "amqp": _amqp(sections, named_by)}
    shown[DEFAULT] = _worker([_section(sections, DEFAULT)])
    for group in config.groups:
        if is_reserved(group.type):  # a plugin of such a name has the options of [DEFAULT] alone
            continue
        own, type, default = (_section(sections, name) for name in (group.name, group.type, DEFAULT))
        shown.setdefault(group.type, _worker([type, default]))
        if group.name != group.type:
            shown[group.name] = _worker([own, type, default], group=True)
    for name, section in sections.items():
        if name not in shown:
            shown[name] = tuple(_from_file(entry, mask(entry.name, entry.value)) for entry in section.entries.values())
    return shown


def text(shown: Mapping[str, Sequence[Setting]]) -> Iterator[str]:
    """The lines of a file that means the same, but for what is masked; each value with where it came from."""
    for section, options in shown.items():
        yield f"[{section}]"
        for each in options:
            yield f"# {f'{each.file}:{each.line}' if each.line else each.origin}{'' if each.used else ', not used'}"
            lines = [line.rstrip() for line in f"{each.option} = {each.value}".split("\n")]
            yield "\n    ".join(lines) if each.used else "\n".join(f"; {line}" for line in lines)
        yield ""


def _section(sections: Mapping[str, Section], name: str) -> Section:
    return sections.get(name, Section(name))


def _from_file(entry: Entry, value: str, *, option: str = "", inherited: bool = False, used: bool = True) -> Setting:
    name = option or entry.name
    file, line = str(entry.place.path), entry.line
    return Setting(option=name, value=value, origin="file", file=file, line=line, inherited=inherited, used=used)


def _taskqueue(config: Config, sections: Mapping[str, Section], named_by: str) -> tuple[Setting, ...]:
    entries = _section(sections, "taskqueue").entries
    found = []
    for option in TASKQUEUE.values():
        entry = entries.get(option.name)
        if option.name == "url" and (named_by or not (_named(entry) or _amqp_is_used(sections, named_by))):
            found.append(Setting(option="url", value=mask_url(config.url), origin=named_by or "default"))
        elif entry is None:
            found.append(Setting(option=option.name, value=option.default, origin="default"))
        else:
            found.append(_from_file(entry, mask(entry.name, entry.value)))
    return tuple(found)


def _named(entry: Entry | None) -> bool:
    return entry is not None and bool(entry.value.strip())


def _amqp_is_used(sections: Mapping[str, Section], named_by: str) -> bool:
    """Whether [amqp] names the broker, and not a URL."""
    if named_by or _named(_section(sections, "taskqueue").entries.get("url")):
        return False
    entries = _section(sections, "amqp").entries
    return any(name != "heartbeat" and (name != "password_file" or _named(entries[name])) for name in entries)


def _amqp(sections: Mapping[str, Section], named_by: str) -> tuple[Setting, ...]:
    entries = _section(sections, "amqp").entries
    is_used = _amqp_is_used(sections, named_by)
    file = _named(entries.get("password_file"))
    found = []
    for option in AMQP.values():
        entry = entries.get(option.name) or entries.get(option.alias)
        used = option.name == "heartbeat" or (is_used and not (option.name == "password" and file))
        if entry is None:
            found.append(Setting(option=option.name, value=option.default, origin="default", used=used))
            continue
        value = mask(entry.name, entry.value)
        if option.name == "password_file":  # a path is no secret, and means the same from everywhere like this
            value = str((entry.place.path.parent / entry.value.strip()).absolute()) if file else ""
        found.append(_from_file(entry, value, option=option.name, used=used))
    return tuple(found)


def _worker(layers: Sequence[Section], *, group: bool = False) -> tuple[Setting, ...]:
    """The options of a worker section, then its plugin's settings.

    layers: the section itself first, then those from which it takes what it does not have.
    group: it takes no number from its type, which has the names of its groups there.
    """
    own = layers[0]
    names = dict.fromkeys([*WORKERS, *sorted({name for layer in layers for name in layer.entries})])
    found = []
    for name in names:
        option: Option | None = WORKERS.get(name)
        there = [layer for n, layer in enumerate(layers) if not (group and name == "workers" and n == 1)]
        where = next((layer for layer in there if name in layer.entries), None)
        if where is None:
            assert option is not None
            found.append(Setting(option=name, value=option.default, origin="default"))
            continue
        entry = where.entries[name]
        value = _environment(option, entry) if name == "environment" else mask(name, entry.value)
        found.append(_from_file(entry, value, inherited=where is not own))
    return tuple(found)


def _environment(option: Option | None, entry: Entry) -> str:
    """The variables with their secrets masked one by one, which quoting may hide from a look at the whole."""
    assert option is not None
    pairs: Any = option.parse(entry.value.strip())
    return shlex.join(f"{name}={value}" for name, value in mask_pairs(pairs).items())
