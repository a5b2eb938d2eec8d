"""Values: what becomes of what can't be sent, of deferreds, of long texts, and of classes that a payload names."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import InitVar, dataclass
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import pytest

from taskqueue.errors import FormatError, UnknownTask
from taskqueue.formats.jsontext import MAX_DEPTH
from taskqueue.formats.reading import MARKERS
from taskqueue.formats.values import (
    COMPRESS_OVER,
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

PROTOCOL = Path(__file__).resolve().parent.parent / "docs/protocol.md"
T = TypeVar("T")


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: object
    level: Level | None = Level.LOW


@dataclass
class Price:
    amount: Any
    colour: Colour = Colour.RED


@dataclass
class Shelf(Generic[T]):
    things: list[T]
    prices: dict[str, Price]


@dataclass
class Strict:
    amount: int

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise ValueError("less than nothing")
        self.amount *= 100


@dataclass
class Secretive:
    amount: InitVar[int]


class Basket(TypedDict):
    point: Point


class DiskFull(OSError):
    def __init__(self, place: str) -> None:
        super().__init__(28, "full", place)
        self.place = place


class Text(str):
    pass


class Deferred:
    def __init__(self, id: str) -> None:
        self.id = id


class Zone(tzinfo):
    def utcoffset(self, _: object) -> timedelta:
        return timedelta(0)


def deferred(value: object) -> str | None:
    return value.id if isinstance(value, Deferred) else None


def sent(value: object) -> Payload:
    return encode(value, what="the result").payload


def form(value: object) -> Any:
    return json.loads(sent(value).body)


def marked(text: str) -> Payload:
    return Payload(text.encode(), MEDIA)


# --- what can't be sent ---


@pytest.mark.parametrize(
    ("args", "kwargs", "where", "why"),
    [
        ((1, object()), {}, "argument 2", "it is of class builtins.object"),
        (
            (),
            {"to": [1, 2, 3, {"key": len}]},
            "argument 'to'[3]['key']",
            "of class builtins.builtin_function_or_method",
        ),
        (({1: (0, object)},), {}, "argument 1[1][1]", "it is of class builtins.type"),
        (({object: 1},), {}, "argument 1[a key]", "it is of class builtins.type"),
        (({len},), {}, "argument 1[a member]", "builtin_function"),
        ((Price([object()]),), {}, "argument 1.amount[0]", "it is of class builtins.object"),
        ((Point(object()),), {}, "argument 1.x", "it is of class builtins.object"),
        ((ValueError(1, object()),), {}, "argument 1.args[1]", "it is of class builtins.object"),
        ((Text("a"),), {}, "argument 1", "test_values.Text is a class of its own; make it str"),
        ((datetime(2024, 1, 1, tzinfo=Zone()),), {}, "argument 1", "a time zone of class test_values.Zone"),
        ((Secretive(1),), {}, "argument 1", "the constructor of test_values.Secretive does not take its fields"),
    ],
)
def test_what_can_not_be_sent_is_named_with_its_place(
    args: tuple[object, ...], kwargs: dict[str, object], where: str, why: str
) -> None:
    with pytest.raises(FormatError) as caught:
        encode_call(args, kwargs)

    assert caught.value.detail.startswith(f"{where} can't be sent: ")
    assert why in caught.value.detail


def test_the_place_of_what_can_not_be_sent_is_shown_in_one_short_line() -> None:
    value: object = object()
    for name in ("a\nb", "c" * 1000, "\ud800") * 20:
        value = {name: value}

    with pytest.raises(FormatError) as caught:
        encode(value, what="the result")

    assert caught.value.detail.startswith("the result['")
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 300


@pytest.mark.parametrize("innermost", [None, Decimal(1)])
@pytest.mark.parametrize("deep", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {1: inner}, Price])
def test_values_nest_no_deeper_than_they_can_be_read(deep: Callable[[object], object], innermost: object) -> None:
    value = readable = innermost
    with pytest.raises(FormatError) as caught:
        for _ in range(MAX_DEPTH + 2):
            payload = sent(value)
            readable, value = value, deep(value)

    assert caught.value.detail == f"the result is nested deeper than {MAX_DEPTH} levels"
    assert decode(payload, classes=classes_of(Price)) == readable


def test_what_contains_itself_is_refused_by_any_way() -> None:
    ring: list[object] = []
    ring.append({"again": (ring,)})
    price = Price(None)
    price.amount = [price]
    error = ValueError(1)
    error.args = (error,)

    for value in (ring, price, error):
        with pytest.raises(FormatError, match=r"^the result contains itself$"):
            encode(value, what="the result")


@pytest.mark.parametrize("innermost", [None, Decimal(1)])
@pytest.mark.parametrize("deep", [lambda inner: [inner], lambda inner: (inner,)])
def test_a_caller_deep_in_the_stack_gets_a_format_error_too(
    deep: Callable[[object], object], innermost: object
) -> None:
    value = innermost
    for _ in range(90):
        value = deep(value)

    def deeper(levels: int) -> object:
        return deeper(levels - 1) if levels else encode(value, what="the result")

    deeper(100)
    with pytest.raises(FormatError, match="nested deeper"):
        for levels in range(500, sys.getrecursionlimit()):
            deeper(levels)


def test_a_class_that_the_reader_does_not_name_is_refused_when_that_is_known() -> None:
    encode_call([Price(1)], {}, classes=classes_of(Price))

    for value in (Colour.RED, Price(1)):
        with pytest.raises(
            FormatError, match=r"^argument 1 can't be sent: neither the task's annotations nor its space"
        ):
            encode_call([value], {}, classes=classes_of(Point))
    # These are readable in any case, if not as they were.
    encode_call([Point(1, None), ForeignError("a.B", "c")], {}, classes={})


# --- what the interpreter is told about numbers ---


@pytest.mark.parametrize("limit", [0, 640, 100_000])
def test_large_integers_come_back_whatever_the_limits_of_digits_are(limit: int) -> None:
    numbers = [10**power for power in (600, 640, 4299, 4300, 50_000)]
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(limit)
    try:
        payload = sent(numbers)
    finally:
        sys.set_int_max_str_digits(before)

    assert decode(payload) == numbers


# --- deferreds ---


def test_deferreds_are_found_wherever_they_are_and_named_once_in_their_order() -> None:
    first, second, third = Deferred("1"), Deferred("2"), Deferred("3")

    payload, after = encode_call(
        [[second, (first, {"a": second})], Price({first})], {"more": {second: Point(third)}}, deferred=deferred
    )
    back = decode_call(payload, classes=classes_of(Price, Point), resolve={"1": 10, "2": 20, "3": {"$x": 1}}.get)

    assert after == ("2", "1", "3")
    assert back == ([[20, (10, {"a": 20})], Price({10})], {"more": {20: Point({"$x": 1})}})


def test_a_deferred_that_nobody_expects_is_no_value() -> None:
    payload, _ = encode(Deferred("1"), what="the result", deferred=deferred)

    with pytest.raises(FormatError, match="a deferred"):
        decode(payload)
    with pytest.raises(FormatError, match="a deferred"):
        decode(marked('{"$deferred": 1}'), resolve=str)


@pytest.mark.parametrize("error", [ValueError("own"), RecursionError(), UnknownTask("1"), KeyboardInterrupt()])
def test_what_a_resolver_raises_is_raised(error: BaseException) -> None:
    def resolve(id: str) -> object:
        raise error

    with pytest.raises(type(error)) as caught:
        decode(marked('[{"$tuple": [{"$deferred": "1"}]}]'), resolve=resolve)
    assert caught.value is error


def test_a_value_that_can_not_stand_where_its_deferred_stood_is_a_format_error() -> None:
    payload, _ = encode({Deferred("1")}, what="the result", deferred=deferred)

    with pytest.raises(FormatError, match=r"\$set can't be read: TypeError: unhashable type: 'list'"):
        decode(payload, resolve=lambda id: [])


# --- length ---


def test_long_values_are_compressed_and_say_so() -> None:
    short = "a" * (COMPRESS_OVER - 2)  # and two quotation marks
    long = short + "a"

    assert sent(short) == Payload(f'"{short}"'.encode(), MEDIA)
    payload = sent((long,))
    assert payload.content_type == "application/vnd.taskqueue+json; compression=zlib"
    assert len(payload.body) < 10_000
    assert decode(payload) == (long,)
    assert decode(sent([long])) == [long]


def test_nothing_longer_than_the_limit_is_sent_or_read() -> None:
    value = ["a" * 500_000]
    length = 500_004

    assert decode(encode(value, what="the result", limit=length).payload, limit=length) == value
    with pytest.raises(FormatError, match=r"^the result can't be sent: 500004 bytes of JSON are more than 500003$"):
        encode(value, what="the result", limit=length - 1)
    with pytest.raises(FormatError, match="all arguments together can't be sent"):
        encode_call(value, {}, limit=length)
    for payload in (sent(value), Payload(json.dumps(value).encode(), MEDIA)):
        with pytest.raises(FormatError, match="more than 500003 bytes"):
            decode(payload, limit=length - 1)


def test_a_small_payload_takes_no_more_memory_than_the_limit_allows() -> None:
    bomb = zlib.compress(b" " * 400_000_000, 1)
    code = """
import resource, sys
from taskqueue.errors import FormatError
from taskqueue.formats.values import COMPRESSED, decode
from taskqueue.outcome import Payload
bomb = Payload(sys.stdin.buffer.read(), COMPRESSED)
resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))
try:
    decode(bomb, limit=1_000_000)
except FormatError as error:
    print(error)
"""

    done = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True, check=True)

    assert done.stdout.decode() == "the values have more than 1000000 bytes\n"


@pytest.mark.parametrize(
    ("body", "content_type", "detail"),
    [
        (b"1", "application/json", "'application/json' is not the content type of values"),
        (b"1", "", "'' is not the content type"),
        (b"1", f"{MEDIA}; compression=br", "unknown parameter ' compression=br'"),
        (b"[1, 2]", COMPRESSED, "not compressed with zlib"),
        (zlib.compress(b"[1, 2]")[:-5], COMPRESSED, "cut off"),
        (zlib.compress(b"1") + b"1", COMPRESSED, "something follows"),
        (b"\xff", MEDIA, "not UTF-8"),
        (b"", MEDIA, "not JSON"),
        (b"1 2", MEDIA, "not JSON: Extra data"),
        (b"[NaN]", MEDIA, "not JSON: NaN"),
        (b"[" * 100_000, MEDIA, "nested deeper than 200"),
        (b"[" * 201 + b"]" * 201, MEDIA, "nested deeper than 200"),
        (b"1" * 5000, MEDIA, "too many digits"),
        (b'{"$nonsense": 1}', MEDIA, r"unknown marker '\$nonsense'"),
        (b'{"\\u0024nonsense": 1}', MEDIA, r"unknown marker '\$nonsense'"),
        (b'{"$tuple": 1}', MEDIA, "list expected in a marker, not int"),
        (b'{"$dict": [[1]]}', MEDIA, "two elements expected"),
        (b'{"$int": "1_0"}', MEDIA, "not hexadecimal"),
        (b'{"$bytes": "A?A="}', MEDIA, "base64"),
        (b'{"$datetime": {"fold": 1}}', MEDIA, "KeyError: 'at'"),
        (b'{"$datetime": {"at": "2024-01-01", "zone": "../../../etc/passwd"}}', MEDIA, "not installed here"),
    ],
)
def test_what_is_no_value_is_a_format_error_that_says_why(body: bytes, content_type: str, detail: str) -> None:
    with pytest.raises(FormatError, match=detail):
        decode(Payload(body, content_type))


@pytest.mark.parametrize("text", ["1", "[]", "[[]]", "[{}, {}]", "[[], []]", '[[], {"$dict": [[1, 2]]}]'])
def test_what_is_no_call_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError, match="no arguments"):
        decode_call(marked(text))


def test_the_content_type_is_read_as_content_types_are() -> None:
    assert decode(Payload(zlib.compress(b"1"), "Application/VND.taskqueue+JSON ;Compression=zlib")) == 1


# --- classes ---


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The names of what is imported, while a package `imported` could be: as a module, and as a time zone."""
    for package in ("imported", "tzdata/zoneinfo/imported"):
        (tmp_path / package).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield before
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_payload_never_causes_an_import(importable: set[str]) -> None:
    for text in (
        '{"$enum": ["imported.Colour", "RED"]}',
        '{"$dataclass": ["imported.Price", {}]}',
        '{"$namedtuple": ["imported.Point", [1]]}',
        '{"$exception": {"class": "imported.Error", "message": "", "args": [], "attributes": {}}}',
    ):
        with suppress(FormatError):
            decode(marked(text))

        assert set(sys.modules) == importable


def test_a_time_zone_that_is_not_there_is_not_imported(importable: set[str]) -> None:
    for zone in ("imported", "imported/Zone"):
        with pytest.raises(FormatError, match=f"the time zone '{zone}' is not installed here"):
            decode(marked(json.dumps({"$datetime": {"at": "2024-01-01", "zone": zone}})))

    assert set(sys.modules) == importable


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('{"$enum": ["test_values.Colour", "mro"]}', "has no member 'mro'"),
        ('{"$enum": ["test_values.Price", "RED"]}', "is no Enum"),
        ('{"$dataclass": ["test_values.Colour", {}]}', "is no dataclass"),
        ('{"$dataclass": ["test_values.Price", {"amount": 1, "__class__": 1}]}', "has no field '__class__'"),
        ('{"$dataclass": ["test_values.Price", {}]}', "missing 1 required positional argument: 'amount'"),
        ('{"$dataclass": ["test_values.Strict", {"amount": -1}]}', "ValueError: less than nothing"),
        ('{"$namedtuple": ["test_values.Price", [1]]}', "is no named tuple"),
        ('{"$namedtuple": ["test_values.Point", [1]]}', "Expected 2 arguments, got 1"),
        ('{"$dataclass": ["builtins.eval", {}]}', "'builtins.eval' is not named"),
    ],
)
def test_a_payload_reaches_nothing_of_a_class_but_its_members_and_fields(text: str, detail: str) -> None:
    with pytest.raises(FormatError, match=detail):
        decode(marked(text), classes=classes_of(Colour, Price, Point, Strict))


def test_an_exception_of_a_payload_is_none_of_another_class() -> None:
    text = '{"$exception": {"class": "%s", "message": "gone", "args": ["rm -rf"], "attributes": {}}}'

    for name in ("builtins.eval", "os.system", "test_values.Price", "ValueError", "builtins.Warning.__new__"):
        error = decode(marked(text % name), classes=classes_of(Price))
        assert isinstance(error, ForeignError)
        assert (error.class_name, error.message, error.args) == (name, "gone", ("rm -rf",))
        assert str(error) == f"{name}: gone"


def test_an_exception_has_what_its_class_makes_of_its_arguments() -> None:
    full = decode(sent(DiskFull("/srv")), classes=classes_of(DiskFull))
    undecodable = decode(sent(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why")))

    assert isinstance(full, DiskFull)
    assert (full.errno, full.strerror, full.filename, full.place) == (28, "full", "/srv", "/srv")
    assert isinstance(undecodable, UnicodeDecodeError)
    assert str(undecodable) == "'utf-8' codec can't decode byte 0xff in position 0: why"


def test_an_exception_that_nobody_names_can_be_pickled() -> None:
    error = ForeignError("shop.Declined", "declined: 7", (7,))
    error.add_note("by the bank")

    back = pickle.loads(pickle.dumps(error))

    assert (str(back), back.args, back.class_name) == ("shop.Declined: declined: 7", (7,), "shop.Declined")
    assert back.__notes__ == ["by the bank"]


def test_a_dataclass_comes_back_as_it_was_whatever_its_constructor_makes_of_its_arguments() -> None:
    value = Strict(5)
    value.amount = 7

    assert decode(sent(value), classes=classes_of(Strict)) == value


def test_a_dataclass_of_an_older_sender_has_the_defaults_of_its_reader() -> None:
    payload = marked('{"$dataclass": ["test_values.Price", {"amount": 1}]}')

    assert decode(payload, classes=classes_of(Price)) == Price(1, Colour.RED)


def test_the_main_program_and_what_its_worker_processes_import_it_as_are_one_module() -> None:
    mains = [Enum("Main", ["A"], module=name) for name in ("__main__", "__mp_main__")]

    for sender in mains:
        assert form(sender["A"]) == {"$enum": ["__main__.Main", "A"]}
        for reader in mains:
            assert decode(sent(sender["A"]), classes=classes_of(reader)) is reader["A"]
            assert decode(sent(sender["A"]), classes={f"{reader.__module__}.Main": reader}) is reader["A"]
            encode(sender["A"], what="the result", classes=classes_of(reader))


@pytest.mark.parametrize(
    ("annotation", "names"),
    [
        (int, ""),
        (None, ""),
        (Any, ""),
        ("Price", ""),
        (list["Price"], ""),
        (Colour, "Colour"),
        (list[Colour], "Colour"),
        (dict[str, tuple[Colour, ...]] | None, "Colour"),
        (Callable[[Colour], Level], "Colour Level"),
        (Annotated[Colour, {}], "Colour"),
        (Literal[Level.LOW, "a"], "Level"),
        (NewType("Paint", Colour), "Colour"),
        (TypeVar("Bound", bound=Colour), "Colour"),
        (Price, "Colour Price"),
        (Shelf[Point], "Colour Level Point Price Shelf"),
        (Basket, "Level Point"),
        (ValueError, ""),
        (UnknownTask, ""),
        (json.JSONDecodeError, "JSONDecodeError"),
    ],
)
def test_type_hints_name_classes_however_deep(annotation: object, names: str) -> None:
    found = classes_of(annotation)

    assert sorted(kind.__name__ for kind in found.values()) == names.split()
    assert all(name == f"{kind.__module__}.{kind.__qualname__}" for name, kind in found.items())


def test_a_class_that_names_itself_is_found_once() -> None:
    assert list(classes_of(Tree, list[Tree])) == ["test_values.Tree"]


@dataclass
class Tree:
    inner: list[Tree]


@dataclass
class Odd:
    unknown: Nowhere  # type: ignore[name-defined]  # noqa: F821
    colour: Colour


def test_hints_that_can_not_be_told_are_passed_by() -> None:
    assert list(classes_of(Odd)) == ["test_values.Odd"]


# --- the wire ---


def rows() -> list[tuple[str, str]]:
    return re.findall(r"^\| `(\$\w+)` \| `(.*?)` \|", PROTOCOL.read_text(), re.MULTILINE)


def test_the_documentation_has_every_marker() -> None:
    assert sorted(name for name, _ in rows()) == sorted(MARKERS)


class Documented(Enum):
    RED = 1


@pytest.mark.parametrize(("name", "example"), rows())
def test_an_example_of_the_documentation_is_read_and_written_again(name: str, example: str) -> None:
    @dataclass
    class Amount:
        amount: int

    def undo(value: object) -> str | None:
        return value.id if isinstance(value, Deferred) else None

    classes = {"shop.Colour": Documented, "shop.Price": Amount, "shop.Point": Point}
    for full, kind in classes.items():
        kind.__module__, kind.__qualname__ = full.split(".")
    try:
        value = decode(marked(example), classes=classes, resolve=Deferred)
        again, _ = encode(value, what="the result", deferred=undo)
    finally:
        Point.__module__, Point.__qualname__ = __name__, "Point"

    assert not isinstance(value, dict) or name == "$dict"
    if name != "$int":  # a small one is written as a number
        assert json.loads(again.body) == json.loads(example)
