"""From the text of an option to its value.

A parser raises ValueError with what it expected: the second half of a sentence that begins with the option.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from urllib.parse import urlsplit

from taskqueue.workitem import is_type

__all__ = [
    "Parser",
    "choice",
    "content_type",
    "content_types",
    "duration",
    "environment",
    "number",
    "prefetch",
    "size",
    "switch",
    "text",
    "url",
]

Parser = Callable[[str], object]

SCHEMES = ("amqp", "amqps", "memory", "postgresql", "sqlite")
LONGEST = 3650 * 86400.0  # seconds; ten years: beyond it, it is a typing error, and timers overflow

_NUMBER = re.compile(r"[0-9]{1,12}")
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([smhd]?)", re.IGNORECASE)
_SIZE = re.compile(r"([0-9]{1,12})\s*([kmg]?)", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTENT_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}(/[a-z0-9!#$&^_.+-]{1,127})?")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SWITCH = {"on": True, "yes": True, "true": True, "1": True, "off": False, "no": False, "false": False, "0": False}


def number(least: int, most: int = 10**12) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def parse(value: str) -> int:
        if _NUMBER.fullmatch(value) and least <= int(value) <= most:
            return int(value)
        limits = f"from {least} to {most}" if most < 10**12 else f"not below {least}"
        raise ValueError(f"expected a whole number, {limits}")

    return parse


def duration(least: float = 0.0, most: float = LONGEST) -> Callable[[str], float]:
    """Seconds, from a number with s, m, h or d behind it."""

    def parse(value: str) -> float:
        found = _DURATION.fullmatch(value)
        if found is None:
            raise ValueError("expected a time such as 90, 90s, 1.5m, 12h or 30d")
        seconds = float(found[1]) * _SECONDS[found[2].lower()]
        if not least <= seconds <= most:
            raise ValueError(f"expected a time from {least:g} to {most:.0f} seconds")
        return seconds

    return parse


def size(value: str) -> int:
    """Bytes, from a number with K, M or G (1024, 1024², 1024³) behind it."""
    found = _SIZE.fullmatch(value)
    if found is None or int(found[1]) == 0:
        raise ValueError("expected a size above 0 such as 500000, 512K, 16M or 1G")
    return int(found[1]) * _BYTES[found[2].lower()]


def size_or_none(value: str) -> int:
    """The same, or 0 for no limit."""
    return 0 if value == "0" else size(value)


def switch(value: str) -> bool:
    """on or off, in the spellings that configparser knows."""
    if value.lower() not in _SWITCH:
        raise ValueError("expected on or off")
    return _SWITCH[value.lower()]


def choice(*choices: str) -> Callable[[str], str]:
    """One of `choices`, in upper or lower case."""

    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"expected {', '.join(choices[:-1])} or {choices[-1]}")
        return value.lower()

    return parse


def prefetch(value: str) -> int:
    """How many deliveries are held; `auto` is 0."""
    if value.lower() == "auto":
        return 0
    try:
        return number(1, 65535)(value)
    except ValueError:
        raise ValueError("expected auto or a whole number from 1 to 65535") from None


def workers(value: str) -> int | tuple[str, ...]:
    """A number of processes, or the names of groups."""
    if value.isdecimal():
        return number(0, 10_000)(value)
    names = tuple(name for name in re.split(r"[,\s]+", value) if name)
    if not names or not all(is_type(name) for name in names):
        raise ValueError("expected a number or names of groups")
    return names


def environment(value: str) -> tuple[tuple[str, str], ...]:
    """NAME=value pairs, quoted as in a shell; nothing is expanded."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"expected NAME=value pairs, quoted as in a shell ({error})".lower()) from None
    pairs = [word.partition("=") for word in words]
    names = [name for name, _, _ in pairs]
    for name, equals, content in pairs:
        if not equals or not _VARIABLE.fullmatch(name) or "\0" in content:
            raise ValueError("expected NAME=value pairs, quoted as in a shell")
        if names.count(name) > 1:
            raise ValueError(f"expected each variable once, and {name} is there twice")
    return tuple((name, content) for name, _, content in pairs)


def content_type(value: str) -> str:
    """A content type without parameters, in lower case; empty: none."""
    if value and not _CONTENT_TYPE.fullmatch(value.lower()):
        raise ValueError("expected a content type without parameters, such as application/json")
    return value.lower()


def content_types(value: str) -> tuple[tuple[str, str], ...]:
    """Pairs of content types, sorted: what comes in, and what it is read as."""
    pairs: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in re.split(r"[,\n]", value))):
        given, _, meant = (word.strip().lower() for word in pair.partition("="))
        if not _CONTENT_TYPE.fullmatch(given) or not _CONTENT_TYPE.fullmatch(meant):
            raise ValueError("expected pairs of content types, such as text/json = application/json")
        if given in pairs:
            raise ValueError(f"expected each content type once, and {given} is there twice")
        pairs[given] = meant
    return tuple(sorted(pairs.items()))


def text(least: int = 0, most: int = 255) -> Callable[[str], str]:
    """Text in one line, of `least` to `most` bytes."""

    def parse(value: str) -> str:
        if not value.isprintable() or not least <= len(value.encode()) <= most:
            raise ValueError(f"expected one line of {least} to {most} bytes")
        return value

    return parse


def user(value: str) -> str:
    """The name of a user of this host; whether it exists is not looked up."""
    if any(character.isspace() or character in ":/,\0" for character in value):
        raise ValueError("expected the name of one user")
    return value


def worker_user(value: str) -> str:
    """A user other than root, whose rights a plugin gets by the `user` of its own group alone."""
    if user(value) == "root":
        raise ValueError("expected a user other than root: only by user = root, in sections of workers, do they run so")
    return value


def url(value: str) -> str:
    """Where a broker is; empty: not said here."""
    scheme, colon, _ = value.partition(":")
    if value and (not colon or scheme.lower() not in SCHEMES or not value.isprintable() or " " in value):
        raise ValueError(f"expected a URL that begins with {', '.join(f'{known}:' for known in SCHEMES)}")
    try:
        _ = urlsplit(value).port
    except ValueError:
        raise ValueError("expected a host, and a port from 0 to 65535 behind its colon") from None
    return value
