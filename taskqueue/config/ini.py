"""Reading the file: configparser's rules, with the line of everything."""

from __future__ import annotations

import configparser
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from taskqueue.config.secrets import mask

__all__ = ["Entry", "Place", "Report", "Section", "merge", "read"]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line of a file (0: none of its own); places are ordered as they are read.

    number: which file, in their order.
    """

    number: int
    line: int
    path: Path = field(compare=False)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else str(self.path)


@dataclass(frozen=True, slots=True)
class Entry:
    """An option as it is in the file; `name` in lower case."""

    name: str
    value: str
    place: Place

    @property
    def line(self) -> int:
        """The line that it begins in."""
        return self.place.line


@dataclass(frozen=True, slots=True)
class Section:
    """A section as it is in the file, without what [DEFAULT] says.  `place` None: it is not there."""

    name: str
    place: Place | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def line(self) -> int:
        """The line of its header; 0: it is not there."""
        return self.place.line if self.place is not None else 0


class Report:
    """Collects what is wrong or odd, so that all of it can be said at once.  `path`: of the first file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._problems: list[tuple[Place, str]] = []
        self._warnings: list[tuple[Place, str]] = []

    @property
    def problems(self) -> tuple[str, ...]:
        """What makes the file unusable, in the order of the lines."""
        return tuple(message for _, message in sorted(self._problems, key=lambda found: found[0]))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd, in the order of the lines."""
        return tuple(message for _, message in sorted(self._warnings, key=lambda found: found[0]))

    def problem(self, place: Place | None, message: str) -> None:
        """Something makes the configuration unusable; None: it is in no line."""
        self._problems.append((place or self._nowhere, f"{place or self.path}: {message}"))

    def warning(self, place: Place | None, message: str) -> None:
        """Something is odd; None: it is in no line."""
        self._warnings.append((place or self._nowhere, f"{place or self.path}: {message}"))

    def wrong(self, section: Section, entry: Entry, expected: str) -> None:
        """The value of an option makes the file unusable."""
        first, more, _ = entry.value.partition("\n")
        # The further lines may be options that were indented by mistake, a password among them.
        hint = "; it goes on in the next line, as every line does that begins with a space or tab" if more else ""
        self.problem(entry.place, f"[{section.name}] {entry.name} = {mask(entry.name, first)!r}: {expected}{hint}")

    @property
    def _nowhere(self) -> Place:
        return Place(0, 0, self.path)


def merge(files: Sequence[Mapping[str, Section]], same: Mapping[str, Mapping[str, str]]) -> dict[str, Section]:
    """The sections of all files together: of an option that is in several, the last one counts.

    same: for each section the options that have another name, and that name.
    """
    merged: dict[str, Section] = {}
    for sections in files:
        for name, section in sections.items():
            before = merged.get(name, Section(name, section.place))
            names = same.get(name, {})
            given = {names.get(entry, entry) for entry in section.entries}
            kept = {
                n: entry for n, entry in before.entries.items() if n in section.entries or names.get(n, n) not in given
            }
            merged[name] = replace(before, entries={**kept, **section.entries})
    return merged


def read(text: str, report: Report, *, number: int = 0, path: Path | None = None) -> dict[str, Section]:
    """The sections of a file; what is wrong with its syntax goes to `report`.

    number, path: which file it is; the first one by default.
    """

    def place(line: int) -> Place:
        return Place(number, line, path or report.path)

    lines = io.StringIO(text.removeprefix("\ufeff")).readlines()
    while True:
        parser = _Parser(lines)
        try:
            parser.read_file(parser.source())
        except configparser.MissingSectionHeaderError as error:
            _before_first_section(lines, error.lineno, place, report)
            continue
        except configparser.ParsingError as error:
            for line in sorted({number for number, _ in error.errors}):
                # The line itself is not shown: it may be half a password.
                report.problem(place(line), "this line can't be understood: expected [section], or option = value")
        for line, message in parser.duplicates:
            report.problem(place(line), message)
        return parser.found(place)


def _before_first_section(lines: list[str], number: int, place: Callable[[int], Place], report: Report) -> None:
    report.problem(place(number), "this line stands before the first section: expected [section], such as [DEFAULT]")
    # Go on behind it, so that the rest of the file is checked as well.
    first = next((n for n in range(number, len(lines)) if lines[n].startswith("[")), len(lines))
    lines[:first] = ["\n"] * first


class _Parser(configparser.RawConfigParser):
    """A configparser that notes the lines of sections and options, and what is there twice.

    It knows no default section: what [DEFAULT] means is decided in `groups`.
    """

    def __init__(self, lines: list[str]) -> None:
        # Not strict: a strict one stops at the first duplicate, and allows a second [DEFAULT].
        super().__init__(strict=False, default_section="")
        self.SECTCRE = cast("re.Pattern[str]", _Headers(self))
        self.duplicates: list[tuple[int, str]] = []
        self._lines = lines
        self._line = 0
        self._section = ""
        self._section_lines: dict[str, int] = {}
        self._option_lines: dict[tuple[str, str], int] = {}
        self._block: dict[str, int] = {}
        self._reading = True

    def source(self) -> Iterator[str]:
        """The lines, noting which one is being read."""
        for number, line in enumerate(self._lines, 1):
            self._line = number
            yield line

    def header(self, section: str) -> None:
        """A section begins in this line."""
        self._section = section
        self._block = {}
        if section in self._section_lines:
            first = self._section_lines[section]
            self.duplicates.append((self._line, f"[{section}] is there twice: the first is in line {first}"))
        self._section_lines.setdefault(section, self._line)

    def optionxform(self, optionstr: str) -> str:
        """An option's name in lower case; called by configparser for each option that it reads."""
        name = optionstr.lower()
        if self._reading and name:
            if name in self._block:
                first = self._block[name]
                message = f"[{self._section}] {name} is there twice: the first is in line {first}"
                self.duplicates.append((self._line, message))
            self._block.setdefault(name, self._line)
            self._option_lines[self._section, name] = self._line
        return name

    def found(self, place: Callable[[int], Place]) -> dict[str, Section]:
        """What was read."""
        self._reading = False
        entries: dict[str, dict[str, Entry]] = {name: {} for name in self._section_lines}
        for (section, name), line in self._option_lines.items():
            entries[section][name] = Entry(name, self.get(section, name), place(line))
        return {name: Section(name, place(line), entries[name]) for name, line in self._section_lines.items()}


class _Headers:
    """Stands for configparser's pattern of section headers and tells the parser of each that it finds."""

    def __init__(self, parser: _Parser) -> None:
        self._parser = parser

    def match(self, line: str) -> re.Match[str] | None:
        found = configparser.RawConfigParser.SECTCRE.match(line)
        if found is not None:
            self._parser.header(found["header"])
        return found
