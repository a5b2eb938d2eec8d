"""From a message to its workitem, to what a handler gets, and from what it returns to a result."""

from __future__ import annotations

import json
import re
from types import MappingProxyType

from taskqueue.errors import FormatError
from taskqueue.formats.builtin import BUILTIN, JSON, TEXT, ruote_type, text_of
from taskqueue.formats.chartext import decode, encodable, line, shown
from taskqueue.formats.contract import Extracted, Formats, media
from taskqueue.formats.jsontext import check_depth, members
from taskqueue.outcome import NULL, Payload
from taskqueue.workitem import FORMAT_VERSION, Workitem, is_type

__all__ = ["MAX_REFERENCE", "ONLY_BUILTIN", "failed_result", "is_reference", "parse", "payload", "value"]

MAX_REFERENCE = 1024
"""Characters of a reference: it travels in a header, and stores index it."""
ONLY_BUILTIN = Formats(known=BUILTIN)
"""The formats where no third party's is installed, and nothing is read as something else."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode  # costs what it does
_UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")  # in a header, or in a database


def parse(workitem: Workitem, *, max_body: int, formats: Formats = ONLY_BUILTIN) -> Workitem:
    """The bare workitem in a message from the queue `taskqueue`, with its type, as its worker gets it.

    max_body: bytes; a longer body is malformed.

    A type that the message has already wins over what its body says, and leaves the body untouched.  The counters
    of retries start anew: they are not a producer's to set.  Raises FormatError.
    """
    if len(workitem.body) > max_body:
        raise FormatError(f"the body has {len(workitem.body)} bytes, more than max_body ({max_body})")
    headers = dict(workitem.headers)
    if "taskqueue_version" in headers:
        _check_version(headers["taskqueue_version"])
    claimed = headers.pop("worker_type", None)
    if workitem.type or claimed is not None:
        found = Extracted(
            type=workitem.type or text_of(claimed, "the header worker_type"),
            body=workitem.body,
            content_type=workitem.content_type,
        )
    else:
        found = _extract(workitem, formats)
        if len(found.body) > max_body:  # another encoding may be longer
            raise FormatError(f"the workitem in it has {len(found.body)} bytes, more than max_body ({max_body})")
    if not is_type(found.type):
        raise FormatError(f"{shown(found.type)} is no valid worker type")
    reference = found.reference or workitem.reference
    if len(reference) > MAX_REFERENCE:
        raise FormatError(f"the reference has more than {MAX_REFERENCE} characters")
    if _UNSTORABLE.search(reference):
        raise FormatError(f"the reference {shown(reference)} has a NUL or half a surrogate pair")
    return workitem._replace(
        type=found.type,
        body=found.body,
        content_type=found.content_type,
        headers=headers,
        reference=reference,
        attempt=1,
        crashes=0,
        failures=0,
        due=None,
    ).named()


def value(body: bytes, content_type: str, formats: Formats = ONLY_BUILTIN) -> object:
    """What a handler gets for a bare workitem: what its format makes of it; bytes where no format is for it.

    Raises FormatError.
    """
    meant = formats.meant(content_type)
    format = formats.known.get(media(meant))
    return body if format is None else format.value(body, meant)


def is_reference(text: str) -> bool:
    """Whether `text` may be a reference."""
    return len(text) <= MAX_REFERENCE and not _UNSTORABLE.search(text)


def payload(value: object, what: str = "a result") -> Payload:
    """What a handler returned, or a program sends, as bytes: bytes as they are, str as UTF-8 text, else JSON.

    A Payload is one already.

    what: it is, in messages.  Raises FormatError where JSON can't express `value`, or `value` would not read it back.
    """
    try:
        if value is None:
            return NULL
        if isinstance(value, Payload):
            return value
        if isinstance(value, bytes | bytearray):
            return Payload(bytes(value), "application/octet-stream")
        if isinstance(value, str):
            return Payload(value.encode(), TEXT)
        text = _encode(value)
        check_depth(text)
        # A lone surrogate, such as Python has for a byte of a file's name, becomes JSON's own escape.
        return Payload(text.encode(errors="backslashreplace"), JSON)
    except RecursionError:
        raise FormatError(f"{what} of type {_name(value)} is nested too deeply") from None
    except (TypeError, ValueError, FormatError) as error:
        raise FormatError(f"{what} of type {_name(value)} can't be sent: {line(str(error))}") from None


def failed_result(workitem: Workitem, error: str, traceback: str, formats: Formats = ONLY_BUILTIN) -> Payload:
    """The result of a workitem that failed: `null`, or the Ruote workitem with `error` and `trace` set in it.

    Never raises: what can't be read is no Ruote workitem.
    """
    content_type = formats.meant(workitem.content_type)
    if media(content_type) != JSON:
        return Payload()
    try:
        found = members(decode(workitem.body, content_type))
    except FormatError:
        return Payload()
    if not isinstance(ruote_type(found), str):
        return Payload()
    texts = {name: text for name, (_, text) in found.items()}
    texts["error"] = json.dumps(encodable(error))
    texts["trace"] = json.dumps(encodable(traceback))
    body = ",".join(f"{json.dumps(name)}:{text}" for name, text in texts.items())
    return Payload(f"{{{body}}}".encode(), JSON)


def _name(value: object) -> str:
    return line(type(value).__name__)


def _extract(workitem: Workitem, formats: Formats) -> Extracted:
    if workitem.content_encoding.lower() not in ("", "identity", "utf-8", "utf8"):
        raise FormatError(f"unknown content encoding {shown(workitem.content_encoding)}")
    meant = formats.meant(workitem.content_type)
    if not media(meant):
        raise FormatError("neither a content type nor a header worker_type")
    if media(meant) not in formats.known:
        raise FormatError(f"unknown content type {shown(workitem.content_type)}")
    read_only = MappingProxyType(workitem.headers)  # a format must not change what becomes a dead letter
    try:
        return formats.known[media(meant)].extract(workitem._replace(content_type=meant, headers=read_only))
    except MemoryError:  # given to the next dispatcher, it would take that one down as well
        raise FormatError("there is not enough memory to read the body") from None


def _check_version(version: object) -> None:
    if isinstance(version, str) and version.isascii() and version.isdigit() and len(version) < 10:
        version = int(version)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError("the header taskqueue_version is not a version")
    if version > FORMAT_VERSION:
        raise FormatError(f"the header taskqueue_version is newer than {FORMAT_VERSION}")
