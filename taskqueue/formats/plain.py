"""What JSON can express as it is, and its text: the fast way for the plain case."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from taskqueue.errors import FormatError
from taskqueue.formats.jsontext import MAX_DEPTH

__all__ = ["SCALARS", "is_object", "is_text", "plain_text", "text_of_form"]

SCALARS = frozenset((str, int, float, bool, type(None)))
"""The classes of what JSON has, but for lists and dicts."""

_MAX_DIGITS = 4300  # of an integer in JSON, as Python reads it unless told otherwise
_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))


def plain_text(value: object) -> bytes | None:
    """The text of what JSON itself can express; None of anything else."""
    try:
        # Whoever raised Python's limit of digits would send numbers that others refuse.
        if _is_plain(value, MAX_DEPTH) and 0 < sys.get_int_max_str_digits() <= _MAX_DIGITS:
            return _ENCODER.encode(value).encode()
    except (ValueError, RecursionError):  # infinity, a lone surrogate, or too many digits
        pass
    return None


def text_of_form(form: object) -> bytes:
    """The text of what a Writer wrote.  Raises FormatError."""
    try:
        return _ENCODER.encode(form).encode()
    except RecursionError:  # whoever calls is deep in the stack already
        raise FormatError(f"the values are nested deeper than {MAX_DEPTH} levels") from None


def _is_plain(value: Any, depth: int) -> bool:
    """Whether `value` has only classes that JSON has, in no more than `depth` levels."""
    kind = type(value)
    if kind is list:
        items = value
    elif kind is dict:
        if not is_object(value):
            return False
        items = value.values()
    else:
        return kind in SCALARS
    if depth == 0:
        return False
    # The first half is the common case, and does not leave C.
    return SCALARS.issuperset(map(type, items)) or all(
        _is_plain(item, depth - 1) for item in items if type(item) not in SCALARS
    )


def is_object(value: Mapping[Any, object]) -> bool:
    """Whether JSON has such an object, and nobody takes it for a marker."""
    if not all(type(key) is str and is_text(key) for key in value):
        return False
    return len(value) != 1 or not next(iter(value)).startswith("$")


def is_text(value: str) -> bool:
    """Whether `value` is without lone surrogates."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False
