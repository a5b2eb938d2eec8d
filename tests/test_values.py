"""Values: what can't be sent, large numbers, deferreds, and long texts."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

import pytest
from valued import Colour, Deferred, Point, Price, Secretive, Text, Zone, deferred, marked, sent

from taskqueue.errors import FormatError, UnknownTask
from taskqueue.formats.jsontext import MAX_DEPTH
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
        ((Text("a"),), {}, "argument 1", "valued.Text is a class of its own; make it str"),
        ((datetime(2024, 1, 1, tzinfo=Zone()),), {}, "argument 1", "a time zone of class valued.Zone"),
        ((Secretive(1),), {}, "argument 1", "the constructor of valued.Secretive does not take its fields"),
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
    first, second, third = Deferred("1"), Deferred("2", "shop.num"), Deferred("3")

    payload, after = encode_call(
        [[second, (first, {"a": second})], Price({first})], {"more": {second: Point(third)}}, deferred=deferred
    )
    resolved = {("1", ""): 10, ("2", "shop.num"): 20, ("3", ""): {"$x": 1}}
    back = decode_call(payload, classes=classes_of(Price, Point), resolve=lambda *promised: resolved[promised])

    assert after == ("2", "1", "3")
    assert back == ([[20, (10, {"a": 20})], Price({10})], {"more": {20: Point({"$x": 1})}})


@pytest.mark.parametrize("id", ["x" * 256, "\ud800"])
def test_a_deferred_of_what_can_be_no_task_can_not_be_sent(id: str) -> None:
    with pytest.raises(FormatError, match=r"^the result\[0\] can't be sent: no task has the id '"):
        encode([Deferred(id)], what="the result", deferred=deferred)
    assert encode([Deferred("é" * 127)], what="the result", deferred=deferred).after == ("é" * 127,)


def test_a_deferred_that_nobody_expects_is_no_value() -> None:
    payload, _ = encode(Deferred("1"), what="the result", deferred=deferred)

    with pytest.raises(FormatError, match="a deferred"):
        decode(payload)


@pytest.mark.parametrize("form", ["1", "[]", '["1"]', '["1", 2]', '["1", "a", "b"]', "null"])
def test_a_deferred_is_an_id_and_perhaps_a_name(form: str) -> None:
    with pytest.raises(FormatError, match=r"a deferred|two elements"):
        decode(marked(f'{{"$deferred": {form}}}'), resolve=lambda id, name: id)


@pytest.mark.parametrize("error", [ValueError("own"), RecursionError(), UnknownTask("1"), KeyboardInterrupt()])
def test_what_a_resolver_raises_is_raised(error: BaseException) -> None:
    def resolve(id: str, name: str) -> object:
        raise error

    with pytest.raises(type(error)) as caught:
        decode(marked('[{"$tuple": [{"$deferred": "1"}]}]'), resolve=resolve)
    assert caught.value is error


def test_a_value_that_can_not_stand_where_its_deferred_stood_is_a_format_error() -> None:
    payload, _ = encode({Deferred("1")}, what="the result", deferred=deferred)

    with pytest.raises(FormatError, match=r"\$set can't be read: TypeError: unhashable type: 'list'"):
        decode(payload, resolve=lambda id, name: [])


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
