"""The properties of a workitem that no database has a column for, as one text."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from taskqueue.workitem import Workitem

__all__ = ["from_text", "to_text"]


def to_text(workitem: Workitem, **more: object) -> str:
    """A JSON object in ASCII, empty where there is nothing to say; `more` goes into it, too."""
    properties: dict[str, Any] = {}
    if workitem.correlation_id:
        properties["correlation_id"] = workitem.correlation_id
    if workitem.reply_to:
        properties["reply_to"] = workitem.reply_to
    if workitem.content_encoding:
        properties["content_encoding"] = workitem.content_encoding
    if workitem.headers:
        properties["headers"] = workitem.headers
    if workitem.others:
        properties["others"] = workitem.others
    if workitem.timestamp is not None:
        properties["timestamp"] = workitem.timestamp
    if workitem.priority is not None:
        properties["priority"] = workitem.priority
    if workitem.expiration is not None:
        properties["expiration"] = workitem.expiration
    properties.update(more)
    return _encoder.encode(properties) if properties else ""


def from_text(text: str) -> dict[str, Any]:
    """Those properties again, as the arguments of a Workitem."""
    found: dict[str, Any] = _decoder.decode(text) if text else {}
    return found


# JSON knows neither bytes nor times: they are objects with one member, whose name nobody uses by chance.
_BYTES, _TIME, _DECIMAL = "taskqueue:bytes", "taskqueue:time", "taskqueue:decimal"


def _encode(value: object) -> object:
    match value:
        case bytes():
            return {_BYTES: base64.b64encode(value).decode()}
        case datetime():
            return {_TIME: value.timestamp()}
        case Decimal():
            return {_DECIMAL: str(value)}
        case Mapping():
            return dict(value)
        case _:
            return str(value)


def _decode(members: dict[str, Any]) -> object:
    match members:
        case {"taskqueue:bytes": str(text)}:
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error:
                return members
        case {"taskqueue:time": float() | int() as seconds}:
            return datetime.fromtimestamp(seconds, UTC)
        case {"taskqueue:decimal": str(text)}:
            return Decimal(text)
        case _:
            return members


# Made once: it costs as much as what they do.
_encoder = json.JSONEncoder(default=_encode, separators=(",", ":"))
_decoder = json.JSONDecoder(object_hook=_decode)
