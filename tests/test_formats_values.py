"""Formats: what a handler gets, what it returns, and the result of a failure."""

from __future__ import annotations

import json
import os

import pytest
from messages import JSON, message, ruote, short

from taskqueue.errors import FormatError
from taskqueue.formats import MAX_DEPTH, failed_result, payload, value
from taskqueue.outcome import Payload

# --- what a handler gets, and what it returns ---


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"a": [1, 0.5, null]}', JSON, {"a": [1, 0.5, None]}),
        (b"\xef\xbb\xbf7", "application/json; charset=utf-8", 7),
        (b'\xef\xbb\xbf \r\n\t{"a": 1} \r\n\t', JSON, {"a": 1}),
        (b'"\xfc"', "application/json; charset=latin-1", "\u00fc"),
        (b'"\\ud800"', JSON, "\ud800"),
        (b"9007199254740993", JSON, 9007199254740993),
        (b"gr\xc3\xbc\xc3\x9fe", "text/plain", "gr\u00fc\u00dfe"),
        (b"gr\xfc\xdfe", "Text/Plain; charset=latin-1", "gr\u00fc\u00dfe"),
        (b"", "text/plain", ""),
        (b"\xff", "", b"\xff"),
        (b"7", "application/octet-stream", b"7"),
        (b"7", "text/html", b"7"),
    ],
)
def test_a_handler_gets_what_the_content_type_says(body: bytes, content_type: str, expected: object) -> None:
    assert value(body, content_type) == expected


@pytest.mark.parametrize(
    ("body", "content_type", "detail"),
    [
        (b"", JSON, "not JSON"),
        (b"1 2", JSON, r"not JSON: Extra data \(character 2\)"),
        (b" \n1 \xc2\xa0", JSON, r"not JSON: Extra data \(character 4\)"),
        (b" \xc2\xa01", JSON, r"not JSON: Expecting value \(character 1\)"),
        (b" \n ", JSON, r"not JSON: Expecting value \(character 3\)"),
        (b"NaN", JSON, "not JSON: NaN"),
        (b'[{"a": Infinity}]', JSON, "not JSON: Infinity"),
        (b"1" * 10_000, JSON, "too many digits"),
        (b"[" * 100_000, JSON, "nested deeper"),
        (b'"\xff"', JSON, "not utf-8"),
        (b"\xff", "text/plain", "not utf-8"),
        (b"", "text/plain; charset=klingon", "unknown encoding"),
    ],
    ids=short,
)
def test_a_handler_is_not_called_with_what_can_not_be_read(body: bytes, content_type: str, detail: str) -> None:
    with pytest.raises(FormatError, match=detail):
        value(body, content_type)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (None, Payload(b"null", JSON)),
        (b"\xff", Payload(b"\xff", "application/octet-stream")),
        (bytearray(b"x"), Payload(b"x", "application/octet-stream")),
        ("\u00fc", Payload(b"\xc3\xbc", "text/plain")),
        ("", Payload(b"", "text/plain")),
        ({"a": (1, 0.5, True)}, Payload(b'{"a":[1,0.5,true]}', JSON)),
        ("\u00fc", Payload("\u00fc".encode(), "text/plain")),
        (["\u00fc"], Payload('["\u00fc"]'.encode(), JSON)),
    ],
)
def test_what_a_handler_returns_becomes_its_result(returned: object, expected: Payload) -> None:
    assert payload(returned) == expected


LOOP: list[object] = []
LOOP.append(LOOP)
DEEP: list[object] = []
for _ in range(100_000):
    DEEP = [DEEP]


def test_the_name_of_a_file_that_is_not_utf8_may_be_in_a_result() -> None:
    returned = {"path": os.fsdecode(b"\xff \\"), "grüße": "☃"}

    sent = payload(returned)

    sent.body.decode()
    assert json.loads(sent.body) == returned


@pytest.mark.parametrize(
    ("returned", "name"),
    [
        ({1, 2}, "set"),
        (object(), "object"),
        (float("nan"), "float"),
        ([float("inf")], "list"),
        ({float("nan"): 1}, "dict"),
        ({(1, 2): 1}, "dict"),
        ("\ud800", "str"),
        (10**5000, "int"),
        (LOOP, "list"),
        (DEEP, "list"),
        (type("two\nlines", (), {})(), "two lines"),
    ],
    ids=short,
)
def test_what_json_can_not_express_is_refused_with_its_type(returned: object, name: str) -> None:
    with pytest.raises(FormatError) as caught:
        payload(returned)

    assert f"a result of type {name} " in caught.value.detail
    assert "\n" not in caught.value.detail
    assert len(caught.value.detail) < 300


def test_a_result_nests_no_deeper_than_its_reader_takes() -> None:
    deep: object = 1
    for _ in range(MAX_DEPTH):
        deep = {"a": deep}

    assert value(payload(deep).body, JSON) == deep
    with pytest.raises(FormatError, match="nested deeper"):
        payload([deep])


# --- the result of a failure ---


@pytest.mark.parametrize("content_type", [JSON, "application/json; charset=utf-8"])
def test_a_failed_ruote_workitem_comes_back_with_error_and_trace_and_otherwise_as_it_was(content_type: str) -> None:
    body = ruote(more=', "n": 1e400, "big": ' + "1" * 5000 + ', "error": {"old": 1}, "\\ud800": "\u00fc"')

    result = failed_result(message(body, content_type), "ValueError: \udcff", 'Traceback\n  "x"\n')

    assert result.content_type == JSON
    assert b'"n":1e400,"big":' + b"1" * 5000 in result.body
    found = json.loads(result.body, parse_int=str)
    assert found.pop("error") == "ValueError: \\udcff"
    assert found.pop("trace") == 'Traceback\n  "x"\n'
    before = json.loads(body, parse_int=str)
    del before["error"]
    assert found == before


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"1", JSON),
        (b"{", JSON),
        (b"[" * 100_000, JSON),
        (b"\xff", JSON),
        (b'{"a": 1}', JSON),
        (ruote("5"), JSON),
        (ruote(), "text/plain"),
        (ruote(), ""),
        (ruote(), "application/json; charset=klingon"),
    ],
    ids=short,
)
def test_any_other_failure_has_no_result(body: bytes, content_type: str) -> None:
    assert failed_result(message(body, content_type), "error", "trace") == Payload(b"null", JSON)
