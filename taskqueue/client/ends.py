"""Hears of the ends of tasks, of any number of them, in one thread; it is there only while somebody waits."""

from __future__ import annotations

import contextlib
import logging
import queue as queues
import random
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from taskqueue.errors import BrokerError, BrokerUnavailable, FormatError
from taskqueue.formats import values
from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.retry import backoff

__all__ = ["End", "Ends", "Waiting", "settle_all"]

log = logging.getLogger(__name__)

LINGER = 5.0  # seconds that the thread stays when nobody waits any more


class End(NamedTuple):
    """How a task ended.  payload: None where no result is kept.  task: its name; empty where that is not known."""

    type: str
    state: State
    payload: Payload | None
    error: str = ""
    traceback: str = ""
    task: str = ""


class Waiting(Protocol):
    """Who is told of an end: a Deferred.

    awaited: the id of the task whose end it waits for: its own, or another one's whose value is to be its own.
    """

    id: str
    awaited: str

    @property
    def has_ended(self) -> bool:
        """Whether it was told."""

    def follow(self, id: str, task: str) -> None:
        """The value of what it waits for, whose name is `task`, is that of the task `id`: it waits for that one now."""

    def settle(self, end: End | Exception) -> None:
        """It has ended so, or nobody will ever know.  Told twice, the first time holds; raises nothing of its own."""


class Ends:
    """What both ways to hear of ends share: who waits, and the thread.

    Neither threading.Condition nor Event is in it: Ctrl-C inside of them leaves their lock locked for the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: weakref.WeakValueDictionary[str, Waiting] = weakref.WeakValueDictionary()
        self._wanted: dict[str, Waiting | None] = {}  # None: for followers alone
        # By the id that they wait for, which is not their own, or that of others, too; with the ids on the way there.
        self._followers: dict[str, dict[Waiting, set[str]]] = {}
        self._thread: threading.Thread | None = None
        self._wake: queues.SimpleQueue[None] = queues.SimpleQueue()
        self._lingers = False
        self._closed = False

    def known(self, id: str, make: Callable[[], Waiting] | None = None) -> Waiting | None:
        """Who is told of the end of `id`; if nobody is, what `make` makes is from now on."""
        with self._lock:
            found = self._known.get(id)
            if found is None and make is not None:
                found = self._known[id] = make()
            return found

    def has(self, id: str) -> bool:
        """Whether somebody may have a Deferred of `id`.  Waits for nothing: a store asks that holds its own lock."""
        if not self._lock.acquire(blocking=False):
            return True
        try:
            return id in self._known or id in self._followers
        finally:
            self._lock.release()

    def sent(self, waiting: Iterable[Waiting]) -> None:
        """These are under way, and told as long as somebody has them; the thread does not run for that alone."""
        with self._lock:
            for each in waiting:
                self._register(each)

    def want(self, waiting: Sequence[Waiting]) -> None:
        """Tell these as soon as they end; now, where they have."""
        with self._lock:
            closed = self._closed
            if not closed:
                for each in waiting:
                    known = self._register(each)
                    if each.awaited == each.id:
                        self._wanted[each.id] = known
                    else:
                        self._wanted.setdefault(each.awaited, None)
                if self._lingers:
                    self._lingers = False
                    self._wake.put(None)
                if self._thread is None:
                    threading.Thread(target=self._run, name="taskqueue-ends", daemon=True).start()
        if closed:
            settle_all([(each, self.closed_error(each.id)) for each in waiting])
        else:
            self.ask([each.awaited for each in waiting])

    def _register(self, waiting: Waiting) -> Waiting:
        """Who is told of its end: itself, or another one with the same id, which it follows."""
        if waiting.awaited != waiting.id:  # as before a fork
            self._followers.setdefault(waiting.awaited, {}).setdefault(waiting, {waiting.id, waiting.awaited})
            return waiting
        known = self._known.setdefault(waiting.id, waiting)
        if known is not waiting:
            self._followers.setdefault(waiting.id, {})[waiting] = {waiting.id}
        return known

    def look(self, waiting: Waiting) -> None:
        """Tell this one if it has ended; don't wait."""
        self.sent([waiting])
        self.ask([waiting.awaited])

    def ask(self, ids: Sequence[str]) -> int:
        """Tell those of these that have ended, and don't wait; how many there were."""
        raise NotImplementedError

    def listen(self) -> None:
        """In the thread: wait a while for ends, and tell."""
        raise NotImplementedError

    def stop(self) -> None:
        """Whoever listens is to end that; from any thread."""

    def close(self) -> None:
        """Wait for nothing any more; the thread has ended then.  May be called twice."""
        with self._lock:
            self._closed = True
            self._wake.put(None)
            thread = self._thread
        self.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def abandon(self) -> None:
        """Tell those who still wait that nobody listens any more."""
        with self._lock:
            waiting = {each: None for each in self.abandoned() if each is not None}
            waiting |= {each: None for following in self._followers.values() for each in following}
            self._wanted.clear()
            self._followers.clear()
        settle_all([(each, self.closed_error(each.id)) for each in waiting])

    def abandoned(self) -> list[Waiting | None]:
        """Who is told so."""
        return list(self._wanted.values())

    def _run(self) -> None:
        with self._lock:
            if self._thread is not None:  # it was wanted twice before it was there
                return
            self._thread = threading.current_thread()
        failures = 0
        while self._is_needed():
            try:
                self.listen()
                failures = 0
            except BrokerUnavailable as error:
                log.log(logging.DEBUG if failures else logging.WARNING, "%s; waiting on", error)
                self._pause(backoff(failures, base=0.1, maximum=15.0, jitter=random.random()))
                failures += 1
            except Exception as error:
                if not isinstance(error, BrokerError):
                    log.exception("waiting for tasks")
                with self._lock:
                    ids = list(self._wanted)
                self.tell(dict.fromkeys(ids, error))

    def _pause(self, seconds: float) -> None:
        """Wait, but not after `close`."""
        if not self._closed:
            with contextlib.suppress(queues.Empty):
                self._wake.get(timeout=seconds)

    def _is_needed(self) -> bool:
        with self._lock:
            self._lingers = not self._wanted
        if self._lingers:
            self._pause(LINGER)
        with self._lock:
            self._lingers = False
            if self._wanted and not self._closed:
                return True
        self.stop()
        with self._lock:  # it may be wanted again just now
            if self._wanted and not self._closed:
                return True
            self._thread = None
        return False

    def tell(self, found: Mapping[str, End | Exception]) -> list[str]:
        """Tell whoever waits for these, and forget them.

        Where the value of one is that of another task, those who wait for it wait on, for that one; the ids of such.
        """
        told: list[tuple[Waiting, End | Exception]] = []
        onward: list[tuple[str, str, Waiting, set[str]]] = []
        with self._lock:
            waiting = {id: self._waiting(id) for id in found}
        for id, end in found.items():
            task = end.task if isinstance(end, End) else ""
            next_id = values.promised(end.payload) if isinstance(end, End) and end.payload is not None else ""
            for each, passed in waiting[id].items():
                if not next_id:
                    told.append((each, end))
                elif error := self.refused(id, next_id, passed):
                    told.append((each, error))
                else:
                    onward.append((next_id, task, each, {*passed, next_id}))
        with self._lock:
            for next_id, task, each, passed in onward:
                each.follow(next_id, task)
                self._wanted.setdefault(next_id, None)
                self._followers.setdefault(next_id, {})[each] = passed
        settle_all(told[::-1])
        # Only now: Ctrl-C, which may come at any of these steps, leaves nobody whom the thread does not tell.
        with self._lock:
            for id, some in waiting.items():
                self._forget(id, some)
        return list(dict.fromkeys(next_id for next_id, *_ in onward))

    def _waiting(self, id: str) -> dict[Waiting, set[str]]:
        """Who waits for it, with the ids on the way."""
        found = dict(self._followers.get(id, {}))
        for each in (self._known.get(id), self._wanted.get(id)):
            if each is not None:
                found.setdefault(each, {id})
        return found

    def _forget(self, id: str, waiting: Collection[Waiting]) -> None:
        """They don't wait for it any more; others, who came meanwhile, may."""
        following = self._followers.get(id, {})
        for each in waiting:
            following.pop(each, None)
        if not following:
            self._followers.pop(id, None)
        known = self._known.get(id)
        if known is not None and known in waiting:
            self._drop(known)
        if not following and (self._wanted.get(id) is None or self._wanted[id] in waiting):
            self._wanted.pop(id, None)

    def _drop(self, waiting: Waiting) -> None:
        """It waits no more, or for another task: what has its id from now on may be another life."""
        del self._known[waiting.id]

    def closed_error(self, id: str) -> BrokerUnavailable:
        """What those are told who wait when the queue is closed."""
        return BrokerUnavailable(
            f"the queue was closed while task {id} was waited for; queue.deferred(id) finds it again"
        )

    def refused(self, id: str, next_id: str, passed: set[str]) -> Exception | None:
        """Why those who waited for `id`, whose value is that of `next_id`, can't wait for that one."""
        if next_id in passed:
            return FormatError(f"the value of task {id} is that of {next_id}, whose own depends on it")
        return None


def settle_all(told: list[tuple[Waiting, End | Exception]]) -> None:
    """Tell all of them, the last one first, also where Ctrl-C comes in between."""
    try:
        while told:
            waiting, end = told[-1]
            waiting.settle(end)
            del told[-1]
    finally:
        if told:
            settle_all(told)
