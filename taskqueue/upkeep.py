"""How long a store keeps what has ended, and what one round of its chores did: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

__all__ = ["DEFAULT_KEEP", "HOUR", "Keep", "Keeping", "Round", "dispensable", "longest"]

HOUR = 3600.0  # seconds


class Keep(NamedTuple):
    """How long records of what has ended are kept, and about how many of a type.

    age: seconds.  most: 0 for any number.
    """

    age: float
    most: int = 0


DEFAULT_KEEP = Keep(30 * 86400.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What is to be kept.

    default: for types that `types` does not name.
    statistics: seconds that statistics are kept; never shorter than the records that they are made of.
    """

    default: Keep = DEFAULT_KEEP
    types: Mapping[str, Keep] = field(default_factory=dict)
    statistics: float = 400 * 86400.0


def longest(keeps: Iterable[Keep]) -> Keep:
    """What satisfies all of them."""
    all_of_them = list(keeps)
    most = 0 if any(keep.most == 0 for keep in all_of_them) else max(keep.most for keep in all_of_them)
    return Keep(max(keep.age for keep in all_of_them), most)


def dispensable(hours: Iterable[tuple[float, str, int]], keeping: Keeping, now: float) -> set[tuple[float, str]]:
    """Hours, by their begin and type, whose records need not be kept any longer.

    hours: begin in POSIX seconds, type, and how many ended in it.  now: POSIX seconds.

    All of an hour goes, or nothing: so of a type at least the latest `most` are kept.
    """
    found: set[tuple[float, str]] = set()
    later: dict[str, int] = {}  # by type, how many ended after the hour
    for hour, type, count in sorted(hours, reverse=True):
        keep = keeping.types.get(type, keeping.default)
        if hour + HOUR <= now - keep.age or 0 < keep.most <= later.get(type, 0):
            found.add((hour, type))
        later[type] = later.get(type, 0) + count
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of a store's chores did.

    busy: somebody else was at it, and this one left it to them.
    carriers: dead ones, whose workitems were lent again.
    results, dead_letters: that were dropped.  records: of work that has ended, dropped.
    mended: workitems that waited for what had ended.
    days: whole partitions that were dropped, with all in them; made: partitions that were made.
    hours: that statistics were made of.
    """

    busy: bool = False
    carriers: int = 0
    results: int = 0
    dead_letters: int = 0
    records: int = 0
    mended: int = 0
    days: int = 0
    made: int = 0
    hours: int = 0

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do."""
        return not any(getattr(self, each.name) for each in fields(self))
