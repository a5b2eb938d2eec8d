"""What happened in an hour, by type: counts by outcome, and how long work waited and ran: pure.

Times are in a histogram, for percentiles of hours can't be put together to those of a day, and histograms can.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from taskqueue.lifecycle import ENDED, State
from taskqueue.record import Attempt
from taskqueue.upkeep import HOUR

__all__ = ["BASE", "GROWTH", "Finish", "Tally", "bucket", "hour_of", "percentile", "tallied", "times", "together"]

BASE = 1e-6  # seconds: the end of the first bucket
GROWTH = 1.1
"""Each bucket ends at so many times the end of the one before: so a percentile is known to 5 %."""

Histogram = Mapping[int, int]
"""How many are in a bucket, by its number."""
K = TypeVar("K", bound=Hashable)


class Finish(NamedTuple):
    """The end of a workitem.

    ended: POSIX seconds.  waited, ran: seconds; None where nobody saw it.
    """

    ended: float
    type: str
    state: State
    waited: float | None = None
    ran: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What ended in an hour, of one type.

    hour: when it began, POSIX seconds.
    counts: by the state in which it ended, in the order of `lifecycle.ENDED`.
    waited: from the sending to the first start.  ran: the last attempt.
    """

    hour: float
    type: str
    counts: tuple[int, ...]
    waited: Histogram = field(default_factory=dict)
    ran: Histogram = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many ended."""
        return sum(self.counts)


def hour_of(moment: float) -> float:
    """When the hour of a moment began; both POSIX seconds."""
    return moment // HOUR * HOUR


def bucket(seconds: float) -> int:
    """The number of the bucket that a time belongs to; clocks that differ may make it negative, which counts as 0."""
    return max(0, math.ceil(math.log(max(seconds, BASE) / BASE) / math.log(GROWTH)))


def percentile(histogram: Histogram, share: float) -> float | None:
    """The time, in seconds, that `share` (0 to 1) of all did not exceed; None of nothing."""
    total, seen = sum(histogram.values()), 0
    for number in sorted(histogram):
        seen += histogram[number]
        if seen >= share * total:
            return float(BASE * GROWTH ** (number - 0.5))
    return None


def times(sent: float, attempts: Sequence[Attempt]) -> tuple[float | None, float | None]:
    """How long a workitem with these attempts waited for the first of them, and how long the last one ran."""
    if not attempts:
        return None, None
    first, last = attempts[0].run, attempts[-1].run
    waited = None if first is None else first.started - sent
    ran = None if last is None or last.ended is None else last.ended - last.started
    return waited, ran


def tallied(finishes: Iterable[Finish]) -> list[Tally]:
    """One for each type and hour, in their order."""
    found: dict[tuple[float, str], tuple[Counter[State], Counter[int], Counter[int]]] = {}
    for finish in finishes:
        key = hour_of(finish.ended), finish.type
        states, waited, ran = found.setdefault(key, (Counter(), Counter(), Counter()))
        states[finish.state] += 1
        if finish.waited is not None:
            waited[bucket(finish.waited)] += 1
        if finish.ran is not None:
            ran[bucket(finish.ran)] += 1
    return [
        Tally(hour=hour, type=type, counts=tuple(states[state] for state in ENDED), waited=dict(waited), ran=dict(ran))
        for (hour, type), (states, waited, ran) in sorted(found.items())
    ]


def together(tallies: Iterable[Tally], *, hourly: bool = False) -> list[Tally]:
    """One for each type; its hour is that of the first.  hourly: one for each type and hour."""
    found: dict[tuple[str, float], Tally] = {}
    for tally in sorted(tallies, key=lambda tally: tally.hour):
        key = tally.type, tally.hour if hourly else 0.0
        before = found.get(key)
        found[key] = tally if before is None else _sum(before, tally)
    return [found[key] for key in sorted(found)]


def _sum(one: Tally, other: Tally) -> Tally:
    return Tally(
        hour=one.hour,
        type=one.type,
        counts=tuple(map(sum, zip(one.counts, other.counts, strict=True))),
        waited=_added(one.waited, other.waited),
        ran=_added(one.ran, other.ran),
    )


def _added(one: Mapping[K, int], other: Mapping[K, int]) -> dict[K, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
