"""Which workitems wait for which others."""

from __future__ import annotations

import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from taskqueue.brokers.memory.records import Records
from taskqueue.depending import Input, cause, input_of, passes
from taskqueue.lifecycle import ENDED, State
from taskqueue.outcome import Send, unmet
from taskqueue.record import Record, is_recorded
from taskqueue.workitem import Workitem

__all__ = ["Dependencies", "Item", "Waiter"]

Item = tuple[int, int, float, Workitem]
"""Place by priority, place by order, POSIX seconds at which it expires, and what it is."""
Ends = dict[str, Record | None]
"""What a workitem depends on, by id, as it ended; None where nothing is known of it any more."""


@dataclass(eq=False, slots=True)
class Waiter:
    """What waits for others; `open` are the ids of those that have not ended."""

    queue: str
    item: Item
    open: set[str]


class Dependencies:
    """Everything is called with the broker's lock held.

    release: puts what waits for nothing more into its queue.  send: stores what the end of what never ran implies.
    """

    def __init__(self, records: Records, release: Callable[[str, Item], None], send: Callable[[Send], None]) -> None:
        self._records = records
        self._release = release
        self._send = send
        self._blocked: dict[Waiter, None] = {}
        self._waiters: dict[str, list[Waiter]] = {}  # by the ids that they wait for
        self._ends: dict[str, Ends] = {}  # by id; also of dead letters, for they may be requeued
        self._expiring: list[tuple[float, int, Waiter]] = []
        self._to_count: deque[Record] = deque()
        self._counting = False
        records.on_end = self.count
        records.on_drop = self.forget

    def begins(self, queue: str, item: Item, *, again: bool = True) -> bool:
        """A life begins: False where it has to wait, or is over at once, because of what it depends on.

        again: of what is known to have ended, later lives are meant; else it goes on, and only what it had not waited
        for is looked at.
        """
        workitem = item[3]
        if not workitem.after or not is_recorded(queue):
            return True
        before = self._ends.get(workitem.id, {})
        found = {
            id: _latest(before.get(id), self._records.find(id)) if again or id not in before else before[id]
            for id in workitem.after
        }
        open = {id for id, record in found.items() if record is not None and record.state not in ENDED}
        self.forget(workitem.id)
        self._ends[workitem.id] = {id: record for id, record in found.items() if id not in open}
        self._records.need(self._ends[workitem.id])
        failing = next(filter(None, (_cause(id, record) for id, record in found.items() if id not in open)), "")
        waiter = Waiter(queue, item, open)
        if failing and not passes(workitem):
            self._records.blocked(workitem.id)
            self._fail(waiter, failing)
            return False
        if not open:
            return True
        self._records.blocked(workitem.id)
        self._blocked[waiter] = None
        for id in open:
            self._waiters.setdefault(id, []).append(waiter)
        if item[2] < float("inf"):
            heapq.heappush(self._expiring, (item[2], item[1], waiter))
        return False

    def count(self, record: Record) -> None:
        """It has ended."""
        self._to_count.append(record)
        if not self._counting:
            with self.together():
                pass

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What ends meanwhile is counted at the end, and what ends because of that after all of it, and so on."""
        self._counting = True
        try:
            yield
            while self._to_count:
                self._count(self._to_count.popleft())
        finally:
            self._counting = False

    def _count(self, record: Record) -> None:
        if record.state in (State.SUCCEEDED, State.CANCELLED):  # what ended otherwise may be a dead letter
            self.forget(record.id)
        why = _cause(record.id, record)
        for waiter in self._waiters.pop(record.id, ()):
            if waiter not in self._blocked:
                continue
            workitem = waiter.item[3]
            waiter.open.discard(record.id)
            ends = self._ends.setdefault(workitem.id, {})  # another one with its id may have ended before
            if record.id not in ends:
                self._records.need([record.id])
            ends[record.id] = record
            if why and not passes(workitem):
                self._fail(waiter, why)
            elif not waiter.open:
                self.withdraw(waiter)
                self._records.unblocked(workitem)
                self._release(waiter.queue, waiter.item)

    def _fail(self, waiter: Waiter, why: str) -> None:
        self.withdraw(waiter)
        for send in unmet(waiter.item[3], why).sends:
            self._send(send)
        self._records.unmet(waiter.item[3], why)
        self.forget(waiter.item[3].id)  # it leaves no dead letter

    def inputs(self, workitem: Workitem) -> tuple[Input, ...]:
        """How those have ended that it depends on."""
        ends: Mapping[str, Record | None] = self._ends.get(workitem.id, {})
        return tuple(_input(id, ends.get(id)) for id in workitem.after)

    def waiting(self, queue: str) -> list[Waiter]:
        """What waits for others, and then in `queue`; the first that was sent first."""
        return [waiter for waiter in self._blocked if waiter.queue == queue]

    def find(self, id: str) -> Waiter | None:
        """What waits for others and has this id."""
        return next((waiter for waiter in self._blocked if waiter.item[3].id == id), None)

    def withdraw(self, waiter: Waiter) -> None:
        """It does not wait any more."""
        self._blocked.pop(waiter, None)

    def expired(self, now: float) -> list[Waiter]:
        """Those whose time is over; they wait no more."""
        found = []
        while self._expiring and self._expiring[0][0] <= now:
            waiter = heapq.heappop(self._expiring)[2]
            if waiter in self._blocked:
                self.withdraw(waiter)
                found.append(waiter)
        return found

    def forget(self, id: str) -> None:
        """It will not be lent any more."""
        self._records.unneed(self._ends.pop(id, ()))


def _latest(before: Record | None, now: Record | None) -> Record | None:
    """What a dead letter was kept with, as long as that is the latest life."""
    if before is not None and (now is None or now.ended == before.ended):
        return before
    return now


def _cause(id: str, record: Record | None) -> str:
    if record is None:
        return cause(id, "", State.SUCCEEDED, None, has_result=False)
    last = record.attempts[-1] if record.attempts else None
    return cause(id, record.task or record.type, record.state, last, has_result=record.result is not None)


def _input(id: str, record: Record | None) -> Input:
    return Input(id, "", State.SUCCEEDED, None) if record is None else input_of(record)
