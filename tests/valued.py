"""Classes whose instances are values, and how the tests of values write and read them."""

from __future__ import annotations

import json
from dataclasses import InitVar, dataclass
from datetime import timedelta, tzinfo
from enum import Enum, IntEnum
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

from taskqueue.formats.values import (
    MEDIA,
    encode,
)
from taskqueue.outcome import Payload

T = TypeVar("T")


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: object
    level: Level | None = Level.LOW


@dataclass
class Price:
    amount: Any
    colour: Colour = Colour.RED


@dataclass
class Shelf(Generic[T]):
    things: list[T]
    prices: dict[str, Price]


@dataclass
class Strict:
    amount: int

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise ValueError("less than nothing")
        self.amount *= 100


@dataclass
class Secretive:
    amount: InitVar[int]


class Basket(TypedDict):
    point: Point


class DiskFull(OSError):
    def __init__(self, place: str) -> None:
        super().__init__(28, "full", place)
        self.place = place


class Text(str):
    pass


class Deferred:
    def __init__(self, id: str, name: str = "") -> None:
        self.id = id
        self.name = name


class Zone(tzinfo):
    def utcoffset(self, _: object) -> timedelta:
        return timedelta(0)


def deferred(value: object) -> tuple[str, str] | None:
    return (value.id, value.name) if isinstance(value, Deferred) else None


def sent(value: object) -> Payload:
    return encode(value, what="the result").payload


def form(value: object) -> Any:
    return json.loads(sent(value).body)


def marked(text: str) -> Payload:
    return Payload(text.encode(), MEDIA)
