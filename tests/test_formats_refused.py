"""Formats: what is no workitem is refused with the reason."""

from __future__ import annotations

import encodings.aliases
import json
from collections.abc import Mapping
from typing import Any

import pytest
from messages import JSON, envelope, message, parsed, refused, ruote, short

from taskqueue.errors import FormatError
from taskqueue.formats import MAX_DEPTH, MAX_REFERENCE, parse, value

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
