"""Values on the wire, as the documentation shows them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import pytest
from valued import Deferred, deferred, marked

from taskqueue.formats.reading import MARKERS
from taskqueue.formats.values import decode, encode

PROTOCOL = Path(__file__).resolve().parent.parent / "docs/protocol.md"


def rows() -> list[tuple[str, str]]:
    return re.findall(r"^\| `(\$\w+)` \| `(.*?)` \|", PROTOCOL.read_text(), re.MULTILINE)


def test_the_documentation_has_every_marker() -> None:
    assert sorted(name for name, _ in rows()) == sorted(MARKERS)


class Documented(Enum):
    RED = 1


@pytest.mark.parametrize(("name", "example"), rows())
def test_an_example_of_the_documentation_is_read_and_written_again(name: str, example: str) -> None:
    @dataclass
    class Amount:
        amount: int

    class Point(NamedTuple):
        x: int
        y: int = 0

    classes = {"shop.Colour": Documented, "shop.Price": Amount, "shop.Point": Point}
    for full, kind in classes.items():
        kind.__module__, kind.__qualname__ = full.split(".")
    value = decode(marked(example), classes=classes, resolve=Deferred)
    again, _ = encode(value, what="the result", deferred=deferred)

    assert not isinstance(value, dict) or name == "$dict"
    if name != "$int":  # a small one is written as a number
        assert json.loads(again.body) == json.loads(example)
