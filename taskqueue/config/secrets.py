"""Which values are secrets, and how they look where people can see them."""

from __future__ import annotations

import re

__all__ = ["MASK", "is_secret", "mask", "mask_pairs", "mask_url"]

MASK = "***"

_WORDS = (
    r"(?:pas+wo?r?d|passphrase|pwd|secret|token|credential"
    r"|api[_-]?key|access[_-]?key|private[_-]?key|key[_-]?file)"
)
_NAME = re.compile(_WORDS, re.IGNORECASE)
# Up to the last @: passwords hold /, : and @ that nobody encoded.  It stops before the next URL of a list.
_IN_URL = re.compile(r"(://[^:@\s]*:)(?:(?!,?[a-z][a-z0-9+.-]*://)\S)*@", re.IGNORECASE)
# `password=x` in the query of a URL or in a connection string, up to the end of the word or quotation.
_ASSIGNED = re.compile(
    rf"""([\w.-]*{_WORDS}[\w.-]*["']?\s*[=:]\s*)("(?:\\.|[^"\\])*(?:"|$)|'[^']*(?:'|$)|\S+)""",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether the value of an option, setting or environment variable of this name is a secret."""
    return _NAME.search(name) is not None


def mask_url(text: str) -> str:
    """`text` with the passwords of the URLs and connection strings in it replaced by `***`."""
    return _ASSIGNED.sub(rf"\1{MASK}", _IN_URL.sub(rf"\1{MASK}@", text))


def mask(name: str, value: str) -> str:
    """`value` of the option `name` as it may be shown."""
    return MASK if value and is_secret(name) else mask_url(value)


def mask_pairs(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Settings or environment variables as they may be shown."""
    return {name: mask(name, value) for name, value in pairs}
