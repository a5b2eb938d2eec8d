"""AMQP 0-9-1 field tables and message properties, decoded so that no message can harm the connection.

pika's own decoder raises for input that a broker passes on (a table that nests too deep, a timestamp beyond the
year 9999, a float that is not a number), which would end the connection each time the message is delivered.  Here,
headers that can't be read become one header `undecodable`, with their bytes.  Types follow
https://www.rabbitmq.com/amqp-0-9-1-errata#section_3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pika.spec import BasicProperties

__all__ = ["Properties", "as_sent", "decode_table", "encode_table"]

MAX_DEPTH = 32

_FIXED: dict[bytes, struct.Struct] = {
    kind: struct.Struct(form)
    for kind, form in (
        (b"b", ">b"), (b"B", ">B"), (b"U", ">h"), (b"s", ">h"), (b"u", ">H"), (b"I", ">i"), (b"i", ">I"),
        (b"L", ">q"), (b"l", ">q"), (b"f", ">f"), (b"d", ">d"),
    )
}  # fmt: skip


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _sized(data: bytes, offset: int, end: int, form: str, width: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(form, data, offset)
    start = offset + width
    if start + length > end:
        raise ValueError("a string or table is longer than what holds it")
    return data[start : start + length], start + length


def decode_table(data: bytes, depth: int = 0) -> dict[str, Any]:
    """The table whose entries are `data` (without the length in front).

    Raises ValueError or struct.error for what is no table.
    """
    table: dict[str, Any] = {}
    offset, end = 0, len(data)
    while offset < end:
        name, offset = _sized(data, offset, end, ">B", 1)
        value, offset = _decode_value(data, offset, end, depth)
        table[name.decode(errors="backslashreplace")] = value
    return table


def _decode_value(data: bytes, offset: int, end: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise ValueError(f"headers nest deeper than {MAX_DEPTH}")
    kind = data[offset : offset + 1]
    offset += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.unpack_from(data, offset)[0], offset + fixed.size
    match kind:
        case b"S" | b"x" | b"F" | b"A":
            raw, offset = _sized(data, offset, end, ">I", 4)
            if kind == b"S":
                return _text(raw), offset
            if kind == b"x":
                return raw, offset
            if kind == b"F":
                return decode_table(raw, depth + 1), offset
            values, position = [], 0
            while position < len(raw):
                value, position = _decode_value(raw, position, len(raw), depth + 1)
                values.append(value)
            return values, offset
        case b"t":
            return data[offset] != 0, offset + 1
        case b"V":
            return None, offset
        case b"D":
            places, digits = struct.unpack_from(">Bi", data, offset)
            return Decimal(digits).scaleb(-places), offset + 5
        case b"T":
            (seconds,) = struct.unpack_from(">Q", data, offset)
            if seconds > 253_402_300_799:  # 9999-12-31, the end of datetime
                return seconds, offset + 8
            return datetime.fromtimestamp(seconds, UTC), offset + 8
        case _:
            raise ValueError(f"unknown field type {kind!r}")


def encode_table(table: Mapping[str, Any]) -> bytes:
    """`table` with its length in front.  What AMQP can't express travels as its text."""
    body = b"".join(_short(str(name)) + _encode_value(value, 0) for name, value in table.items())
    return struct.pack(">I", len(body)) + body


def _short(text: str) -> bytes:
    raw = text.encode(errors="replace")[:255]
    return bytes((len(raw),)) + raw


def as_sent(text: str) -> str:
    """What is read where `text` was sent as a short string, such as a message id: it holds 255 bytes."""
    return _short(text)[1:].decode(errors="backslashreplace")


def _encode_value(value: Any, depth: int) -> bytes:
    match value:
        case str():
            raw = value.encode(errors="replace")
            return b"S" + struct.pack(">I", len(raw)) + raw
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int() if -(1 << 31) <= value < 1 << 31:
            return b"I" + struct.pack(">i", value)
        case int() if -(1 << 63) <= value < 1 << 63:
            return b"l" + struct.pack(">q", value)
        case float() if math.isfinite(value):  # a broker ends the connection for others
            return b"d" + struct.pack(">d", value)
        case None:
            return b"V"
        case bytes():
            return b"x" + struct.pack(">I", len(value)) + value
        case datetime() if value.timestamp() >= 0:
            return b"T" + struct.pack(">Q", int(value.timestamp()))
        case Decimal() if value.is_finite() and 0 <= -int(value.as_tuple().exponent) < 256:
            places = -int(value.as_tuple().exponent)
            digits = int(value.scaleb(places))
            if -(1 << 31) <= digits < 1 << 31:
                return b"D" + struct.pack(">Bi", places, digits)
        case Mapping() if depth <= MAX_DEPTH:
            raw = b"".join(_short(str(k)) + _encode_value(v, depth + 1) for k, v in value.items())
            return b"F" + struct.pack(">I", len(raw)) + raw
        case list() | tuple() if depth <= MAX_DEPTH:
            raw = b"".join(_encode_value(v, depth + 1) for v in value)
            return b"A" + struct.pack(">I", len(raw)) + raw
    return _encode_value("nested too deep" if isinstance(value, (Mapping, list, tuple)) else str(value), depth)


_FIELDS = (  # of basic messages, in the order of the wire: name, bit in the flags, kind
    ("content_type", 15, "short"),
    ("content_encoding", 14, "short"),
    ("headers", 13, "table"),
    ("delivery_mode", 12, "octet"),
    ("priority", 11, "octet"),
    ("correlation_id", 10, "short"),
    ("reply_to", 9, "short"),
    ("expiration", 8, "short"),
    ("message_id", 7, "short"),
    ("timestamp", 6, "seconds"),
    ("type", 5, "short"),
    ("user_id", 4, "short"),
    ("app_id", 3, "short"),
    ("cluster_id", 2, "short"),
)


class Properties(BasicProperties):  # type: ignore[misc, unused-ignore]
    """pika's properties of a message, with the codec above.  `headers` may be a table that is encoded already."""

    def decode(self, encoded: bytes, offset: int = 0) -> Properties:
        (flags,) = struct.unpack_from(">H", encoded, offset)
        offset += 2
        for name, bit, kind in _FIELDS:
            if not flags & (1 << bit):
                continue
            value: Any
            if kind == "short":
                raw, offset = _sized(encoded, offset, len(encoded), ">B", 1)
                value = raw.decode(errors="backslashreplace")
            elif kind == "table":
                raw, offset = _sized(encoded, offset, len(encoded), ">I", 4)
                try:
                    value = decode_table(raw)
                except (ValueError, struct.error, ArithmeticError, IndexError):
                    value = {"undecodable": raw}
            elif kind == "octet":
                value, offset = encoded[offset], offset + 1
            else:
                (value,), offset = struct.unpack_from(">Q", encoded, offset), offset + 8
            setattr(self, name, value)
        return self

    def encode(self) -> list[bytes]:
        flags = 0
        pieces = [b""]
        for name, bit, kind in _FIELDS:
            value = getattr(self, name)
            if value is None:
                continue
            flags |= 1 << bit
            if kind == "short":
                pieces.append(_short(value))
            elif kind == "table":
                pieces.append(value if isinstance(value, bytes) else encode_table(value))
            elif kind == "octet":
                pieces.append(bytes((value,)))
            else:
                pieces.append(struct.pack(">Q", value))
        pieces[0] = struct.pack(">H", flags)
        return pieces
