"""Values: whatever is sent comes back as it was, and whatever comes in, a value or a FormatError comes of it."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taskqueue.errors import FormatError, TaskFailure
from taskqueue.formats import reading
from taskqueue.formats.values import (
    COMPRESSED,
    MEDIA,
    ForeignError,
    classes_of,
    decode,
    decode_call,
    encode,
    encode_call,
)
from taskqueue.outcome import Payload

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")


class Colour(Enum):
    RED = "red"
    BLUE = (0, 0, 255)


class Level(IntEnum):
    LOW = 1


class Kind(StrEnum):
    A = "a"


class Right(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: Any
    y: Any = 0


@dataclass(frozen=True, slots=True, order=True)
class Price:
    amount: Any
    colour: Colour = Colour.RED


@dataclass
class Order:
    lines: Any
    total: Any = field(init=False, default=0)


class Declined(Exception):
    def __init__(self, code: object) -> None:
        super().__init__(f"declined: {type(code).__name__}", code)
        self.code = code


CLASSES = classes_of(Colour, Level, Kind, Right, Point, Price, Order, Declined)

ZONES = st.one_of(
    st.none(),
    st.just(UTC),
    st.sampled_from(["Europe/Berlin", "America/St_Johns", "UTC", "Etc/GMT+5"]).map(ZoneInfo),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text(st.characters())),
)
FOLDS = st.integers(0, 1)
WORDS = st.text("abc.ü- ", min_size=1)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.text(st.characters()),  # with lone surrogates
    st.builds(lambda number, power: number << power, st.integers(-9, 9), st.sampled_from([2040, 20_000])),
    st.complex_numbers(),
    st.binary(),
    st.builds(lambda at, zone, fold: at.replace(tzinfo=zone, fold=fold), st.datetimes(), ZONES, FOLDS),
    st.builds(lambda at, zone, fold: at.replace(tzinfo=zone, fold=fold), st.times(), ZONES, FOLDS),
    st.dates(),
    st.timedeltas(),
    st.decimals(),
    st.sampled_from(["sNaN12", "-NaN", "-0", "1E+999999", "0E-99999", "1.10"]).map(Decimal),
    st.uuids(),
    st.lists(st.text(st.characters(blacklist_characters="\0")), max_size=3).map(lambda parts: Path(*parts)),
    st.lists(WORDS, max_size=3).map(lambda parts: PurePosixPath(*parts)),
    st.lists(WORDS, max_size=3).map(lambda parts: PureWindowsPath("c:/", *parts)),
    st.sampled_from([*Colour, *Level, *Kind, Right.READ, Right.READ | Right.WRITE, Right(0)]),
)
NAMES = st.text() | st.sampled_from(["$tuple", "$dict", "$", "$deferred"]) | st.text(st.characters())
HASHABLE = st.recursive(
    SCALARS.filter(lambda value: not (isinstance(value, Decimal) and value.is_snan())),
    lambda children: st.one_of(
        st.lists(children, max_size=3).map(tuple),
        st.frozensets(children, max_size=3),
        st.builds(Point, children, children),
        st.builds(Price, children),
    ),
    max_leaves=4,
)


def _order(lines: object, total: object) -> Order:
    order = Order(lines)
    order.total = total
    return order


def _noted(error: BaseException, notes: list[str], **more: object) -> BaseException:
    for note in notes:
        error.add_note(note)
    vars(error).update(more)
    return error


def exceptions(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    made = st.one_of(
        st.builds(lambda kind, args: kind(*args), st.sampled_from([ValueError, KeyError, SystemExit, StopIteration]),
                  st.lists(children, max_size=3)),
        st.builds(OSError, st.sampled_from([2, 13, 9999]), st.text(), st.just("/etc/ü")),
        st.builds(UnicodeDecodeError, st.just("utf-8"), st.binary(min_size=1), st.just(0), st.just(1), st.text()),
        st.builds(Declined, children),
        st.builds(lambda inner: ExceptionGroup("several", [ValueError(inner)]), children),
        st.builds(TaskFailure, st.text(), st.just("t"), st.just("failed"), st.text()),
    )  # fmt: skip
    return st.builds(_noted, made, st.lists(st.text(), max_size=1), more=children)


VALUES = st.recursive(
    SCALARS | st.binary().map(bytearray),
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(NAMES, children, max_size=3),
        st.dictionaries(HASHABLE, children, max_size=3),
        st.sets(HASHABLE, max_size=3),
        st.frozensets(HASHABLE, max_size=3),
        st.builds(Point, children, children),
        st.builds(Price, children),
        st.builds(_order, children, children),
        exceptions(children),
    ),
    max_leaves=8,
)


def alike(one: Any, other: Any) -> bool:
    """Whether two values are the same to the letter: classes, signs of zero, time zones, and all that == passes by."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, complex):
        return alike(one.real, other.real) and alike(one.imag, other.imag)
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, Enum):
        return one is other
    if isinstance(one, datetime | time):
        return one.replace(tzinfo=None) == other.replace(tzinfo=None) and one.fold == other.fold and (
            one.tzinfo is other.tzinfo if isinstance(one.tzinfo, ZoneInfo) else repr(one.tzinfo) == repr(other.tzinfo)
        )  # fmt: skip
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return alike([*one], [*other]) and alike([*one.values()], [*other.values()])
    if isinstance(one, set | frozenset):  # an order that is the same for what is alike
        return len(one) == len(other) and all(any(alike(a, b) for b in other) for a in one)
    if isinstance(one, BaseException):
        return (
            alike(one.args, other.args)
            and alike(vars(one), vars(other))
            and getattr(one, "filename", 0) == getattr(other, "filename", 0)
        )
    if isinstance(one, Price):
        return alike([one.amount, one.colour], [other.amount, other.colour])
    if isinstance(one, Order):
        return alike(vars(one), vars(other))
    return bool(one == other)


@settings(max_examples=500, deadline=None)
@given(VALUES)
@example("\ud83d\ude00")
@example({"$tuple": [1]})
@example({"\ud800": 1})
@example([[], {}, [{}], 10**4299, 10**4300, -(10**5000), math.inf, -0.0])
@example(datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1))
@example(time(1, tzinfo=timezone(timedelta(microseconds=-1), "ü\ud800")))
def test_what_is_sent_comes_back_as_it_was(sent: object) -> None:
    payload, after = encode(sent, what="the result")

    assert payload.content_type == MEDIA
    assert after == ()
    assert alike(decode(payload, classes=CLASSES), sent)
    # It is JSON that anybody can read, to the last character.
    json.loads(payload.body.decode(), parse_constant=int).__class__.__name__.encode()


@settings(max_examples=300, deadline=None)
@given(st.lists(VALUES, max_size=3), st.dictionaries(NAMES, VALUES, max_size=3))
@example([], {"$tuple": [1]})
@example([{}], {"$tuple": (1,)})
def test_arguments_come_back_as_they_were(args: list[object], kwargs: dict[str, object]) -> None:
    payload, _ = encode_call(args, kwargs)

    back = decode_call(payload, classes=CLASSES)

    assert alike(back[0], args)
    assert alike(back[1], kwargs)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_who_names_no_class_gets_a_value_or_a_format_error(sent: object) -> None:
    payload, _ = encode(sent, what="the result")
    try:
        decode(payload)
    except FormatError as error:
        assert "is not named by who reads this" in error.detail


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_what_was_read_by_somebody_without_classes_is_sent_on_as_it_was(sent: object) -> None:
    error = _noted(Declined(sent), [], more=sent)
    strange, _ = encode(error, what="the result")

    read = decode(strange, classes={name: kind for name, kind in CLASSES.items() if kind is not Declined})

    assert isinstance(read, ForeignError)
    assert alike(decode(encode(read, what="the result").payload, classes=CLASSES), error)


# --- hostile ---

MARKED = st.sampled_from(sorted(reading.MARKERS))
CLASS_NAMES = st.sampled_from(
    [*CLASSES, "builtins.ValueError", "builtins.OSError", "builtins.ExceptionGroup", "os.system"]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), CLASS_NAMES,
    st.sampled_from(["2024-01-01", "12:00", "nan", "-ff", "AAAA", "Europe/Berlin", "../../etc/passwd", "RED", "x"]),
)  # fmt: skip
KEYS = st.sampled_from(
    ["class", "message", "args", "attributes", "at", "zone", "fold", "offset", "name", "x", "lines", "total", "amount",
     "__class__", "__dict__", "__notes__"]
)  # fmt: skip
FORMS = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(KEYS | st.text(max_size=2), children, max_size=4),
        st.builds(lambda name, form: {name: form}, MARKED, children),
        st.builds(lambda marker, name, form: {marker: [name, form]}, MARKED, CLASS_NAMES, children),
        st.builds(
            lambda name, args, attributes: {
                "$exception": {"class": name, "message": "", "args": args, "attributes": attributes}
            },
            CLASS_NAMES, st.lists(children, max_size=3), st.dictionaries(KEYS, children, max_size=2),
        ),
    ),
    max_leaves=12,
)  # fmt: skip
TEXTS = st.one_of(
    FORMS.map(lambda form: json.dumps(form).encode()),
    FORMS.map(lambda form: json.dumps(form, ensure_ascii=False).encode(errors="replace")),
    st.builds(lambda form, at: json.dumps(form).encode()[:at], FORMS, st.integers(0, 50)),
    st.binary(),
    st.lists(st.sampled_from([b"[", b"{", b'"$tuple"', b":", b"]", b"}", b",", b"1", b"\\u0024"])).map(b"".join),
    st.sampled_from([b"[" * 100_000, b'{"$tuple":[' * 1000, b"1" * 5000, b'{"$set":[{}]}']),
)
PAYLOADS = st.one_of(
    TEXTS.map(lambda text: Payload(text, MEDIA)),
    TEXTS.map(lambda text: Payload(zlib.compress(text), COMPRESSED)),
    st.builds(lambda text, at: Payload(zlib.compress(text)[:at], COMPRESSED), TEXTS, st.integers(0, 30)),
    st.builds(Payload, TEXTS, st.text() | st.text().map(lambda more: f"{MEDIA};{more}") | st.just(COMPRESSED)),
)


@settings(max_examples=1500, deadline=None)
@given(PAYLOADS)
@example(
    Payload(b'{"$exception":{"class":"builtins.OSError","message":"","args":[],"attributes":{"__class__":1}}}', MEDIA)
)
def test_whatever_comes_in_is_a_value_or_a_format_error(payload: Payload) -> None:
    for read in (decode, decode_call):
        for resolve in (None, lambda id, name: [id]):
            try:
                read(payload, classes=CLASSES, resolve=resolve, limit=1_000_000)
            except FormatError as error:
                assert error.detail.isprintable()
                assert len(error.detail) < 400
                error.detail.encode()
