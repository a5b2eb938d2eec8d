"""The arguments and results of functions: JSON, extended so that they come back as they were sent.

docs/protocol.md describes it ("Values").  What can't come back is an error before it is sent.  A payload never causes
an import: classes are those that its reader names.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from taskqueue.errors import FormatError
from taskqueue.formats.chartext import line, shown
from taskqueue.formats.classes import ForeignError, classes_of
from taskqueue.formats.contract import media
from taskqueue.formats.jsontext import MAX_DEPTH, check_depth
from taskqueue.formats.plain import plain_text, text_of_form
from taskqueue.formats.reading import Reader
from taskqueue.formats.writing import Writer
from taskqueue.outcome import Payload

__all__ = [
    "COMPRESSED",
    "COMPRESS_OVER",
    "MAX_TEXT",
    "MEDIA",
    "Encoded",
    "ForeignError",
    "classes_of",
    "decode",
    "decode_call",
    "encode",
    "encode_call",
    "is_ours",
    "promised",
]

MEDIA = "application/vnd.taskqueue+json"
"""The content type of values."""
COMPRESSED = f"{MEDIA}; compression=zlib"
"""The content type of values whose text is compressed."""
COMPRESS_OVER = 256 * 1024
"""Bytes of text that are sent as they are; more are compressed."""
MAX_TEXT = 256 * 1024 * 1024
"""Bytes of text that are sent and read at most."""

_PROMISE = b'{"$deferred":'
_LEVEL = 1  # larger levels take several times as long for some per cent


def _no_constant(name: str) -> NoReturn:
    raise FormatError(f"not JSON: {name}")


_NAMES = frozenset((str,))
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


class Encoded(NamedTuple):
    """Values as bytes.  after: the ids of the deferreds in them, each once, in their order."""

    payload: Payload
    after: tuple[str, ...]


def _no_deferred(value: object) -> None:
    return None


_NO_CLASSES: Mapping[str, type] = MappingProxyType({})


def encode(
    value: object,
    *,
    what: str,
    deferred: Callable[[object], tuple[str, Any] | None] = _no_deferred,
    classes: Mapping[str, type] | None = None,
    limit: int = MAX_TEXT,
) -> Encoded:
    """One value as bytes.

    what: it is, in messages: `the result`.
    deferred: says the id of what is a deferred, whose value takes its place later, and its task's name (which may be
        empty); an empty id, and its value, where that is here already; None of anything else.
    classes: those that the reader names (`classes_of`); an Enum or a dataclass of another one is refused.  Default:
        unknown, nothing is refused.
    limit: bytes of its text, before it is compressed.

    Raises FormatError, with the place in `value`, where something in it would not come back as it is.
    """
    text = plain_text(value)
    if text is not None:
        return Encoded(_payload(text, what, limit), ())
    writer = Writer(deferred, classes)
    text = text_of_form(writer.write(what, value))
    return Encoded(_payload(text, what, limit), tuple(writer.after))


def encode_call(
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    deferred: Callable[[object], tuple[str, Any] | None] = _no_deferred,
    classes: Mapping[str, type] | None = None,
    limit: int = MAX_TEXT,
) -> Encoded:
    """The arguments of a call as bytes; as `encode`.  Errors name the argument: `argument 2`, `argument 'name'`."""
    text = plain_text([list(args), dict(kwargs)])
    if text is not None:
        return Encoded(_payload(text, "all arguments together", limit), ())
    writer = Writer(deferred, classes)
    text = text_of_form(writer.write_call(args, kwargs))
    return Encoded(_payload(text, "all arguments together", limit), tuple(writer.after))


def decode(
    payload: Payload,
    *,
    classes: Mapping[str, type] = _NO_CLASSES,
    resolve: Callable[[str, str], object] | None = None,
    limit: int = MAX_TEXT,
) -> object:
    """The value in `payload`.

    classes: those that it may name (`classes_of`).  Without its class a named tuple is a tuple, an exception a
        ForeignError; an Enum or a dataclass can't be read.
    resolve: says the value of a deferred by its id and its task's name; what it raises is raised.  None: there must
        be none.
    limit: bytes of the text, not compressed any more.

    Raises FormatError, and nothing else, whatever `payload` is.
    """
    reader = Reader(classes, resolve)
    try:
        text = _body(payload, limit).decode()
        check_depth(text)
        if "$" not in text and "\\u0024" not in text:  # no marker
            return _DECODER.decode(text)
        return json.JSONDecoder(parse_constant=_no_constant, object_hook=reader).decode(text)
    except (ValueError, RecursionError, MemoryError) as error:
        if error is reader.unresolved:
            raise
        raise FormatError(f"the values can't be read: {_reason(error)}") from None


def decode_call(
    payload: Payload,
    *,
    classes: Mapping[str, type] = _NO_CLASSES,
    resolve: Callable[[str, str], object] | None = None,
    limit: int = MAX_TEXT,
) -> tuple[list[object], dict[str, object]]:
    """The arguments in `payload`, by place and by name; as `decode`."""
    found = decode(payload, classes=classes, resolve=resolve, limit=limit)
    if isinstance(found, list) and len(found) == 2:
        args, kwargs = found
        if isinstance(args, list) and isinstance(kwargs, dict) and _NAMES.issuperset(map(type, kwargs)):
            return args, kwargs
    raise FormatError("the values are no arguments: an array and an object expected")


def _payload(text: bytes, what: str, limit: int) -> Payload:
    if len(text) <= COMPRESS_OVER and len(text) <= limit:
        return Payload(text, MEDIA)
    if len(text) > limit:
        raise FormatError(f"{what} can't be sent: {len(text)} bytes of JSON are more than {limit}")
    return Payload(zlib.compress(text, _LEVEL), COMPRESSED)


def _body(payload: Payload, limit: int) -> bytes:
    """The text of `payload`, of no more than `limit` bytes."""
    body = payload.body
    if payload.content_type != MEDIA:
        kind, _, parameters = payload.content_type.partition(";")
        if media(kind) != MEDIA:
            raise FormatError(f"{shown(payload.content_type)} is not the content type of values")
        match parameters.replace(" ", "").lower():
            case "compression=zlib":
                body = _decompressed(body, limit)
            case parameter if parameter:
                raise FormatError(f"unknown parameter {shown(parameters)} in the content type of values")
    if len(body) > limit:
        raise FormatError(f"the values have more than {limit} bytes")
    return body


def _decompressed(body: bytes, limit: int) -> bytes:
    """At most one byte more than `limit`."""
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise FormatError(f"the values are not compressed with zlib: {line(str(error))}") from None
    if len(text) <= limit and (not decompressor.eof or decompressor.unused_data):
        raise FormatError("the compressed values are cut off, or something follows them")
    return text


def _reason(error: ValueError | RecursionError | MemoryError) -> str:
    match error:
        case json.JSONDecodeError():
            return f"not JSON: {error.msg} (character {error.pos})"
        case UnicodeDecodeError():
            return "not UTF-8"
        case ValueError():
            return "a number has too many digits"
        case RecursionError():
            return f"nested deeper than {MAX_DEPTH} levels"
    return "there is not enough memory"


def is_ours(payload: Payload) -> bool:
    """Whether `payload` is in this form."""
    return media(payload.content_type) == MEDIA


def promised(payload: Payload) -> str:
    """The id of the task whose value is that of `payload`; empty where it has a value of its own."""
    if payload.content_type != MEDIA or not payload.body.startswith(_PROMISE):
        return ""
    found: list[str] = []
    with contextlib.suppress(FormatError):
        decode(payload, resolve=lambda id, name: found.append(id))
    return found[0] if len(found) == 1 else ""
