"""Whatever a producer can send, as strategies: bodies, content types, properties, headers of all AMQP types."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from datetime import UTC, datetime

from hypothesis import strategies as st
from messages import JSON

from taskqueue.brokers.amqp.message import from_wire
from taskqueue.brokers.amqp.table import Properties, encode_table
from taskqueue.workitem import DROPPED, INCOMING, Workitem

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
    lambda **properties: Workitem(**properties),  # what is not named is left out
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

# --- as AMQP has it ---

AMQP_VALUES = st.recursive(
    HEADER_VALUES
    | st.decimals()
    | st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC))
    | st.integers(-(1 << 70), 1 << 70),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=4,
)
DEATHS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "queue": st.sampled_from(["worker_t", "worker_", "worker_a/b", "taskqueue", "taskqueue.dead"])
            | AMQP_VALUES,
            "reason": st.sampled_from(["expired", "delivery_limit", "maxlen", "rejected"]) | AMQP_VALUES,
            "count": AMQP_VALUES,
            "time": AMQP_VALUES,
        },
    )
    | AMQP_VALUES,
    max_size=3,
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "worker_type": st.sampled_from(["t", "u", "v", "a/b", "x" * 129]) | AMQP_VALUES,
        "reference": AMQP_VALUES,
        "taskqueue_attempt": AMQP_VALUES,
        "taskqueue_crashes": AMQP_VALUES,
        "taskqueue_failures": AMQP_VALUES,
        "taskqueue_due": st.sampled_from([0, -1, 4e9, 1e300, 1 << 62]) | AMQP_VALUES,
        "taskqueue_expiration": AMQP_VALUES,
        "x-death": DEATHS | AMQP_VALUES,
        "x-first-death-queue": AMQP_VALUES,
        "x-delivery-count": AMQP_VALUES,
        "CC": AMQP_VALUES,
        "BCC": AMQP_VALUES,
        "priority": AMQP_VALUES,
        "delivery-mode": AMQP_VALUES,
        "expiration": AMQP_VALUES,
        "reason": AMQP_VALUES,
        "from": AMQP_VALUES,
    },
)


def _field(kind: bytes, size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size).map(lambda raw: kind + raw)


def _long(kind: bytes) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=20).map(lambda raw: kind + struct.pack(">I", len(raw)) + raw)


RAW_FIELDS = st.one_of(
    *(_field(kind, size) for kind, size in zip(
        (b"b", b"B", b"t", b"U", b"s", b"u", b"I", b"i", b"f", b"L", b"l", b"d", b"T", b"D", b"V"),
        (1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8, 5, 0),
        strict=True,
    )),
    *(_long(kind) for kind in (b"S", b"x", b"F", b"A")),
    st.binary(max_size=20),
    st.integers(1, 300).map(lambda depth: _nested(depth)),
)  # fmt: skip


def _nested(depth: int) -> bytes:
    value = b""
    for _ in range(depth):
        field = b"\x01xF" + struct.pack(">I", len(value)) + value
        value = field
    return b"F" + struct.pack(">I", len(value)) + value


def _table(fields: list[tuple[bytes, bytes]]) -> bytes:
    raw = b"".join(bytes((len(name),)) + name + value for name, value in fields)
    return struct.pack(">I", len(raw)) + raw


NAMES = st.sampled_from([b"worker_type", b"reference", b"x-death", b"taskqueue_version"]) | st.binary(max_size=5)
TABLES = (
    HEADERS.map(encode_table)
    | st.builds(lambda version: encode_table({"taskqueue_version": version}), st.sampled_from([1, 2]) | AMQP_VALUES)
    | st.dictionaries(st.text(), AMQP_VALUES, max_size=3).map(encode_table)
    | st.lists(st.tuples(NAMES, RAW_FIELDS), max_size=3).map(_table)
)
SHORT = st.text() | st.sampled_from(["taskqueue", "taskqueue.dead", "worker_t", "\udcff" * 300, "x" * 300])


@dataclass(frozen=True)
class Sent:
    """A message as its producer publishes it, and the queue that it publishes it to."""

    properties: Properties
    body: bytes
    queue: str


def _rarely(strange: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Nothing, mostly: a message in which all is strange is refused for the first of it."""
    return st.integers(0, 5).flatmap(lambda number: strange if number == 0 else st.none())


def _sent(content_type: str | None, body: bytes, queue: str, **fields: object) -> Sent:
    given = {name: value for name, value in {"content_type": content_type, **fields}.items() if value is not None}
    return Sent(Properties(**given), body, queue)


TYPES = st.sampled_from(["t", "u", "v-1.x"])
GOOD_BODIES = st.one_of(
    st.builds(
        lambda type, workitem: (JSON, json.dumps({"worker_type": type, "workitem": workitem}).encode()),
        TYPES,
        JSON_VALUES,
    ),
    st.builds(
        lambda type, more: (JSON, json.dumps({"fields": {"params": {"worker_type": type}}, "more": more}).encode()),
        TYPES,
        JSON_VALUES,
    ),
    st.builds(lambda type, rest: ("text/plain", f"{type} {rest}".encode()), TYPES, st.text()),
)
GOOD_OR_NOT = GOOD_BODIES | GOOD_BODIES | st.tuples(st.none() | CONTENT_TYPES, BODIES)

SENT = st.builds(
    lambda content, **fields: _sent(*content, **fields),
    content=GOOD_OR_NOT,
    queue=st.sampled_from([INCOMING] * 5 + [DROPPED]),
    content_encoding=_rarely(st.sampled_from(["utf-8", "gzip"]) | SHORT),
    headers=st.none() | TABLES,
    delivery_mode=_rarely(st.integers(0, 255)),
    priority=st.none() | st.integers(0, 255),
    correlation_id=_rarely(SHORT),
    reply_to=_rarely(SHORT),
    expiration=_rarely(st.sampled_from(["0", "1", "60000", "4294967296", "-1", "soon", "٣"]) | SHORT),
    message_id=st.none() | SHORT,
    timestamp=st.none() | st.integers(0, (1 << 64) - 1),
    type=_rarely(SHORT),
    user_id=_rarely(SHORT),
    cluster_id=_rarely(SHORT),
)
"""Without `app_id`: that is how a test finds its message again."""


def received(sent: Sent) -> Workitem:
    """The workitem that a dispatcher gets for a message, from the bytes that lie on the wire."""
    decoded = Properties().decode(b"".join(sent.properties.encode()))
    return from_wire(decoded, sent.body, sent.queue)
