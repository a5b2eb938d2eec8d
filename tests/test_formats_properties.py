"""Formats: whatever is sent, a workitem or an error comes of it and nothing else."""

from __future__ import annotations

from hostile import JSON_VALUES, LOOSE_JSON, WORKITEMS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from messages import LIMIT, envelope, parsed

from taskqueue.errors import FormatError
from taskqueue.formats import BUILTIN, failed_result, parse, payload, value
from taskqueue.workitem import Workitem


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
