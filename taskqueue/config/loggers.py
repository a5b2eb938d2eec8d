"""The sections of `logging.config`: what would make it fail when the daemon starts."""

from __future__ import annotations

from collections.abc import Mapping

from taskqueue.config.ini import Entry, Report, Section

__all__ = ["check_logging"]

_LISTS = {"loggers": "logger", "handlers": "handler", "formatters": "formatter"}
_LEVELS = ("NOTSET", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL")


def check_logging(sections: Mapping[str, Section], report: Report) -> bool:
    """Whether the file says how to log; what is wrong with that goes to `report`."""
    if "loggers" not in sections:
        for name, section in sections.items():
            if name in _LISTS or (name.partition("_")[0] in _LISTS.values() and "_" in name):
                report.warning(section.place, f"[{name}] is not used, as there is no section [loggers]")
        return False
    listed = {kind: _listed(kind, sections, report) for kind in _LISTS}
    if "root" not in listed["loggers"]:
        report.problem(sections["loggers"].place, "[loggers] keys: expected root among them")
    for name in listed["loggers"]:
        section = sections.get(f"logger_{name}", Section(""))
        _level(section, report)
        _known(section, "handlers", listed["handlers"], report)
        if section.line and name != "root" and "qualname" not in section.entries:
            report.problem(section.place, f"[{section.name}]: expected the option qualname, the name of the logger")
    for name in listed["handlers"]:
        section = sections.get(f"handler_{name}", Section(""))
        _level(section, report)
        _known(section, "formatter", listed["formatters"], report)
        if section.line and "class" not in section.entries:
            report.problem(section.place, f"[{section.name}]: expected the option class, such as StreamHandler")
    return True


def _names(entry: Entry | None) -> list[str]:
    return [name.strip() for name in entry.value.split(",") if name.strip()] if entry else []


def _listed(kind: str, sections: Mapping[str, Section], report: Report) -> list[str]:
    section = sections.get(kind, Section(kind))
    keys = section.entries.get("keys")
    if keys is None:
        report.problem(section.place, f"[{kind}] keys: expected a list of names; it may be empty")
    for name in _names(keys):
        if f"{_LISTS[kind]}_{name}" not in sections and keys is not None:
            report.wrong(section, keys, f"expected names with sections, and there is no [{_LISTS[kind]}_{name}]")
    return _names(keys)


def _level(section: Section, report: Report) -> None:
    level = section.entries.get("level")
    if level is not None and level.value not in _LEVELS:
        report.wrong(section, level, f"expected one of {', '.join(_LEVELS)}")


def _known(section: Section, option: str, names: list[str], report: Report) -> None:
    entry = section.entries.get(option)
    for name in _names(entry):
        if name not in names and entry is not None:
            report.wrong(section, entry, f"expected names from [{option.rstrip('s')}s] keys, and {name} is not there")
