"""Back from what `writing` made to the values.

What a payload names is looked up among the classes that its reader names; nothing is imported for it, and nothing
called but the constructors of those.
"""

from __future__ import annotations

import pathlib
import re
import zoneinfo
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import UUID

from taskqueue.errors import FormatError
from taskqueue.formats.chartext import line, shown
from taskqueue.formats.classes import EXCEPTIONS, ForeignError, builtin_of, class_named, fields_of, is_named_tuple

__all__ = ["MARKERS", "Reader"]

_HEXADECIMAL = re.compile(r"-?[0-9a-f]+", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")

T = TypeVar("T")
_Read = Callable[["Reader", Any], object]


class Reader:
    """Called with each object of a JSON text, the inner ones first: makes values of markers.

    classes: what a payload may name, by name.
    resolve: says the value of a deferred by its id and its task's name; None: there must be none.
    """

    def __init__(self, classes: Mapping[str, type], resolve: Callable[[str, str], object] | None) -> None:
        self.classes = classes
        self.resolve = resolve
        self.unresolved: BaseException | None = None
        """What `resolve` raised."""

    def __call__(self, found: dict[str, object]) -> object:
        if len(found) != 1:
            return found
        ((name, form),) = found.items()
        if not name.startswith("$"):
            return found
        if name == "$deferred":
            return self._resolved(form)
        if name not in _READERS:
            raise FormatError(f"unknown marker {shown(name)}")
        try:
            return _READERS[name](self, form)
        except FormatError:
            raise
        except Exception as error:  # a constructor's own, too
            reason = line("".join((type(error).__name__, ": ", _said(error))))
            raise FormatError(f"what is marked {name} can't be read: {reason}") from None

    def _resolved(self, form: object) -> object:
        id, name = _pair(form) if isinstance(form, list) else (form, "")
        if self.resolve is None or not (isinstance(id, str) and isinstance(name, str)):
            raise FormatError("there is a deferred in it, and nothing to take its place")
        try:
            return self.resolve(id, name)
        except BaseException as error:
            self.unresolved = error
            raise

    def class_named(self, name: object) -> type:
        """The class that the reader names so."""
        kind = class_named(_is(str, name), self.classes)
        if kind is None:
            raise FormatError(f"the class {shown(_is(str, name))} is not named by who reads this")
        return kind


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its own
        return ""


def _is(kind: type[T], form: object) -> T:
    if type(form) is not kind:
        raise FormatError(f"{kind.__name__} expected in a marker, not {line(type(form).__name__)}")
    return form


def _pair(form: object) -> list[Any]:
    if len(_is(list, form)) != 2:
        raise FormatError("two elements expected in a marker")
    return _is(list, form)


def _text_for(make: Callable[[str], object]) -> _Read:
    return lambda reader, form: make(_is(str, form))


def _list_for(make: Callable[[list[object]], object]) -> _Read:
    return lambda reader, form: make(_is(list, form))


def _bytes(text: str) -> bytes:
    return b64decode(text, validate=True)


def _int(text: str) -> int:
    if _HEXADECIMAL.fullmatch(text) is None:
        raise ValueError("not hexadecimal")
    return int(text, 16)


def _dict(form: list[Any]) -> dict[object, object]:
    return dict(map(_pair, form))


def _complex(form: list[Any]) -> complex:
    real, imag = map(float, _pair(form))
    return complex(real, imag)


def _duration(form: list[Any]) -> timedelta:
    days, seconds, microseconds = (_is(int, number) for number in form)
    return timedelta(days, seconds, microseconds)


def _zone(name: str) -> tzinfo:
    # Where there is no such file, ZoneInfo would import a package for it.
    if _ZONE.fullmatch(name) is None or not any(pathlib.Path(place, name).is_file() for place in zoneinfo.TZPATH):
        raise FormatError(f"the time zone {shown(name)} is not installed here (tzdata of the system)")
    return zoneinfo.ZoneInfo(name)


def _moment(kind: type[datetime] | type[time]) -> _Read:
    def read(reader: Reader, form: object) -> object:
        if isinstance(form, str):
            return kind.fromisoformat(form)
        more = _is(dict, form)
        found = kind.fromisoformat(more["at"]).replace(fold=more.get("fold", 0))
        if "zone" in more:
            return found.replace(tzinfo=_zone(_is(str, more["zone"])))
        if "offset" in more:
            return found.replace(tzinfo=timezone(*(more[part] for part in ("offset", "name") if part in more)))
        return found

    return read


def _named_tuple(reader: Reader, form: object) -> object:
    name, items = _pair(form)
    kind = class_named(_is(str, name), reader.classes)
    if kind is None:
        return tuple(_is(list, items))
    if not is_named_tuple(kind):
        raise FormatError(f"the class {shown(name)} is no named tuple")
    return kind._make(_is(list, items))  # type: ignore[attr-defined]


def _enum(reader: Reader, form: object) -> object:
    name, member = _pair(form)
    kind = reader.class_named(name)
    if not issubclass(kind, Enum):
        raise FormatError(f"the class {shown(name)} is no Enum")
    if issubclass(kind, Flag):
        return kind(_is(int, member))
    if member not in kind.__members__:
        raise FormatError(f"{shown(name)} has no member {shown(_is(str, member))}")
    return kind.__members__[member]


def _dataclass(reader: Reader, form: object) -> object:
    name, values = _pair(form)
    kind = reader.class_named(name)
    if not is_dataclass(kind):
        raise FormatError(f"the class {shown(name)} is no dataclass")
    known = fields_of(kind)
    if more := [field for field in _is(dict, values) if field not in known]:
        raise FormatError(f"{shown(name)} has no field {shown(str(more[0]))}")
    made = kind(**{field: value for field, value in values.items() if known[field]})
    # As it was sent, whatever the constructor makes of its arguments.
    for field, value in values.items():
        object.__setattr__(made, field, value)
    return made


def _exception(reader: Reader, form: object) -> object:
    found = _is(dict, form)
    name, message = _is(str, found["class"]), _is(str, found["message"])
    args, attributes = _is(list, found["args"]), _is(dict, found["attributes"])
    kind = EXCEPTIONS.get(name) or class_named(name, reader.classes)
    made: BaseException
    if kind is None or not issubclass(kind, BaseException):
        made = ForeignError(name, message, args)
    else:
        # Its constructor may want other arguments than it passes on, so only what Python's own class does is done.
        made = kind.__new__(kind, *args)
        builtin_of(kind).__init__(made, *args)
    vars(made).update({_is(str, attribute): value for attribute, value in attributes.items()})
    return made


_READERS: Mapping[str, _Read] = MappingProxyType(
    {
        "$str": _text_for(lambda text: _bytes(text).decode("utf-8", "surrogatepass")),
        "$int": _text_for(_int),
        "$float": _text_for(float),
        "$complex": _list_for(_complex),
        "$tuple": _list_for(tuple),
        "$set": _list_for(set),
        "$frozenset": _list_for(frozenset),
        "$dict": _list_for(_dict),
        "$bytes": _text_for(_bytes),
        "$bytearray": _text_for(lambda text: bytearray(_bytes(text))),
        "$datetime": _moment(datetime),
        "$time": _moment(time),
        "$date": _text_for(date.fromisoformat),
        "$timedelta": _list_for(_duration),
        "$decimal": _text_for(Decimal),
        "$uuid": _text_for(UUID),
        "$path": _text_for(pathlib.Path),
        "$posixpath": _text_for(pathlib.PurePosixPath),
        "$windowspath": _text_for(pathlib.PureWindowsPath),
        "$namedtuple": _named_tuple,
        "$enum": _enum,
        "$dataclass": _dataclass,
        "$exception": _exception,
    }
)
MARKERS = frozenset((*_READERS, "$deferred"))
"""The names of all markers."""
