"""Dead letters as people and programs are shown them.  Nothing in a letter can drive the terminal."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from taskqueue.dead import age, type_of
from taskqueue.workitem import Workitem

__all__ = ["plain", "row", "table", "text", "whole"]

COLUMNS = ("id", "type", "task", "reason", "age", "attempts", "detail")
_NOTES = ("reason", "detail", "attempts", "crashes", "from", "died")
_HEX_LINE = 16  # bytes


def plain(value: object) -> str:
    """One line of printable characters; all others, such as those that move a cursor, are escaped."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_readable)
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in shown
    )


def _readable(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return dict(value) if isinstance(value, Mapping) else str(value)


def row(letter: Workitem, now: float) -> dict[str, Any]:
    """What a list says of a letter."""
    headers = letter.headers
    seconds = age(letter, now)
    return {
        "id": letter.id,
        "type": type_of(letter),
        "task": letter.task,
        **{name: headers.get(name) for name in _NOTES},
        "age": None if seconds is None else round(seconds),
        "reference": letter.reference,
        "size": len(letter.body),
    }


def whole(letter: Workitem, now: float) -> dict[str, Any]:
    """All of a letter: `row`, and the rest.  `body` is text, or `body_base64` is there instead."""
    others = {name: value for name, value in letter.headers.items() if name not in (*_NOTES, "traceback")}
    try:
        body = {"body": letter.body.decode()}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(letter.body).decode()}
    return {
        **row(letter, now),
        "content_type": letter.content_type,
        "content_encoding": letter.content_encoding,
        "correlation_id": letter.correlation_id,
        "reply_to": letter.reply_to,
        "timestamp": letter.timestamp,
        "priority": letter.priority,
        "properties": dict(letter.others),
        "headers": json.loads(json.dumps(others, default=_readable)),
        "traceback": letter.headers.get("traceback"),
        **body,
    }


def table(rows: Sequence[Mapping[str, Any]], width: int | None, columns: Sequence[str] = COLUMNS) -> Iterator[str]:
    """Lines for people, cut to `width` characters; None: not cut.  No column `task` where nobody calls any."""
    columns = [name for name in columns if name != "task" or any(found["task"] for found in rows)]
    cells = [[_cell(name, found[name]) for name in columns] for found in rows]
    header = [name.upper() for name in columns]
    widths = [max(len(line[n]) for line in (header, *cells)) for n in range(len(columns))]
    for line in (header, *cells):
        full = "  ".join(cell.ljust(wide) for cell, wide in zip(line, widths, strict=True)).rstrip()
        yield full if width is None or len(full) <= width else f"{full[: width - 1]}…"


def _cell(name: str, value: object) -> str:
    if name == "age" and isinstance(value, int):
        return _short(value)
    return "-" if value in (None, "") else plain(value)


def _short(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def text(letter: Workitem, now: float) -> Iterator[str]:
    """All of a letter in lines for people."""
    shown = whole(letter, now)
    died = letter.headers.get("died")
    if shown["age"] is not None and isinstance(died, (int, float)) and 0 <= died < 1 << 37:
        shown["died"] = f"{datetime.fromtimestamp(died, UTC):%Y-%m-%d %H:%M:%S} UTC ({_short(shown['age'])} ago)"
    headers, properties = shown.pop("headers"), shown.pop("properties")
    traceback = shown.pop("traceback")
    for name in ("body", "body_base64", "age"):
        shown.pop(name, None)
    yield from _pairs((name.replace("_", " "), value) for name, value in (*shown.items(), *properties.items()))
    if headers:
        yield "headers:"
        yield from (f"  {line}" for line in _pairs(headers.items()))
    if traceback:
        yield "traceback:"
        yield from _lines(traceback if isinstance(traceback, str) else plain(traceback))
    yield "body:"
    try:
        yield from _lines(letter.body.decode())
    except UnicodeDecodeError:
        yield from _hex(letter.body)


def _pairs(values: Iterable[tuple[str, object]]) -> Iterator[str]:
    for name, value in values:
        if value not in (None, ""):
            yield f"{plain(name):<16}  {plain(value)}"


def _lines(content: str) -> Iterator[str]:
    for line in content.split("\n"):
        yield f"  {plain(line)}".rstrip()


def _hex(body: bytes) -> Iterator[str]:
    for start in range(0, len(body), _HEX_LINE):
        piece = body[start : start + _HEX_LINE]
        readable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        yield f"  {start:08x}  {piece.hex(' '):<{3 * _HEX_LINE}} {readable}"
