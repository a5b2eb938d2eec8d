"""Formats: what is a workitem, and what travels with it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from messages import JSON, LIMIT, envelope, message, parsed, ruote, short

from taskqueue.formats import parse, value

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

    assert bare == sent._replace(type="t", body=b"1")


def test_an_id_is_made_where_it_is_missing() -> None:
    one, other = parsed(envelope("1")), parsed(envelope("1"))

    assert one.id
    assert one.id != other.id


@pytest.mark.parametrize("headers", [{}, {"worker_type": "t"}])
def test_a_producer_can_not_set_the_counters_of_retries(headers: Mapping[str, object]) -> None:
    bare = parsed(envelope("1"), headers=headers, attempt=7, crashes=2, failures=5, due=4e9)

    assert (bare.attempt, bare.crashes, bare.failures, bare.due) == (1, 0, 0, None)
