"""Ends many dead letters: page by page, no faster than a rate."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing

from taskqueue.broker import DeadLetters, Delivery, Ended
from taskqueue.clock import SYSTEM, Clock
from taskqueue.outcome import Outcome
from taskqueue.workitem import Workitem

__all__ = ["Pace", "end_all", "page_size"]

BATCH = 200
"""Letters that are settled at a time where no rate is given."""
PAGE, PAGE_BYTES = 5000, 32 << 20
"""How much is held at a time: letters, and bytes of their bodies."""
PAGE_SECONDS = 15.0
"""How long letters are held at a slow rate: others who want to look wait meanwhile, and a broker may not for ever."""


def page_size(rate: float | None) -> int:
    """How many letters to hold at a time at `rate` per second; None: as fast as it goes."""
    return PAGE if rate is None else max(1, min(PAGE, math.floor(rate * PAGE_SECONDS)))


class Pace:
    """Says how long to wait, so that on average no more than `rate` letters a second are passed."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._next: float | None = None

    @property
    def batch(self) -> int:
        """How many letters to settle together: about 20 batches a second."""
        return BATCH if self.rate is None else max(1, min(BATCH, math.floor(self.rate / 20)))

    def wait(self, count: int, now: float) -> float:
        """Seconds until the next `count` letters may be settled, which then count as passed."""
        if self.rate is None:
            return 0.0
        start = now if self._next is None else max(now, self._next)
        self._next = start + count / self.rate
        return start - now


async def end_all(
    view: DeadLetters,
    picks: Callable[[Workitem], bool],
    decide: Callable[[Workitem], Outcome],
    *,
    limit: int | None,
    rate: float | None,
    found: Callable[[int], None],
    ended: Callable[[Workitem, bool], None],
    clock: Clock = SYSTEM,
) -> None:
    """End the letters that `picks` says yes to as `decide` says, first come first: those that are there now.

    limit: how many at most.  found: is told how many there are to end.  ended: is told of each whether it counted.
    """
    pace = Pace(rate)
    left: int | None = None
    while left is None or left > 0:
        page, matching = await _page(
            view, picks, page_size(rate) if left is None else min(left, page_size(rate)), limit
        )
        if left is None:  # what is given up again meanwhile comes behind all these, and is left alone
            left = matching
            found(left)
        for batch in _batches(page, pace.batch):
            await asyncio.sleep(pace.wait(len(batch), clock.monotonic()))
            counted = await view.settle([Ended(delivery, decide(delivery.workitem)) for delivery in batch])
            for delivery, counts in zip(batch, counted, strict=True):
                ended(delivery.workitem, counts)
        left = left - len(page) if page else 0


async def _page(
    view: DeadLetters, picks: Callable[[Workitem], bool], size: int, limit: int | None
) -> tuple[list[Delivery], int]:
    """The first letters, `size` of them and PAGE_BYTES at most; and how many there are in all, up to `limit`."""
    page: list[Delivery] = []
    matching = held = 0
    async with aclosing(view.look()) as looking:  # type: ignore[type-var]
        async for delivery in looking:
            if not picks(delivery.workitem):
                continue
            matching += 1
            if len(page) == matching - 1 < size and (not page or held < PAGE_BYTES):
                page.append(delivery)
                held += len(delivery.workitem.body)
            if matching == limit:
                break
    return page, matching


def _batches(page: Sequence[Delivery], size: int) -> Iterator[Sequence[Delivery]]:
    for start in range(0, len(page), size):
        yield page[start : start + size]
