"""Payloads: what is a workitem, what is not, and that nothing else comes of it."""

from __future__ import annotations

import encodings.aliases
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taskqueue.errors import FormatError
from taskqueue.formats import (
    BUILTIN,
    MAX_DEPTH,
    MAX_REFERENCE,
    Extracted,
    Format,
    failed_result,
    parse,
    payload,
    value,
)
from taskqueue.outcome import Payload
from taskqueue.workitem import Workitem

JSON = "application/json"
LIMIT = 1 << 20


def short(argument: object) -> str:
    """The name of a case; the largest of them would not fit into one."""
    return ascii(argument)[:40] if isinstance(argument, str | bytes) else type(argument).__name__


def message(body: bytes, content_type: str = JSON, **properties: Any) -> Workitem:
    return Workitem(body=body, content_type=content_type, **properties)


def parsed(body: bytes, content_type: str = JSON, **properties: Any) -> Workitem:
    return parse(message(body, content_type, **properties), max_body=LIMIT)


def refused(body: bytes, content_type: str = JSON, **properties: Any) -> str:
    with pytest.raises(FormatError) as caught:
        parsed(body, content_type, **properties)
    return caught.value.detail


def envelope(workitem: str, worker_type: str = '"t"') -> bytes:
    return f'{{"worker_type": {worker_type}, "workitem": {workitem}}}'.encode()


def ruote(worker_type: str = '"t"', more: str = "") -> bytes:
    return f'{{"fei": {{"wfid": "w"}}, "fields": {{"params": {{"worker_type": {worker_type}}}}}{more}}}'.encode()


# --- the JSON envelope ---


@pytest.mark.parametrize(
    "workitem",
    [
        '{"path":"/etc/passwd"}',
        '{ "b" : 1,\n "a" : [ ] }',
        "null",
        "false",
        '""',
        "[]",
        '"\\ud800"',
        '"\\u0000"',
        '"gr\u00fc\u00dfe \U0001f600"',
        "0.1",
        "0.10000000000000000555",
        "1e400",
        "-0",
        "9007199254740993",
        "1" * 10_000,
        '{"a": 1, "a": 2}',
    ],
    ids=short,
)
def test_the_workitem_of_an_envelope_comes_out_to_the_letter(workitem: str) -> None:
    bare = parsed(envelope(workitem))

    assert bare.type == "t"
    assert bare.body == workitem.encode()
    assert bare.content_type == JSON


@pytest.mark.parametrize(
    "body",
    [
        b'{"worker_type":"t","workitem":7}',
        b' \t\r\n{ "workitem" : 7 , "worker_type" : "t" } \n',
        b'\xef\xbb\xbf{"worker_type":"t","workitem":7}',
        b'{"worker_type":"\\u0074","workitem":7,"other":{"workitem":8}}',
        b'{"worker_type":"x","workitem":[8],"worker_type":"t","workitem":7}',
        b'{"worker_type":"t","workitem":7,"fields":{"params":{"worker_type":"other"}}}',
        b'{"worker_type":"t","workitem":7,"reference":null}',
    ],
)
def test_an_envelope_may_be_written_in_any_way_that_json_allows(body: bytes) -> None:
    bare = parsed(body)

    assert (bare.type, bare.body, bare.reference) == ("t", b"7", "")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json;charset=utf-8",
        'application/json ; a=b; Charset="UTF-8"',
    ],
)
def test_a_content_type_may_be_written_in_any_way_that_mime_allows(content_type: str) -> None:
    assert parsed(envelope('"\u00fc"'), content_type).body == '"\u00fc"'.encode()


@pytest.mark.parametrize(
    "charset", ["latin-1", "iso-8859-15", "windows-1252", "utf-16", "utf-16-le", "UTF-32", "utf-7"]
)
def test_an_envelope_in_another_encoding_becomes_utf_8(charset: str) -> None:
    body = envelope('"\u00fc"').decode().encode(charset)

    bare = parsed(body, f"application/json; charset={charset}")

    assert (bare.body, bare.content_type) == ('"\u00fc"'.encode(), JSON)


def test_the_reference_of_an_envelope_wins_over_that_of_the_header() -> None:
    body = b'{"worker_type":"t","workitem":1,"reference":"order:4711"}'

    assert parsed(body, reference="order:1").reference == "order:4711"
    assert parsed(envelope("1"), reference="order:1").reference == "order:1"


# --- Ruote, text, header ---


def test_a_ruote_workitem_is_passed_on_whole() -> None:
    body = ruote(more=', "x": 1e400 ')

    bare = parsed(body, "application/json; charset=utf-8")

    assert (bare.type, bare.body, bare.content_type) == ("t", body, "application/json; charset=utf-8")


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (b"t rest", b"rest"),
        (b"t \t\n rest of it \n", b"rest of it \n"),
        (b"  t rest", b"rest"),
        (b"\xef\xbb\xbft rest", b"rest"),
        (b"t", b""),
        (b"t\n", b""),
        ("t \u00a0\u00fc\0".encode(), "\u00a0\u00fc\0".encode()),
    ],
)
def test_the_workitem_of_a_text_is_what_follows_its_first_word(body: bytes, rest: bytes) -> None:
    bare = parsed(body, "text/plain")

    assert (bare.type, bare.body, bare.content_type) == ("t", rest, "text/plain")


@pytest.mark.parametrize(
    ("charset", "rest"),
    [
        ("latin-1", "\u00fc x"),
        ("windows-1252", "\u20ac"),
        ("utf-16", "\u042f x"),
        ("utf-16-be", "\U0001f600"),
        ("shift_jis", "\u042f"),
        ("koi8-r", "\u042f \n"),
    ],
)
def test_a_text_keeps_its_encoding(charset: str, rest: str) -> None:
    content_type = f"text/plain; charset={charset}"

    bare = parsed(f"t {rest}".encode(charset), content_type)

    assert bare.content_type == content_type
    assert value(bare.body, content_type) == rest


@pytest.mark.parametrize("name", ["t", b"t"])
@pytest.mark.parametrize("content_type", ["", "image/png", JSON, "text/plain", "application/json; charset=klingon"])
@pytest.mark.parametrize("body", [b"", b"\xff\xfe\0", envelope("1", '"other"'), b"other rest"])
def test_a_type_in_the_header_wins_and_leaves_the_body_untouched(name: object, content_type: str, body: bytes) -> None:
    bare = parsed(body, content_type, content_encoding="gzip", headers={"worker_type": name, "x": 1})

    assert (bare.type, bare.body, bare.content_type, bare.content_encoding) == ("t", body, content_type, "gzip")
    assert bare.headers == {"x": 1}


def test_a_type_that_the_broker_found_counts_like_one_in_the_header() -> None:
    bare = parsed(b"other rest", "text/plain", type="t")

    assert (bare.type, bare.body) == ("t", b"other rest")


# --- what travels with it ---


def test_properties_stay_as_they_came() -> None:
    sent = message(
        envelope("1"),
        id="given",
        content_encoding="utf-8",
        headers={"x": [1, b"\xff"], "taskqueue_version": 1},
        correlation_id="c",
        reply_to="r",
        expiration=1.5,
        timestamp=9,
        priority=3,
        reference="order:1",
        others={"app_id": "a"},
    )

    bare = parse(sent, max_body=LIMIT)

    assert bare == replace(sent, type="t", body=b"1")


def test_an_id_is_made_where_it_is_missing() -> None:
    one, other = parsed(envelope("1")), parsed(envelope("1"))

    assert one.id
    assert one.id != other.id


@pytest.mark.parametrize("headers", [{}, {"worker_type": "t"}])
def test_a_producer_can_not_set_the_counters_of_retries(headers: Mapping[str, object]) -> None:
    bare = parsed(envelope("1"), headers=headers, attempt=7, crashes=2, failures=5, due=4e9)

    assert (bare.attempt, bare.crashes, bare.failures, bare.due) == (1, 0, 0, None)


# --- what is no workitem ---


@pytest.mark.parametrize(
    ("body", "content_type", "properties", "detail"),
    [
        (b"", JSON, {}, "the JSON is not an object"),
        (b"[]", JSON, {}, "the JSON is not an object"),
        (b'"t"', JSON, {}, "the JSON is not an object"),
        (b"{", JSON, {}, "not JSON: Expecting value"),
        (b"{}", JSON, {}, 'no "worker_type"'),
        (b"{}}", JSON, {}, "not JSON: Extra data"),
        (b"{,}", JSON, {}, "not JSON"),
        (b'{"a"}', JSON, {}, "not JSON: Expecting a name and a colon"),
        (b"{1:2}", JSON, {}, "not JSON: Expecting a name and a colon"),
        (b'{"a":}', JSON, {}, "not JSON: Expecting value"),
        (b'{"a":1 "b":2}', JSON, {}, "not JSON: Expecting a comma"),
        (b'{"a":1', JSON, {}, "not JSON: Expecting a comma"),
        (b'{"a":1]', JSON, {}, "not JSON: Expecting a comma"),
        (b'{"worker_type":"t","workitem":1,}', JSON, {}, "not JSON: Expecting value"),
        (envelope("1") + b"x", JSON, {}, "not JSON: Extra data"),
        (envelope("'x'"), JSON, {}, "not JSON: Expecting value"),
        (envelope('"\n"'), JSON, {}, "not JSON: Invalid control character"),
        (envelope('"\\x"'), JSON, {}, "not JSON: Invalid \\escape"),
        (envelope("NaN"), JSON, {}, "not JSON: NaN"),
        (envelope("[-Infinity]"), JSON, {}, "not JSON: -Infinity"),
        (envelope("01"), JSON, {}, "not JSON"),
        (b'{"worker_type":"t"}', JSON, {}, 'no "workitem"'),
        (b'{"workitem":1}', JSON, {}, 'no "worker_type"'),
        (b'{"fields":{"params":[]}}', JSON, {}, 'no "worker_type"'),
        (b'{"fields":[],"workitem":1}', JSON, {}, 'no "worker_type"'),
        (envelope("1", "5"), JSON, {}, "worker_type is not a string"),
        (envelope("1", '["t"]'), JSON, {}, "worker_type is not a string"),
        (envelope("1", "true"), JSON, {}, "worker_type is not a string"),
        (envelope("1", "null"), JSON, {}, "worker_type is not a string"),
        (ruote("5"), JSON, {}, "fields.params.worker_type is not a string"),
        (ruote('"a b"'), JSON, {}, "'a b' is no valid worker type"),
        (envelope("1", '""'), JSON, {}, "'' is no valid worker type"),
        (envelope("1", '"../x"'), JSON, {}, "'../x' is no valid worker type"),
        (envelope("1", '"t\\n"'), JSON, {}, "'t\\n' is no valid worker type"),
        (envelope("1", '"t\\u0000"'), JSON, {}, "'t\\x00' is no valid worker type"),
        (envelope("1", '"\\ud800"'), JSON, {}, "'\\ud800' is no valid worker type"),
        (envelope("1", f'"{"t" * 129}"'), JSON, {}, "is no valid worker type"),
        (b'{"worker_type":"t","workitem":1,"reference":4711}', JSON, {}, "the reference is not a string"),
        (b'{"worker_type":"t","workitem":1,"reference":"\\ud800"}', JSON, {}, "half a surrogate pair"),
        (b'{"worker_type":"t","workitem":1,"reference":"a\\u0000"}', JSON, {}, "a NUL"),
        (envelope("1"), JSON, {"reference": "x" * (MAX_REFERENCE + 1)}, "more than 1024 characters"),
        (envelope('"\u00fc"').decode().encode("latin-1"), JSON, {}, "the body is not utf-8"),
        (envelope("1"), JSON + "; charset=utf-16", {}, "the body is not utf-16"),
        (envelope("1"), JSON + "; charset=klingon", {}, "unknown encoding 'klingon'"),
        (envelope("1"), JSON + "; charset=", {}, "unknown encoding ''"),
        (envelope("1"), JSON + "; charset=a\0b", {}, "unknown encoding 'a\\x00b'"),
        (envelope("1"), JSON + "; charset=hex", {}, "unknown encoding 'hex'"),
        (envelope("1"), JSON + "; charset=unicode_escape", {}, "unknown encoding 'unicode_escape'"),
        (b"{+2AA-}", JSON + "; charset=utf-7", {}, "the body is not utf-7"),
        (b"", "text/plain", {}, "the text has no worker type"),
        (b" \n", "text/plain", {}, "the text has no worker type"),
        (b"a/b rest", "text/plain", {}, "'a/b' is no valid worker type"),
        ("t\u00a0rest".encode(), "text/plain", {}, "'t\\xa0rest' is no valid worker type"),
        (b"t \xff", "text/plain", {}, "the body is not utf-8"),
        (b"t rest", "text/plain; charset=klingon", {}, "unknown encoding"),
        (b"t rest", "", {}, "neither a content type nor a header worker_type"),
        (b"t rest", " ; charset=utf-8", {}, "neither a content type nor a header worker_type"),
        (b"t rest", "image/png", {}, "unknown content type 'image/png'"),
        (b"t rest", "text/\ud800\n", {}, "unknown content type 'text/\\ud800\\n'"),
        (envelope("1"), JSON, {"content_encoding": "gzip"}, "unknown content encoding 'gzip'"),
        (b"", "", {"headers": {"worker_type": 5}}, "the header worker_type is not a string"),
        (b"", "", {"headers": {"worker_type": b"\xff"}}, "the header worker_type is not a string"),
        (b"", "", {"headers": {"worker_type": ["t"]}}, "the header worker_type is not a string"),
        (b"", "", {"headers": {"worker_type": ""}}, "'' is no valid worker type"),
        (b"", "", {"headers": {"worker_type": "a b"}}, "'a b' is no valid worker type"),
    ],
)
def test_what_is_no_workitem_is_refused_with_the_reason(
    body: bytes, content_type: str, properties: dict[str, Any], detail: str
) -> None:
    assert detail in refused(body, content_type, **properties)


@pytest.mark.parametrize(
    "version", [1, "1", 0.5, "one", "", None, True, 0, -1, b"1", [], 2, "2", 10**5000, "9" * 5000], ids=short
)
def test_only_versions_of_the_format_that_are_known_are_taken(version: object) -> None:
    headers = {"taskqueue_version": version, "worker_type": "t"}

    if version in (1, "1") and version is not True:
        assert parsed(b"", headers=headers).type == "t"
    elif version in (2, "2", 10**5000):
        assert "is newer than 1" in refused(b"", headers=headers)
    else:
        assert refused(b"", headers=headers) == "the header taskqueue_version is not a version"


@pytest.mark.parametrize("headers", [{}, {"worker_type": "t"}])
def test_a_body_over_the_limit_is_refused_unopened(headers: Mapping[str, object]) -> None:
    body = envelope("1")

    assert parse(message(body, headers=headers), max_body=len(body)).type == "t"
    with pytest.raises(FormatError, match="more than max_body"):
        parse(message(body, headers=headers), max_body=len(body) - 1)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":['])
@pytest.mark.parametrize(
    "place", ["%s", '{"worker_type":"t","workitem":%s}', '{"worker_type":"t","workitem":1,"x":%s}']
)
@pytest.mark.parametrize("closed", [False, True])
def test_json_nested_without_end_is_refused(opening: str, place: str, closed: bool) -> None:
    closing = opening.replace('"a":', "").translate({ord("["): "]", ord("{"): "}"})[::-1]
    deep = opening * 100_000 + ("1" + closing * 100_000 if closed else "")

    detail = refused((place % deep).encode())

    assert "nested deeper than 200 levels" in detail or detail == "the JSON is not an object"


def test_json_may_nest_exactly_as_deep_as_its_limit() -> None:
    def nested(levels: int) -> str:
        return "[" * levels + '"[[[{\\"[\\\\"' + "]" * levels + ","

    deepest = f"[{nested(MAX_DEPTH - 2) * 3}1]"
    deeper = f"[{nested(MAX_DEPTH - 2)}{nested(MAX_DEPTH - 1)}1]"

    assert parsed(envelope(deepest)).body == deepest.encode()
    assert refused(envelope(deeper)) == "the JSON is nested deeper than 200 levels"
    assert isinstance(value(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, JSON), list)
    with pytest.raises(FormatError, match="nested deeper than 200 levels"):
        value(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), JSON)


def test_brackets_in_strings_are_no_levels() -> None:
    workitem = json.dumps(["[" * 1000, "\\", '"' + "{" * 1000, '\\"[', "\u00fc\\\\["])

    assert parsed(envelope(workitem)).body == workitem.encode()


@pytest.mark.parametrize("charset", sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values()}))
def test_no_encoding_that_python_knows_does_harm(charset: str) -> None:
    for body in (envelope("1"), b"t rest \xff\\x", b"t +2AA-", b"\\ud800\\", b""):
        for media in (JSON, "text/plain"):
            try:
                bare = parsed(body, f"{media}; charset={charset}")
                value(bare.body, bare.content_type)
            except FormatError as error:
                assert len(error.detail) < 300


# --- formats of third parties ---


class Colon:
    def extract(self, workitem: Workitem) -> Extracted:
        type, _, rest = workitem.body.decode().partition(":")
        return Extracted(type=type, body=rest.encode(), content_type="text/plain", reference="r")


def test_a_third_party_brings_a_format() -> None:
    formats: Mapping[str, Format] = {**BUILTIN, "text/colon": Colon()}

    bare = parse(message(b"t:rest", "Text/Colon; a=b"), max_body=LIMIT, formats=formats)

    assert (bare.type, bare.body, bare.content_type, bare.reference) == ("t", b"rest", "text/plain", "r")


@pytest.mark.parametrize(("body", "detail"), [(b"\xff", "UnicodeDecodeError"), (b"a b:rest", "no valid worker type")])
def test_a_third_partys_format_can_not_stop_the_dispatcher(body: bytes, detail: str) -> None:
    with pytest.raises(FormatError, match=detail):
        parse(message(body, "text/colon"), max_body=LIMIT, formats={"text/colon": Colon()})


# --- what a handler gets, and what it returns ---


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"a": [1, 0.5, null]}', JSON, {"a": [1, 0.5, None]}),
        (b"\xef\xbb\xbf7", "application/json; charset=utf-8", 7),
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
        (b"1 2", JSON, "not JSON: Extra data"),
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


# --- properties ---

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)
LOOSE_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda children: st.lists(children) | st.dictionaries(st.text(st.characters()) | st.just("worker_type"), children),
)
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "worker_type": LOOSE_JSON | st.just("t"),
        "workitem": LOOSE_JSON,
        "reference": LOOSE_JSON,
        "fields": LOOSE_JSON | st.fixed_dictionaries({"params": st.fixed_dictionaries({"worker_type": LOOSE_JSON})}),
    },
)
PIECES = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b'"worker_type"',
        b'"workitem"',
        b'"t"',
        b"NaN",
        b"1e9",
        b" ",
        b"\xff",
    ]
)
BODIES = st.one_of(
    st.binary(),
    st.lists(PIECES).map(b"".join),
    ENVELOPES.map(lambda found: json.dumps(found).encode()),
    st.builds(lambda found, cut: json.dumps(found).encode()[:cut], ENVELOPES, st.integers(0, 100)),
    st.text().map(lambda text: f"t {text}".encode("utf-8", "surrogatepass")),
)
CHARSETS = st.sampled_from(
    ["utf-8", "latin-1", "utf-16", "utf-7", "idna", "hex", "klingon", '"', "\0", "..", "undefined"]
)
CONTENT_TYPES = st.one_of(
    st.sampled_from(["", JSON, "text/plain"]),
    st.builds(lambda media, charset: f"{media};charset={charset}", st.sampled_from([JSON, "text/plain"]), CHARSETS),
    st.text(),
)
HEADER_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just("t"),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)
WORKITEMS = st.builds(
    Workitem,
    body=BODIES,
    id=st.text(),
    content_type=CONTENT_TYPES,
    content_encoding=st.sampled_from(["", "", "utf-8", "gzip"]) | st.text(),
    headers=st.dictionaries(
        st.sampled_from(["worker_type", "taskqueue_version"]) | st.text(), HEADER_VALUES, max_size=2
    ),
    reference=st.text(),
    attempt=st.integers(),
    due=st.none() | st.floats(),
)


@settings(max_examples=1000, deadline=None)
@given(WORKITEMS)
def test_whatever_a_producer_sends_is_a_workitem_or_a_format_error(sent: Workitem) -> None:
    try:
        bare = parse(sent, max_body=LIMIT)
    except FormatError as error:
        assert len(error.detail) < 300
        assert error.detail.isprintable()
        error.detail.encode()
    else:
        assert bare.type
        assert bare.id == sent.id or not sent.id
        assert "worker_type" not in bare.headers
        bare.reference.encode()
        # Untouched bodies are opened by their worker only; what was opened here can be opened again.
        if "worker_type" not in sent.headers:
            value(bare.body, bare.content_type)


@settings(max_examples=1000, deadline=None)
@given(WORKITEMS)
def test_no_builtin_format_raises_anything_but_a_format_error(sent: Workitem) -> None:
    for format in BUILTIN.values():
        try:
            format.extract(sent)
        except FormatError as error:
            assert error.detail.isprintable()
    try:
        value(sent.body, sent.content_type)
    except FormatError as error:
        assert error.detail.isprintable()
    failed_result(sent, "error", "trace")


@settings(deadline=None)
@given(JSON_VALUES.filter(lambda found: not isinstance(found, str)))
@example(10**4000)
@example({"": -0.0})
def test_a_json_value_survives_payload_envelope_and_value(sent: object) -> None:
    result = payload(sent)
    bare = parsed(envelope(result.body.decode()))

    assert bare.body == result.body
    assert value(bare.body, bare.content_type) == sent


@given(st.text() | st.binary())
def test_text_and_bytes_survive_payload_and_value(sent: str | bytes) -> None:
    result = payload(sent)

    assert value(result.body, result.content_type) == sent


@settings(deadline=None)
@given(LOOSE_JSON)
def test_what_a_handler_returns_is_a_payload_or_a_format_error(returned: object) -> None:
    try:
        result = payload(returned)
    except FormatError as error:
        assert error.detail.isprintable()
    else:
        value(result.body, result.content_type)
