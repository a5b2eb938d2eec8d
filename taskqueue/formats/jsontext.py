"""JSON, read to the letter and no deeper than anybody can read it again."""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import NoReturn

from taskqueue.errors import FormatError

__all__ = ["MAX_DEPTH", "Members", "check_depth", "json_value", "members"]

MAX_DEPTH = 200
"""Levels of arrays and objects in JSON: far fewer than any recursive reader can take, in a deep stack, too."""

_BOM = "\ufeff"
_WHITE = " \t\n\r"
_MARK = re.compile(r"[ \t\n\r]*([^ \t\n\r])[ \t\n\r]*")


def _no_constant(name: str) -> NoReturn:
    raise FormatError(f"not JSON: {name}")


_NO_MARKS = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one level down, one level up, as signed bytes

_READER = json.JSONDecoder(parse_constant=_no_constant)
# Any number of any length is True for the skimmer, which wants to know where values end and which are strings:
# converting a number may be slow, inexact, or refused for its length.
_SKIMMER = json.JSONDecoder(parse_constant=_no_constant, parse_int=bool, parse_float=bool)

Members = dict[str, tuple[object, str]]  # name: its value as the skimmer sees it, and the value's text


def members(text: str) -> Members:
    """The members of the JSON object `text`; of several with the same name the last.  Raises FormatError."""
    try:
        found = _skim(text)
    except (RecursionError, ValueError) as error:
        raise _not_json(error) from None
    check_depth(text)
    return found


def _skim(text: str) -> Members:
    found: Members = {}
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
        found[name] = value, text[start:end]
        mark, at = _mark(text, end)
        if mark not in (",", "}"):
            raise json.JSONDecodeError("Expecting a comma or the end of the object", text, end)
    if at != len(text):
        raise json.JSONDecodeError("Extra data", text, at)
    return found


def _mark(text: str, at: int) -> tuple[str, int]:
    """The next character that is not white space, and where white space after it ends."""
    found = _MARK.match(text, at)
    return (found[1], found.end()) if found else ("", at)


def json_value(text: str) -> object:
    """The value of the JSON `text`.  Raises FormatError."""
    try:
        found = _whole(text.removeprefix(_BOM))
    except (RecursionError, ValueError) as error:
        raise _not_json(error) from None
    check_depth(text)
    return found


def _whole(text: str) -> object:
    """As JSONDecoder.decode, which takes half as long again."""
    found: object
    found, end = _READER.raw_decode(text, len(text) - len(text.lstrip(_WHITE)))
    if rest := text[end:].lstrip(_WHITE):
        raise json.JSONDecodeError("Extra data", text, len(text) - len(rest))
    return found


def _not_json(error: RecursionError | ValueError) -> FormatError:
    if isinstance(error, json.JSONDecodeError):
        return FormatError(f"not JSON: {error.msg} (character {error.pos})")
    if isinstance(error, ValueError):  # Python's limit of digits: converting them takes quadratic time
        return FormatError("a number in the JSON has too many digits")
    return FormatError(f"the JSON is nested deeper than {MAX_DEPTH} levels")


def check_depth(text: str) -> None:
    """Raise FormatError where the valid JSON `text` nests too deeply."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    # Without escapes, every other piece between quotation marks is outside of strings.
    plain = text.replace("\\\\", "").replace('\\"', "").encode("ascii", "replace").translate(None, _NO_MARKS)
    steps = b"".join(plain.split(b'"')[::2]).translate(_STEPS)
    if max(accumulate(memoryview(steps).cast("b")), default=0) > MAX_DEPTH:
        raise FormatError(f"the JSON is nested deeper than {MAX_DEPTH} levels")
