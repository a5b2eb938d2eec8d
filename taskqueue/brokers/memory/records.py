"""The records of all workitems, and the store that shows them."""

from __future__ import annotations

import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from taskqueue.broker import Ended, Underway
from taskqueue.clock import Clock
from taskqueue.depending import result_ends
from taskqueue.errors import UnknownTask
from taskqueue.lifecycle import ENDED, State, at_first
from taskqueue.outcome import Dead, Rules
from taskqueue.record import Record, born, is_recorded, lost, promises_of, settled, started, unmet
from taskqueue.statistics import Finish, Tally, hour_of, tallied, times
from taskqueue.store import sender
from taskqueue.upkeep import HOUR, Keeping, Round, dispensable
from taskqueue.workitem import Workitem

__all__ = ["MemoryBell", "MemoryStore", "Records", "Waiting"]

MOST_ENDED = 100_000  # records of what has ended that are kept


class Records:
    """One for each id: that of its latest life.  Everything is called with `lock` held.

    wanted: whether somebody in this program may still ask for it.
    on_end, on_drop: called with each record of what has ended, and with the id of each that is dropped.
    ends: how many have ended so far.
    unwanted: ids of what is lent, and somebody wants no more.
    """

    def __init__(self, lock: threading.Lock, clock: Clock, wanted: Callable[[str], bool]) -> None:
        self.lock = lock
        self._wanted = wanted
        self.has_ended = threading.Condition(lock)
        self._clock = clock
        self._sender = sender()
        self._records: dict[str, Record] = {}  # the latest that was sent comes last
        self._ended: deque[str] = deque()
        self._until: dict[str, float] = {}  # when results end, POSIX seconds
        self._promises: dict[str, tuple[str, ...]] = {}  # by the ids of those whose results are kept
        self._needed: Counter[str] = Counter()
        self.ends = 0
        self.unwanted: set[str] = set()
        self.on_end: Callable[[Record], None]
        self.on_drop: Callable[[str], None]

    def born(self, queue: str, workitem: Workitem) -> None:
        """It is sent to `queue`."""
        if is_recorded(queue):
            self._records.pop(workitem.id, None)
            self._until.pop(workitem.id, None)
            if workitem.id not in self._needed:  # else somebody waits who needs what its earlier life has promised
                self._unpromise(workitem.id)
            self.unwanted.discard(workitem.id)
            self._records[workitem.id] = born(workitem, sender=self._sender, now=self._clock.wall())

    def blocked(self, id: str) -> None:
        """It waits for others."""
        self._records[id] = replace(self._records[id], state=State.BLOCKED)

    def unblocked(self, workitem: Workitem) -> None:
        """It waits for nothing more."""
        state = State.RETRYING if workitem.attempt > 1 else at_first(workitem, self._clock.wall())
        self._change(workitem, lambda record: replace(record, state=state))

    def unmet(self, workitem: Workitem, why: str) -> None:
        """It has ended because of what it depends on."""
        self._change(workitem, lambda record: unmet(record, workitem, why, now=self._clock.wall()))

    def started(self, underway: Underway) -> None:
        """A worker process runs it."""
        workitem = underway.delivery.workitem
        self._change(workitem, lambda record: started(record, underway.run, underway.progress))

    def settled(self, ended: Ended) -> None:
        """A delivery of it has ended."""
        delivery = ended.delivery
        if is_recorded(delivery.queue) and delivery.workitem.id in self._records:
            until = result_ends(delivery.workitem, self._clock.wall())
            if until is not None:
                self._until[delivery.workitem.id] = until
            self._change(
                delivery.workitem,
                lambda record: settled(
                    record, delivery.workitem, ended.outcome, ended.rules,
                    now=self._clock.wall(), run=ended.run, log=ended.log,
                ),
            )  # fmt: skip
            if promises := promises_of(delivery.workitem, ended.outcome, ended.rules):
                self._promise(delivery.workitem.id, promises)

    def expired(self, workitem: Workitem) -> None:
        """Its time was over before anybody had it."""
        now = self._clock.wall()
        self._change(workitem, lambda record: settled(record, workitem, Dead("expired"), Rules(), now=now))

    def released(self, workitem: Workitem) -> None:
        """Whoever had it has it no more."""
        self._change(workitem, lambda record: lost(record, workitem, now=self._clock.wall()))

    def cancelled(self, id: str) -> None:
        """It was taken out of its queue, and somebody wants it no more."""
        self._end(replace(self._records[id], state=State.CANCELLED, ended=self._clock.wall()))

    def _change(self, workitem: Workitem, change: Callable[[Record], Record]) -> None:
        record = self._records.get(workitem.id)
        if record is not None:
            self._end(change(record))

    def _end(self, record: Record) -> None:
        self._records[record.id] = record
        if record.state not in ENDED:
            return
        self.ends += 1
        self.unwanted.discard(record.id)
        self.has_ended.notify_all()
        self._ended.append(record.id)
        for _ in range(min(2, len(self._ended) - MOST_ENDED)):
            oldest = self._records.get(self._ended.popleft())
            if oldest is not None and oldest.state in ENDED:
                if oldest.id in self._needed or self._wanted(oldest.id):
                    self._ended.append(oldest.id)
                else:
                    self._drop(oldest.id)
        self.on_end(record)

    def need(self, ids: Iterable[str]) -> None:
        """Something needs the results of these: they are kept until `unneed` is called as often."""
        for id in ids:
            self._needed[id] += 1

    def unneed(self, ids: Iterable[str]) -> None:
        """Something needs them no more."""
        for id in ids:
            self._needed[id] -= 1
            if not self._needed[id]:
                del self._needed[id]

    def _promise(self, id: str, ids: Sequence[str]) -> None:
        """Its result needs those of `ids`; but those that need its own would keep each other for ever."""
        ids = [each for each in ids if not self._leads(each, id)]
        self._promises[id] = (*self._promises.get(id, ()), *ids)
        self.need(ids)

    def _unpromise(self, id: str) -> None:
        self.unneed(self._promises.pop(id, ()))

    def _leads(self, begin: str, end: str) -> bool:
        """Whether what `begin` promises is `end`, at any number of levels."""
        seen, todo = {begin}, [begin]
        while todo:
            more = set(self._promises.get(todo.pop(), ())) - seen
            seen |= more
            todo += more
        return end in seen

    def _drop(self, id: str) -> None:
        del self._records[id]
        self._until.pop(id, None)
        self._unpromise(id)
        self.on_drop(id)

    def all_ended(self) -> list[Record]:
        """Those that are over, the first that was sent first."""
        return [record for record in self._records.values() if record.state in ENDED]

    def drop(self, keeping: Keeping) -> int:
        """Forget what need not be kept, with all that is known of it; how many there were."""
        now = self._clock.wall()
        ended = [(hour_of(record.ended or now), record.type, record.id) for record in self.all_ended()]
        count = Counter((hour, type) for hour, type, _ in ended)
        past = [(hour, type, n) for (hour, type), n in count.items() if hour + HOUR <= now]
        over = dispensable(past, keeping, now)
        gone = [id for hour, type, id in ended if (hour, type) in over and id not in self._needed]
        for id in gone:
            self._drop(id)
        return len(gone)

    def drop_results(self) -> int:
        """Forget those whose time is over, and that nothing needs; how many there were."""
        now = self._clock.wall()
        count = 0
        while over := [
            id
            for id, until in self._until.items()
            if until <= now and id not in self._needed and self._records[id].state in ENDED
        ]:
            for id in over:  # nothing may need those any more, then, that these have promised
                del self._until[id]
                self._unpromise(id)
                self._records[id] = replace(self._records[id], result=None)
            count += len(over)
        return count

    def get(self, id: str) -> Record:
        """As it is now.  Raises UnknownTask."""
        record = self.find(id)
        if record is None:
            raise UnknownTask(id)
        return record

    def find(self, id: str) -> Record | None:
        """As it is now; None: nothing is known of it."""
        record = self._records.get(id)
        if record is None:
            return None
        now = self._clock.wall()
        if record.result is not None and self._until.get(id, now + 1) <= now and id not in self._needed:
            return replace(record, result=None)
        is_due = record.due is not None and record.due <= now
        return replace(record, state=State.WAITING) if record.state == State.SCHEDULED and is_due else record

    def ids(self) -> list[str]:
        """All, the latest that was sent first."""
        return list(reversed(self._records))


class Waiting(Protocol):
    """Where what is neither ended nor lent can be had; an item is a tuple with the workitem at its end."""

    def withdraw(self, id: str) -> bool: ...
    def pending(self, type: str) -> Sequence[tuple[int, int, float, Workitem]]: ...
    def discard(self, type: str) -> Sequence[tuple[int, int, float, Workitem]]: ...


class MemoryBell:
    """The contract."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._heard = records.ends
        self._closed = False

    def wait(self, timeout: float | None) -> bool:
        records = self._records
        with records.lock:
            records.has_ended.wait_for(lambda: self._closed or records.ends > self._heard, timeout)
            before, self._heard = self._heard, records.ends
            return not self._closed and before < records.ends

    def close(self) -> None:
        with self._records.lock:
            self._closed = True
            self._records.has_ended.notify_all()


class MemoryStore:
    """The contract."""

    def __init__(self, records: Records, waiting: Waiting) -> None:
        self._records = records
        self._waiting = waiting

    def record(self, id: str) -> Record:
        with self._records.lock:
            return self._records.get(id)

    def history(
        self, *, reference: str = "", type: str = "", states: Sequence[State] = (), limit: int = 100
    ) -> list[Record]:
        with self._records.lock:
            found = (
                record
                for record in map(self._records.get, self._records.ids())
                if reference in ("", record.reference) and type in ("", record.type)
                if not states or record.state in states
            )
            return list(itertools.islice(found, limit))

    def wait(self, id: str, *, timeout: float | None) -> Record:
        with self._records.lock:
            self._records.has_ended.wait_for(lambda: self._records.get(id).state in ENDED, timeout)
            return self._records.get(id)

    def cancel(self, id: str) -> bool:
        with self._records.lock:
            if self._records.get(id).state in ENDED:
                return False
            if self._waiting.withdraw(id):
                self._records.cancelled(id)
            else:
                self._records.unwanted.add(id)
            return True

    def ended(self, ids: Sequence[str]) -> dict[str, Record | None]:
        with self._records.lock:
            found = {id: self._records.find(id) for id in ids}
        return {id: record for id, record in found.items() if record is None or record.state in ENDED}

    def bell(self) -> MemoryBell:
        with self._records.lock:
            return MemoryBell(self._records)

    def count(self, type: str) -> int:
        with self._records.lock:
            return len(self._waiting.pending(type))

    def discard(self, type: str) -> int:
        with self._records.lock:
            gone = self._waiting.discard(type)
            for *_, workitem in gone:
                self._records.cancelled(workitem.id)
            return len(gone)

    def statistics(self, *, type: str = "", since: float = 0.0) -> list[Tally]:
        with self._records.lock:
            ended = [record for record in self._records.all_ended() if type in ("", record.type)]
        finishes = (Finish(r.ended, r.type, r.state, *times(r.sent, r.attempts)) for r in ended if r.ended is not None)
        return [tally for tally in tallied(finishes) if tally.hour >= hour_of(since)]

    def maintain(self, keeping: Keeping) -> Round:
        with self._records.lock:
            return Round(results=self._records.drop_results(), records=self._records.drop(keeping))

    def close(self) -> None:
        pass
