"""What the bytes of a message mean.  The only module that opens payloads; docs/protocol.md describes the wire.

Everything here takes whatever a producer can send, and raises nothing but FormatError, with a detail of one short line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType
from typing import NoReturn, Protocol

from taskqueue.errors import FormatError
from taskqueue.outcome import Payload
from taskqueue.workitem import FORMAT_VERSION, Workitem, is_type

__all__ = ["BUILTIN", "MAX_DEPTH", "MAX_REFERENCE", "Extracted", "Format", "failed_result", "parse", "payload", "value"]

MAX_DEPTH = 200
"""Levels of arrays and objects in JSON: far fewer than any recursive reader can take, in a deep stack, too."""
MAX_REFERENCE = 1024
"""Characters of a reference: it travels in a header, and stores index it."""

_JSON = "application/json"
_TEXT = "text/plain"
_UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")  # in a header, or in a database
_SHOWN = 120  # characters of a producer's text in an error, escaped


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What a format found in a message.

    body, content_type: the bare workitem, and what it is.
    reference: empty where the body names none; that of the header is kept then.
    """

    type: str
    body: bytes
    content_type: str
    reference: str = ""


class Format(Protocol):
    """Takes the workitem out of messages of one content type."""

    def extract(self, workitem: Workitem) -> Extracted:
        """Find type and bare body in the message `workitem`.  Raises FormatError.

        It runs between two messages of the dispatcher: no I/O.
        """


class _JSONFormat:
    """`{"worker_type": T, "workitem": W, "reference": R}`, or a Ruote workitem, which is passed on whole."""

    def extract(self, workitem: Workitem) -> Extracted:
        members = _members(_decode(workitem.body, workitem.content_type))
        if "worker_type" not in members and (type := _ruote_type(members)) is not None:
            return Extracted(
                type=_text_of(type, "fields.params.worker_type"),
                body=workitem.body,
                content_type=workitem.content_type,
            )
        for name in ("worker_type", "workitem"):
            if name not in members:
                raise FormatError(f'the JSON object has no "{name}"')
        reference, _ = members.get("reference", (None, ""))
        return Extracted(
            type=_text_of(members["worker_type"][0], "worker_type"),
            # The text as it came, so that no number loses a digit.
            body=members["workitem"][1].encode(),
            content_type=_JSON,
            reference="" if reference is None else _text_of(reference, "the reference"),
        )


class _TextFormat:
    """`<worker_type> <rest>`: the workitem is the rest, in the same encoding."""

    def extract(self, workitem: Workitem) -> Extracted:
        text = _decode(workitem.body, workitem.content_type)
        first = _FIRST_WORD.match(text)
        if first is None:
            raise FormatError("the text has no worker type")
        return Extracted(
            type=first[1],
            body=_encode(text[first.end() :], workitem.content_type),
            content_type=workitem.content_type,
        )


BUILTIN: Mapping[str, Format] = MappingProxyType({_JSON: _JSONFormat(), _TEXT: _TextFormat()})
"""The formats that are always there, by content type."""


def parse(workitem: Workitem, *, max_body: int, formats: Mapping[str, Format] = BUILTIN) -> Workitem:
    """The bare workitem in a message from the queue `taskqueue`, with its type, as its worker gets it.

    max_body: bytes; a longer body is malformed.
    formats: by content type, in lower case.

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
            type=workitem.type or _text_of(claimed, "the header worker_type"),
            body=workitem.body,
            content_type=workitem.content_type,
        )
    else:
        found = _extract(workitem, formats)
    if not is_type(found.type):
        raise FormatError(f"{_shown(found.type)} is no valid worker type")
    reference = found.reference or workitem.reference
    if len(reference) > MAX_REFERENCE:
        raise FormatError(f"the reference has more than {MAX_REFERENCE} characters")
    if _UNSTORABLE.search(reference):
        raise FormatError(f"the reference {_shown(reference)} has a NUL or half a surrogate pair")
    return replace(
        workitem,
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


def value(body: bytes, content_type: str) -> object:
    """What a handler gets for a bare workitem: a JSON value, str for plain text, else bytes.  Raises FormatError."""
    media = _media(content_type)
    if media == _JSON:
        return _json(_decode(body, content_type))
    if media == _TEXT:
        return _decode(body, content_type)
    return body


def payload(value: object) -> Payload:
    """What a handler returned, as a result: bytes as they are, str as UTF-8 text, else JSON.

    Raises FormatError where JSON can't express `value`, or `value` would not read it back.
    """
    try:
        if isinstance(value, bytes | bytearray):
            return Payload(bytes(value), "application/octet-stream")
        if isinstance(value, str):
            return Payload(value.encode(), _TEXT)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        _check_depth(text)
        # A lone surrogate, such as Python has for a byte of a file's name, becomes JSON's own escape.
        return Payload(text.encode(errors="backslashreplace"), _JSON)
    except RecursionError:
        raise FormatError(f"a result of type {_name(value)} is nested too deeply") from None
    except (TypeError, ValueError, FormatError) as error:
        raise FormatError(f"a result of type {_name(value)} can't be sent: {_line(str(error))}") from None


def failed_result(workitem: Workitem, error: str, traceback: str) -> Payload:
    """The result of a workitem that failed: `null`, or the Ruote workitem with `error` and `trace` set in it.

    Never raises: what can't be read is no Ruote workitem.
    """
    if _media(workitem.content_type) != _JSON:
        return Payload()
    try:
        members = _members(_decode(workitem.body, workitem.content_type))
    except FormatError:
        return Payload()
    if not isinstance(_ruote_type(members), str):
        return Payload()
    texts = {name: text for name, (_, text) in members.items()}
    texts["error"] = json.dumps(_encodable(error))
    texts["trace"] = json.dumps(_encodable(traceback))
    body = ",".join(f"{json.dumps(name)}:{text}" for name, text in texts.items())
    return Payload(f"{{{body}}}".encode(), _JSON)


def _extract(workitem: Workitem, formats: Mapping[str, Format]) -> Extracted:
    if workitem.content_encoding.lower() not in ("", "identity", "utf-8", "utf8"):
        raise FormatError(f"unknown content encoding {_shown(workitem.content_encoding)}")
    media = _media(workitem.content_type)
    if not media:
        raise FormatError("neither a content type nor a header worker_type")
    if media not in formats:
        raise FormatError(f"unknown content type {_shown(workitem.content_type)}")
    try:
        return formats[media].extract(workitem)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # a third party's format must not stop the dispatcher
        raise FormatError(f"the format of {media} failed: {type(error).__name__}: {_line(str(error))}") from error


def _check_version(version: object) -> None:
    if isinstance(version, str) and version.isascii() and version.isdigit() and len(version) < 10:
        version = int(version)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError("the header taskqueue_version is not a version")
    if version > FORMAT_VERSION:
        raise FormatError(f"the header taskqueue_version is newer than {FORMAT_VERSION}")


def _text_of(value: object, name: str) -> str:
    if isinstance(value, bytes) and value.isascii():
        return value.decode()
    if not isinstance(value, str):
        raise FormatError(f"{name} is not a string")
    return value


# --- JSON ---

_BOM = "\ufeff"
_MARK = re.compile(r"[ \t\n\r]*([^ \t\n\r])[ \t\n\r]*")


def _no_constant(name: str) -> NoReturn:
    raise FormatError(f"not JSON: {name}")


_NO_MARKS = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one level down, one level up, as signed bytes

_READER = json.JSONDecoder(parse_constant=_no_constant)
# Any number of any length is True for the skimmer, which wants to know where values end and which are strings:
# converting a number may be slow, inexact, or refused for its length.
_SKIMMER = json.JSONDecoder(parse_constant=_no_constant, parse_int=bool, parse_float=bool)

_Members = dict[str, tuple[object, str]]  # name: its value as the skimmer sees it, and the value's text


def _members(text: str) -> _Members:
    """The members of the JSON object `text`; of several with the same name the last.  Raises FormatError."""
    try:
        members = _skim(text)
    except (RecursionError, ValueError) as error:
        raise _not_json(error) from None
    _check_depth(text)
    return members


def _skim(text: str) -> _Members:
    members: _Members = {}
    mark, at = _mark(text, len(_BOM) if text.startswith(_BOM) else 0)
    if mark != "{":
        raise FormatError("the JSON is not an object")
    if text.startswith("}", at):
        mark, at = _mark(text, at)
    while mark != "}":
        name, at = _SKIMMER.raw_decode(text, at)
        colon, start = _mark(text, at)
        if not isinstance(name, str) or colon != ":":
            raise json.JSONDecodeError("Expecting a name and a colon", text, at)
        value, end = _SKIMMER.raw_decode(text, start)
        members[name] = value, text[start:end]
        mark, at = _mark(text, end)
        if mark not in (",", "}"):
            raise json.JSONDecodeError("Expecting a comma or the end of the object", text, end)
    if at != len(text):
        raise json.JSONDecodeError("Extra data", text, at)
    return members


def _mark(text: str, at: int) -> tuple[str, int]:
    """The next character that is not white space, and where white space after it ends."""
    found = _MARK.match(text, at)
    return (found[1], found.end()) if found else ("", at)


def _ruote_type(members: _Members) -> object:
    """What a Ruote workitem has as fields.params.worker_type; None where there is no such thing."""
    fields, _ = members.get("fields", (None, ""))
    params = fields.get("params") if isinstance(fields, dict) else None
    return params.get("worker_type") if isinstance(params, dict) else None


def _json(text: str) -> object:
    try:
        found: object = _READER.decode(text.removeprefix(_BOM))
    except (RecursionError, ValueError) as error:
        raise _not_json(error) from None
    _check_depth(text)
    return found


def _not_json(error: RecursionError | ValueError) -> FormatError:
    if isinstance(error, json.JSONDecodeError):
        return FormatError(f"not JSON: {error.msg} (character {error.pos})")
    if isinstance(error, ValueError):  # Python's limit of digits: converting them takes quadratic time
        return FormatError("a number in the JSON has too many digits")
    return FormatError(f"the JSON is nested deeper than {MAX_DEPTH} levels")


def _check_depth(text: str) -> None:
    """Raise FormatError where the valid JSON `text` nests too deeply."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    # Without escapes, every other piece between quotation marks is outside of strings.
    plain = text.replace("\\\\", "").replace('\\"', "").encode("ascii", "replace").translate(None, _NO_MARKS)
    steps = b"".join(plain.split(b'"')[::2]).translate(_STEPS)
    if max(accumulate(memoryview(steps).cast("b")), default=0) > MAX_DEPTH:
        raise FormatError(f"the JSON is nested deeper than {MAX_DEPTH} levels")


# --- text ---

_FIRST_WORD = re.compile(r"\ufeff?[ \t\n\r\v\f]*([^ \t\n\r\v\f]+)[ \t\n\r\v\f]*")
_CHARSET = re.compile(r"[a-z0-9][a-z0-9._:+-]{0,39}")
# Python has codecs that are no encodings of text: slow ones, and such as warn of what they decode.
_NO_CHARSETS = frozenset(("idna", "punycode", "unicode-escape", "raw-unicode-escape"))


def _media(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _charset(content_type: str) -> str:
    for parameter in content_type.split(";")[1:]:
        name, _, charset = parameter.partition("=")
        if name.strip().lower() == "charset":
            return charset.strip().strip('"').lower()
    return "utf-8"


def _decode(body: bytes, content_type: str) -> str:
    """The text of `body`, which has no lone surrogates.  Raises FormatError."""
    charset = _charset(content_type)
    try:
        if charset == "utf-8":
            return body.decode()
        if not _CHARSET.fullmatch(charset) or codecs.lookup(charset).name.replace("_", "-") in _NO_CHARSETS:
            raise LookupError
        text = body.decode(charset)
        text.encode()  # UTF-7 can bring lone surrogates
        return text
    except LookupError:
        raise FormatError(f"unknown encoding {_shown(charset)}") from None
    except ValueError:
        raise FormatError(f"the body is not {charset}") from None


def _encode(text: str, content_type: str) -> bytes:
    charset = _charset(content_type)
    try:
        return text.encode(charset)
    except ValueError:
        raise FormatError(f"the text can't be written in {charset} again") from None


def _encodable(text: str) -> str:
    """`text` with lone surrogates escaped, as file names in an error have them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(text: str) -> str:
    return ascii(text[:_SHOWN])[:_SHOWN]


def _name(value: object) -> str:
    return _line(type(value).__name__)


def _line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:_SHOWN])
