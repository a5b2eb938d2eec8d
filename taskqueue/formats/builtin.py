"""The formats that are always there: JSON, with Ruote workitems in it, and text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from taskqueue.errors import FormatError
from taskqueue.formats.chartext import decode, encode
from taskqueue.formats.contract import Extracted, Format
from taskqueue.formats.jsontext import Members, json_value, members
from taskqueue.workitem import Workitem

__all__ = ["BUILTIN", "JSON", "TEXT", "ruote_type", "text_of"]

JSON = "application/json"
TEXT = "text/plain"

_FIRST_WORD = re.compile(r"\ufeff?[ \t\n\r\v\f]*([^ \t\n\r\v\f]+)[ \t\n\r\v\f]*")


class _JSONFormat:
    """`{"worker_type": T, "workitem": W, "reference": R}`, or a Ruote workitem, which is passed on whole."""

    def extract(self, workitem: Workitem) -> Extracted:
        found = members(decode(workitem.body, workitem.content_type))
        if "worker_type" not in found and (type := ruote_type(found)) is not None:
            return Extracted(
                type=text_of(type, "fields.params.worker_type"),
                body=workitem.body,
                content_type=workitem.content_type,
            )
        for name in ("worker_type", "workitem"):
            if name not in found:
                raise FormatError(f'the JSON object has no "{name}"')
        reference, _ = found.get("reference", (None, ""))
        return Extracted(
            type=text_of(found["worker_type"][0], "worker_type"),
            # The text as it came, so that no number loses a digit.
            body=found["workitem"][1].encode(),
            content_type=JSON,
            reference="" if reference is None else text_of(reference, "the reference"),
        )

    def value(self, body: bytes, content_type: str) -> object:
        return json_value(decode(body, content_type))


class _TextFormat:
    """`<worker_type> <rest>`: the workitem is the rest, in the same encoding."""

    def extract(self, workitem: Workitem) -> Extracted:
        text = decode(workitem.body, workitem.content_type)
        first = _FIRST_WORD.match(text)
        if first is None:
            raise FormatError("the text has no worker type")
        return Extracted(
            type=first[1],
            body=encode(text[first.end() :], workitem.content_type),
            content_type=workitem.content_type,
        )

    def value(self, body: bytes, content_type: str) -> object:
        return decode(body, content_type)


BUILTIN: Mapping[str, Format] = MappingProxyType({JSON: _JSONFormat(), TEXT: _TextFormat()})
"""By content type."""


def ruote_type(found: Members) -> object:
    """What a Ruote workitem has as fields.params.worker_type; None where there is no such thing."""
    fields, _ = found.get("fields", (None, ""))
    params = fields.get("params") if isinstance(fields, dict) else None
    return params.get("worker_type") if isinstance(params, dict) else None


def text_of(value: object, name: str) -> str:
    """`value` of a producer, which must be a string.  Raises FormatError."""
    if isinstance(value, bytes) and value.isascii():
        return value.decode()
    if not isinstance(value, str):
        raise FormatError(f"{name} is not a string")
    return value
