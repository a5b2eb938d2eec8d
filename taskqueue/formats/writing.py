"""From values to what JSON can express: what it can't is an object with one member, its marker."""

from __future__ import annotations

import math
import pathlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from types import MappingProxyType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from taskqueue.errors import FormatError
from taskqueue.formats.chartext import line, shown
from taskqueue.formats.classes import ForeignError, builtin_of, class_named, fields_of, is_named_tuple, name_of
from taskqueue.formats.jsontext import MAX_DEPTH
from taskqueue.formats.plain import SCALARS, is_object, is_text
from taskqueue.workitem import MAX_ID

__all__ = ["Writer"]

_MAX_BITS = 2048  # no reader's limit of digits refuses integers up to that; larger ones are written in hexadecimal
_DEEP = f"is nested deeper than {MAX_DEPTH} levels"
_LEAF = 3  # levels of JSON that a marker without other values in it takes at most
_WHERE = 160  # characters of the way to what can't be sent


class _Refused(Exception):
    """What can't be sent, and the way to it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.steps: list[str] = []
        self.containers: list[int] = []

    def inside(self, container: object, step: str) -> None:
        """Say that it lies in `container`, at `step`."""
        self.steps.append(step)
        self.containers.append(id(container))

    def said(self, what: str) -> str:
        """All of it in one line."""
        if self.reason is _DEEP:
            endless = len(set(self.containers)) < len(self.containers)
            return f"{what} {'contains itself' if endless else self.reason}"
        where = what + "".join(reversed(self.steps))
        if len(where) > _WHERE:
            where = f"{where[: _WHERE // 2]}...{where[-_WHERE // 2 :]}"
        return f"{where} can't be sent: {self.reason}"


class Writer:
    """Writes the values of one payload.

    deferred: says the id of what is a deferred, and its task's name; an empty id, and its value, where that is here;
        None of anything else.
    classes: what the reader names, by name; None: not known.
    """

    def __init__(
        self, deferred: Callable[[object], tuple[str, Any] | None], classes: Mapping[str, type] | None
    ) -> None:
        self.deferred = deferred
        self.classes = classes
        self.after: dict[str, None] = {}
        """Ids of the deferreds that were written, in their order."""

    def write(self, what: str, value: object, depth: int = 0) -> object:
        """The form of `value`, which is `what` in messages, inside of `depth` levels of JSON.  Raises FormatError."""
        try:
            return _WRITERS.get(type(value), _other)(self, value, depth)
        except _Refused as refused:
            raise FormatError(refused.said(what)) from None
        except RecursionError:  # whoever calls is deep in the stack already
            raise FormatError(f"{what} {_DEEP}") from None

    def write_call(self, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """The form of the arguments of a call.  Raises FormatError, which names the argument."""
        by_place = [self.write(f"argument {number}", value, 2) for number, value in enumerate(args, 1)]
        by_name = [self.write(f"argument {shown(name)}", value, 4) for name, value in kwargs.items()]
        return [by_place, _object(self, kwargs, by_name, 2)]

    def items(self, container: object, items: Iterable[object], step: Callable[[int], str], depth: int) -> list[object]:
        """The forms of `items`, each at its `step` in `container`, inside of `depth` levels."""
        if depth > MAX_DEPTH:
            raise _Refused(_DEEP)
        written: list[object] = []
        try:
            for item in items:
                written.append(_WRITERS.get(type(item), _other)(self, item, depth))
        except _Refused as refused:
            refused.inside(container, step(len(written)))
            raise
        return written

    def class_name(self, kind: type) -> str:
        """The name of a class that the reader must name, too."""
        name = name_of(kind)
        if self.classes is not None and class_named(name, self.classes) is None:
            raise _Refused(f"neither the task's annotations nor its space name the class {line(name)}")
        return name


_Write = Callable[[Writer, Any, int], object]


def _leaf(name: str, form: object, depth: int) -> dict[str, object]:
    if depth + _LEAF > MAX_DEPTH:
        raise _Refused(_DEEP)
    return {name: form}


def _is_id(text: str) -> bool:
    try:
        return len(text.encode()) <= MAX_ID
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _bytes(raw: bytes | bytearray) -> str:
    return b64encode(raw).decode("ascii")


def _marked(name: str, form: Callable[[Any], object]) -> _Write:
    return lambda writer, value, depth: _leaf(name, form(value), depth)


def _as_it_is(writer: Writer, value: object, depth: int) -> object:
    return value


def _str(writer: Writer, value: str, depth: int) -> object:
    return value if is_text(value) else _leaf("$str", _bytes(value.encode("utf-8", "surrogatepass")), depth)


def _int(writer: Writer, value: int, depth: int) -> object:
    return value if value.bit_length() <= _MAX_BITS else _leaf("$int", f"{value:x}", depth)


def _float(writer: Writer, value: float, depth: int) -> object:
    return value if math.isfinite(value) else _leaf("$float", repr(value), depth)


def _list(writer: Writer, value: list[object], depth: int) -> object:
    return writer.items(value, value, "[{}]".format, depth + 1)


def _several(name: str, step: Callable[[int], str]) -> _Write:
    return lambda writer, value, depth: {name: writer.items(value, value, step, depth + 2)}


def _dict(writer: Writer, value: dict[Any, object], depth: int) -> object:
    inside = depth + (1 if is_object(value) else 3)
    return _object(writer, value, writer.items(value, value.values(), _step_to_value(value), inside), depth)


def _object(writer: Writer, value: Mapping[Any, object], forms: list[object], depth: int) -> object:
    """The form of a dict whose values have these forms."""
    if is_object(value):
        return dict(zip(value, forms, strict=True))
    keys = writer.items(value, value, lambda _: "[a key]", depth + 3)
    return {"$dict": [list(pair) for pair in zip(keys, forms, strict=True)]}


def _step_to_value(value: dict[Any, object]) -> Callable[[int], str]:
    def step(at: int) -> str:
        key = [*value][at]
        # Whatever is no scalar may have a long name, or none at all.
        return f"[{shown(key) if type(key) is str else key if type(key) in SCALARS else '...'}]"

    return step


def _path(name: str) -> _Write:
    return lambda writer, value, depth: _leaf(name, _str(writer, str(value), depth + 1), depth)


def _moment(name: str) -> _Write:
    def write(writer: Writer, value: datetime | time, depth: int) -> object:
        zone = value.tzinfo
        more: dict[str, object] = {}
        if type(zone) is ZoneInfo:
            if zone.key is None:
                raise _Refused("its time zone has no name")
            more["zone"] = zone.key
        elif type(zone) is timezone:
            offset, said = zone.utcoffset(None), zone.tzname(None)
            named = said != timezone(offset).tzname(None)
            if named or offset.microseconds:  # which Python does not always read back
                more["offset"] = _leaf("$timedelta", _duration(offset), depth + 2)
            if named:
                more["name"] = _str(writer, said, depth + 2)
        elif zone is not None:
            raise _Refused(f"a time zone of class {_name(zone)}: take zoneinfo.ZoneInfo or datetime.timezone")
        if not more and not value.fold:
            return _leaf(name, value.isoformat(), depth)
        kept = None if more else zone
        at = value.replace(tzinfo=kept).isoformat()
        return _leaf(name, {"at": at, "fold": value.fold, **more}, depth)

    return write


def _duration(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _other(writer: Writer, value: object, depth: int) -> object:
    """What has no writer by its class."""
    if (promised := writer.deferred(value)) is not None:
        id, name = promised
        if not id:
            return _WRITERS.get(type(name), _other)(writer, name, depth)
        if not _is_id(id):
            raise _Refused(f"no task has the id {shown(id)}")
        writer.after[id] = None
        return _leaf("$deferred", [id, name] if name else id, depth)
    kind = type(value)
    if isinstance(value, Enum):
        return _enum(writer, value, depth)
    if is_named_tuple(kind):
        fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
        items: tuple[object, ...] = value  # type: ignore[assignment]
        return {"$namedtuple": [name_of(kind), writer.items(value, items, lambda at: f".{fields[at]}", depth + 3)]}
    if isinstance(value, BaseException):
        return _exception(writer, value, depth)
    if is_dataclass(kind):
        return _dataclass(writer, value, depth)
    for base in kind.__mro__:
        if base in _WRITERS:
            raise _Refused(f"{_name(value)} is a class of its own; make it {base.__name__}")
    raise _Refused(f"it is of class {_name(value)}")


def _dataclass(writer: Writer, value: object, depth: int) -> object:
    kind: type = type(value)
    try:
        names = fields_of(kind)
    except TypeError as error:
        raise _Refused(f"the constructor of {_name(value)} does not take its fields: {line(str(error))}") from None
    # One that the constructor does not set need not be there.
    values = {name: getattr(value, name) for name in names if hasattr(value, name)}
    name = writer.class_name(kind)
    forms = writer.items(value, values.values(), lambda at: f".{[*values][at]}", depth + 3)
    return {"$dataclass": [name, dict(zip(values, forms, strict=True))]}


def _enum(writer: Writer, value: Enum, depth: int) -> object:
    kind = type(value)
    if isinstance(value, Flag):
        member: object = _int(writer, value._value_, depth + 2)
    elif kind.__members__.get(value._name_) is value:
        member = _str(writer, value._name_, depth + 2)
    else:
        raise _Refused(f"it is no member of {_name(value)}")
    return _leaf("$enum", [writer.class_name(kind), member], depth)


def _exception(writer: Writer, value: BaseException, depth: int) -> object:
    if isinstance(value, ForeignError):
        name, message = value.class_name, value.message
        args = value.args
    else:
        name, message = name_of(type(value)), _message(value)
        # Python's own classes say what makes them again: a file's name, too, which is not in `args`.
        args = builtin_of(type(value)).__reduce__(value)[1]  # type: ignore[assignment]
    attributes = vars(value)
    return {
        "$exception": {
            "class": name,
            "message": _str(writer, message, depth + 2),
            "args": writer.items(value, args, ".args[{}]".format, depth + 3),
            "attributes": writer.items(value, (attributes,), lambda _: "", depth + 2)[0],
        }
    }


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its own
        return ""


def _name(value: object) -> str:
    return line(name_of(type(value)))


_WRITERS: Mapping[type, _Write] = MappingProxyType(
    {
        type(None): _as_it_is,
        bool: _as_it_is,
        int: _int,
        float: _float,
        str: _str,
        list: _list,
        dict: _dict,
        tuple: _several("$tuple", "[{}]".format),
        set: _several("$set", lambda _: "[a member]"),
        frozenset: _several("$frozenset", lambda _: "[a member]"),
        bytes: _marked("$bytes", _bytes),
        bytearray: _marked("$bytearray", _bytes),
        complex: _marked("$complex", lambda value: [repr(value.real), repr(value.imag)]),
        datetime: _moment("$datetime"),
        time: _moment("$time"),
        date: _marked("$date", date.isoformat),
        timedelta: _marked("$timedelta", _duration),
        Decimal: _marked("$decimal", str),
        UUID: _marked("$uuid", str),
        pathlib.PosixPath: _path("$path"),
        pathlib.WindowsPath: _path("$path"),
        pathlib.PurePosixPath: _path("$posixpath"),
        pathlib.PureWindowsPath: _path("$windowspath"),
    }
)
