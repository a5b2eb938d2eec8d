"""Lends workitems from one queue of the database."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskqueue.broker import Delivery, Ended, Lease, Underway
from taskqueue.brokers.postgresql.engine import Engine, Lent
from taskqueue.brokers.postgresql.parcel import Parcel
from taskqueue.brokers.postgresql.rows import Row
from taskqueue.errors import BrokerError
from taskqueue.outcome import Release

__all__ = ["PostgreSQLConsumer"]

log = logging.getLogger(__name__)

LARGE = 1500  # deliveries that are settled in one statement
WHOLE_EVERY = 1.0  # seconds between looks at the whole queue, for what lies before the marks
WHOLE_SHARE = 10  # times as long as such a look took there is no next one: beside an old transaction it is slow
TOGETHER = 0.005  # seconds that a claim waits for something to settle along with it
HELD_LEAST, HELD_MOST = 0.005, 1.0  # seconds between looks for a handler's own transaction to end
WARN_AFTER = 10.0  # seconds of such looks
CLOSE_WITHIN = 5.0  # seconds that closing waits for a database that is away


@dataclass(slots=True, eq=False)
class _Settling:
    ended: list[tuple[Ended, Row]]
    counted: asyncio.Future[set[int]]


@dataclass(slots=True, eq=False)
class _Report:
    underway: Sequence[Underway]
    stored: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class _Share:
    """See `engine.Share`; whole: whether it claims from the whole queue."""

    consumer: PostgreSQLConsumer
    settled: list[_Settling]
    reported: list[_Report]
    room: int
    claim: dict[str, object] | None = None
    whole: bool = False
    begun: float = 0.0
    rings: int = 0
    coming: int = 0  # were lent, and are still packed

    def arrived(self, lent: Lent | None, moved: Mapping[int, str]) -> None:
        self.consumer.arrived(self, lent, moved)

    def finish(self, counted: set[int], claimed: list[Row] | None, unwanted: Container[int]) -> None:
        self.consumer.finish(self, counted, claimed, unwanted)


class PostgreSQLConsumer:
    """Each statement that settles claims as well, up to the reserve.

    A claim begins behind what was lent last, for each priority (marks): the index entries of what is over can't be
    removed beside an old transaction, and are not gone through again so.  What lies before the marks, such as what was
    given back, or sent by one who committed late, is found by a look at the whole queue: whenever a claim leaves room,
    and once a second.
    """

    def __init__(self, engine: Engine, queue: str, reserve: int) -> None:
        self.closed = False
        self._engine = engine
        self._queue = queue
        self._reserve = reserve
        self._lease = Lease()
        self._lent: dict[int, tuple[Delivery, Row]] = {}
        self._ready: deque[Delivery] = deque()
        self._settling: list[_Settling] = []  # in the next statement
        self._queued: deque[_Settling] = deque()  # in one after that
        self._reports: list[_Report] = []
        self._coming = 0  # were lent, and are still packed
        self._unwanted: Container[int] = ()  # of what is lent, as the last statement said
        self._moved: dict[int, str] = {}  # where rows are since something was said of them
        self._paused = True
        self._declared = False
        self._wake = asyncio.Event()
        self._hungry = True  # there may be something that was not looked for
        self._rings = 0
        self._later: asyncio.TimerHandle | None = None
        self._marks: dict[str, int] = {}
        self._whole_at = self._last_whole = 0.0
        engine.join(self)

    async def receive(self, *, limit: int) -> list[Delivery]:
        if not self._declared:
            await self._engine.call("declare", self._queue)
            self._declared = True
        while not self._ready:
            if self.closed:
                raise BrokerError(f"the consumer of {self._queue} is closed")
            self._paused = False
            self._look()
            self._wake.clear()
            await self._wake.wait()
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        taken: list[tuple[Ended, Row]] = []
        mine = []
        over = {item.delivery.tag for item in ended if item.completing and await self._over(item.delivery)}
        for item in ended:
            delivery = item.delivery
            entry = self._lent.get(delivery.tag)
            held = entry is not None and entry[0] is delivery and not delivery.lease.lost
            mine.append(held)
            if entry is not None and held:
                del self._lent[delivery.tag]
                if delivery.tag not in over:
                    taken.append((item, entry[1]))
        if over:
            self._look()
        if not taken:
            return mine
        counted = await asyncio.shield(self._settle(taken))
        counted = counted | over
        return [held and item.delivery.tag in counted for held, item in zip(mine, ended, strict=True)]

    async def _over(self, delivery: Delivery) -> bool:
        """Whether its handler's own transaction has ended it; waits for that, where it goes on."""
        begun = asyncio.get_running_loop().time()
        for turn in itertools.count():
            entry = self._lent.get(delivery.tag)
            if delivery.lease.lost or entry is None or entry[0] is not delivery:
                return False
            found = await self._engine.whether_over(entry[1])
            if found in ("over", "open"):
                return found == "over"
            waited = asyncio.get_running_loop().time() - begun
            if turn and waited > WARN_AFTER:
                begun += waited
                log.warning("workitem %s: its handler has ended, and its own transaction has not", entry[1].stored_id)
            await asyncio.sleep(min(HELD_MOST, HELD_LEAST * 2 ** min(turn, 16)))
        raise AssertionError("unreachable")

    def ticket(self, delivery: Delivery) -> dict[str, Any] | None:
        entry = self._lent.get(delivery.tag)
        return None if entry is None else self._engine.ticket(entry[1])

    def _settle(self, taken: list[tuple[Ended, Row]]) -> asyncio.Future[set[int]]:
        settling = _Settling(taken, asyncio.get_running_loop().create_future())
        self._queued.append(settling)
        self._put_in(self._engine.parcel)
        self._engine.poke()
        return settling.counted

    def _put_in(self, parcel: Parcel) -> None:
        while self._queued and len(parcel.settled) < LARGE:
            settling = self._queued.popleft()
            self._settling.append(settling)
            for ended, row in settling.ended:
                parcel.end(self._now_at(row), ended)

    # What the engine asks for.

    def begin(self, parcel: Parcel) -> _Share:
        self._put_in(parcel)
        settled, self._settling = self._settling, []
        room = 0 if self._paused else self._reserve - len(self._lent) - self._coming
        share = _Share(self, settled, self._say(parcel), room)
        if room > 0 and (settled or (self._hungry and self._later is None)):
            share.rings = self._rings
            share.begun = now = asyncio.get_running_loop().time()
            share.whole = now >= self._whole_at and (self._hungry or now >= self._last_whole + WHOLE_EVERY)
            share.whole = share.whole or not self._marks
            share.claim = {"queue": self._queue, "room": room, "after": {} if share.whole else self._marks}
        return share

    def _say(self, parcel: Parcel) -> list[_Report]:
        """Put what runs into `parcel`, but for what has ended meanwhile."""
        reported, self._reports = self._reports, []
        for report in reported:
            for one in report.underway:
                delivery, row = self._lent.get(one.delivery.tag, (None, None))
                if row is not None and delivery is one.delivery:
                    parcel.report(self._now_at(row), one.run, one.progress)
        if reported:
            parcel.asks = True
        return reported

    def _now_at(self, row: Row) -> Row:
        place = self._moved.pop(row.seq, None) if self._moved else None
        return row if place is None else row._replace(place=place)

    def arrived(self, share: _Share, lent: Lent | None, moved: Mapping[int, str]) -> None:
        if moved:
            self._moved.update((seq, moved[seq]) for seq in self._held() if seq in moved)
        if lent is not None:
            share.coming = lent.size
            self._coming += lent.size
            self._note(share, lent)

    def finish(self, share: _Share, counted: set[int], claimed: list[Row] | None, unwanted: Container[int]) -> None:
        self._coming -= share.coming
        for settling in share.settled:
            if not settling.counted.done():
                settling.counted.set_result(counted)
        self._unwanted = unwanted
        _said(share.reported)
        if claimed is None:
            return
        for row in claimed:
            delivery = Delivery(
                workitem=row.workitem, queue=self._queue, tag=row.seq, lease=self._lease, inputs=row.inputs
            )
            self._lent[row.seq] = delivery, row
            self._ready.append(delivery)
        if self._paused:  # meanwhile
            self._give_back()
        elif claimed:
            self._wake.set()

    def _note(self, share: _Share, lent: Lent) -> None:
        """Where the next claim begins, and when it is worthwhile."""
        now = asyncio.get_running_loop().time()
        filled = lent.size >= share.room
        for priority, tag in lent.marks.items():
            self._marks[priority] = tag if share.whole and filled else max(tag, self._marks.get(priority, 0))
        if share.whole:
            self._last_whole = now
            self._whole_at = now + WHOLE_SHARE * (now - share.begun)
        if filled or not share.whole:
            self._hungry = True
            if not filled:
                self._look(max(0.0, self._whole_at - now))
        else:
            self._hungry = self._rings != share.rings  # for what came meanwhile

    def held(self) -> dict[int, str]:
        return {seq: row.stored_id for seq, row in self._held().items()}

    def _held(self) -> dict[int, Row]:
        pending = [row for settling in (*self._settling, *self._queued) for _, row in settling.ended]
        lent = [row for _, row in self._lent.values()]
        return {row.seq: row for row in (*pending, *lent)}

    def rung(self, queue: str) -> None:
        if not queue or queue == self._queue:
            self._hungry = True
            self._rings += 1
            self._look()

    def lost(self) -> None:
        self._lease.lost = True
        self._lease = Lease()
        self._lent.clear()
        self._ready.clear()
        self._marks.clear()
        self._moved.clear()
        self._reports = _said(self._reports)
        pending, self._settling = [*self._settling, *self._queued], []
        self._queued.clear()
        for settling in pending:
            if not settling.counted.done():
                settling.counted.set_result(set())
        self.rung("")

    def _look(self, delay: float = 0.0) -> None:
        """Have a claim made soon, where one may be made."""
        if self._paused or self.closed or not self._hungry or len(self._lent) >= self._reserve:
            return
        delay = max(delay, TOGETHER if self._lent else 0.0)
        loop = asyncio.get_running_loop()
        if self._later is not None:
            if self._later.when() <= loop.time() + delay:
                return
            self._later.cancel()
            self._later = None
        if delay:
            self._later = loop.call_later(delay, self._look_now)
        else:
            self._engine.poke()

    def _look_now(self) -> None:
        self._later = None
        self._engine.poke()

    # Stopping.

    def resize(self, reserve: int) -> None:
        self._reserve = reserve
        self._look()

    async def pause(self) -> None:
        self._paused = True
        await asyncio.sleep(0)  # a receive that was cancelled just now ends
        await self._engine.settled()  # what the statement under way still lends has come then
        given_back = self._give_back()
        if given_back is not None:
            await asyncio.shield(given_back)
        self._wake.set()  # a receive that is waiting goes on

    def _give_back(self) -> asyncio.Future[set[int]] | None:
        """Release what was lent and not received."""
        taken = [(Ended(delivery, Release()), self._lent.pop(delivery.tag)[1]) for delivery in self._ready]
        self._ready.clear()
        return self._settle(taken) if taken else None

    async def report(self, underway: Sequence[Underway]) -> Sequence[Delivery]:
        if self.closed:
            return ()
        report = _Report(underway, asyncio.get_running_loop().create_future())
        self._reports.append(report)
        self._engine.poke()
        await report.stored
        return [delivery for tag, (delivery, _) in self._lent.items() if tag in self._unwanted]

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = self._paused = self._lease.lost = True
        self._ready.extend(delivery for delivery, _ in self._lent.values() if delivery not in self._ready)
        self._reports = _said(self._reports)
        self._wake.set()
        if self._later is not None:
            self._later.cancel()
        given_back = self._give_back()
        with contextlib.suppress(TimeoutError):  # others find it, once the database is back
            async with asyncio.timeout(CLOSE_WITHIN):
                if given_back is not None:
                    await asyncio.shield(given_back)
                await self._engine.settled()
        self._engine.members.remove(self)


def _said(reports: Sequence[_Report]) -> list[_Report]:
    """They are stored, or there is nothing to say any more."""
    for report in reports:
        if not report.stored.done():
            report.stored.set_result(None)
    return []
