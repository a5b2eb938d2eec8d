"""The codec of AMQP tables and properties takes everything and loses nothing."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.brokers.amqp.message import HEADERS_LIMIT, from_wire, to_wire
from taskqueue.brokers.amqp.table import Properties, as_sent, decode_table, encode_table
from taskqueue.workitem import INCOMING, Workitem

texts = st.text(st.characters(exclude_categories=["Cs"]))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
scalars = (
    texts
    | st.binary()
    | st.booleans()
    | st.none()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)).map(lambda d: d.replace(tzinfo=UTC, microsecond=0))
    | st.decimals(-1000, 1000, places=3)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
tables = st.dictionaries(names, values, max_size=6)


@given(tables)
def test_what_is_encoded_is_decoded(table: dict[str, Any]) -> None:
    assert decode_table(encode_table(table)[4:]) == table


@given(tables)
def test_pika_reads_what_we_encode(table: dict[str, Any]) -> None:
    decoded, _ = pika.data.decode_table(encode_table(table), 0)

    assert decoded.keys() == table.keys()


@given(st.binary(max_size=300))
def test_whatever_headers_are_the_properties_are_decoded(raw: bytes) -> None:
    flags = struct.pack(">H", 1 << 13 | 1 << 7)
    encoded = flags + struct.pack(">I", len(raw)) + raw + b"\x02id"

    properties = Properties().decode(encoded)

    assert properties.message_id == "id"
    assert isinstance(properties.headers, dict)
    assert to_wire(from_wire(properties, b"", INCOMING)).encode()


@given(
    st.builds(
        lambda **properties: Workitem(**properties),  # what is not named is left out
        body=st.binary(),
        id=texts.map(as_sent),
        type=st.sampled_from(["a", "b.c-d"]),
        content_type=texts.map(as_sent),
        correlation_id=texts.map(as_sent),
        timestamp=st.none() | st.integers(0, (1 << 64) - 1),
        priority=st.none() | st.integers(0, 255),
        expiration=st.none() | st.integers(0, (1 << 32) - 1).map(lambda ms: ms / 1000),
        attempt=st.integers(1, 999_999),
        crashes=st.integers(0, 1000),
        failures=st.integers(0, 1000),
        headers=st.dictionaries(names.map(lambda name: f"-{name}"), scalars, max_size=4),
    )
)
def test_a_workitem_survives_the_wire(workitem: Workitem) -> None:
    encoded = b"".join(to_wire(workitem).encode())

    assert from_wire(Properties().decode(encoded), workitem.body, f"worker_{workitem.type}") == workitem


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (1 << 70, str(1 << 70)),
        (datetime(1960, 1, 1, tzinfo=UTC), "1960-01-01 00:00:00+00:00"),
        (Decimal("NaN"), "NaN"),
        (Decimal("1e50"), "1E+50"),
        ("\ud800", "?"),
        ({1: (2, 3)}, {"1": [2, 3]}),
        (3 + 4j, "(3+4j)"),
    ],
)
def test_what_amqp_can_not_express_travels_as_text(value: object, read: object) -> None:
    assert decode_table(encode_table({"x": value})[4:]) == {"x": read}


def test_what_nests_too_deep_is_cut_and_not_refused() -> None:
    deep: object = "bottom"
    for _ in range(100_000):
        deep = [deep]

    assert len(encode_table({"x": deep})) < 10_000


@pytest.mark.parametrize(
    "headers",
    [
        {"big": "x" * 120_000, "kept": "yes"},
        {f"h{n}": "x" * 10 for n in range(20_000)} | {"kept": "yes"},
        {"worker_type": "x" * 120_000, "taskqueue_version": "y" * 120_000, "kept": "yes"},
    ],
)
def test_headers_that_do_not_fit_into_a_frame_are_dropped_largest_first(headers: dict[str, object]) -> None:
    workitem = Workitem(body=b"", headers=headers, reference="r" * 120_000)

    encoded = b"".join(to_wire(workitem).encode())
    read = Properties().decode(encoded).headers

    assert len(encoded) <= HEADERS_LIMIT
    assert "reference" in read["headers_dropped"]
    assert read["kept"].startswith("yes")
    assert len(read["headers_dropped"]) <= 20


@pytest.mark.parametrize(
    ("workitem", "field", "value"),
    [
        (Workitem(body=b"", expiration=math.inf), "expiration", str((1 << 32) - 1)),
        (Workitem(body=b"", expiration=-5.0), "expiration", "0"),
        (Workitem(body=b"", priority=300), "priority", 255),
        (Workitem(body=b"", timestamp=-1), "timestamp", None),
        (Workitem(body=b"", reply_to="amq.rabbitmq.reply-to"), "reply_to", None),
    ],
)
def test_what_a_broker_would_end_the_channel_for_is_not_sent(workitem: Workitem, field: str, value: object) -> None:
    properties = Properties().decode(b"".join(to_wire(workitem).encode()))

    assert getattr(properties, field) == value
