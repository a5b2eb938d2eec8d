"""Text in all encodings, and as it may be shown."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

from taskqueue.errors import FormatError

__all__ = ["decode", "encodable", "encode", "line", "shown"]

_SHOWN = 120  # characters of a producer's text in an error, escaped
_CHARSET = re.compile(r"[a-z0-9][a-z0-9._:+-]{0,39}")
# Python has codecs that are no encodings of text: slow ones, and such as warn of what they decode.
_NO_CHARSETS = frozenset(("idna", "punycode", "unicode-escape", "raw-unicode-escape"))


@lru_cache(maxsize=1024)
def _charset(content_type: str) -> str:
    for parameter in content_type.split(";")[1:]:
        name, _, charset = parameter.partition("=")
        if name.strip().lower() == "charset":
            return charset.strip().strip('"').lower()
    return "utf-8"


def decode(body: bytes, content_type: str) -> str:
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
        raise FormatError(f"unknown encoding {shown(charset)}") from None
    except ValueError:
        raise FormatError(f"the body is not {charset}") from None


def encode(text: str, content_type: str) -> bytes:
    """`text` in the encoding of `content_type`.  Raises FormatError."""
    charset = _charset(content_type)
    try:
        return text.encode(charset)
    except ValueError:
        raise FormatError(f"the text can't be written in {charset} again") from None


def encodable(text: str) -> str:
    """`text` with lone surrogates escaped, as file names in an error have them."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(text: str) -> str:
    """What a producer sent, as it may stand in an error: short, in ASCII."""
    return ascii(text[:_SHOWN])[:_SHOWN]


def line(text: str) -> str:
    """`text` in one short line."""
    return "".join(character if character.isprintable() else " " for character in text[:_SHOWN])
