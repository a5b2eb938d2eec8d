"""Hears of the ends of tasks, of any number of them, in one thread; it is there only while somebody waits."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from taskqueue.broker import Producer
from taskqueue.depending import error_of
from taskqueue.errors import BrokerError, BrokerUnavailable, TaskQueueError, UnknownTask
from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.record import Record
from taskqueue.retry import backoff
from taskqueue.store import Bell, Store
from taskqueue.workitem import Workitem

__all__ = ["End", "Ends", "ReplyEnds", "StoreEnds", "Waiting", "end_of"]

log = logging.getLogger(__name__)

LOOK_AT = 500  # tasks that are asked for at a time
ALONG = 100  # that are asked for together with one that is: who waits for one waits for the next one soon
LOOK_EVERY = 1.0  # seconds between looks at all of them, or longer where they are so many
SHARE = 0.02  # of the time, for such looks
REPLY_EVERY = 0.25  # seconds after which the thread sees that it is not needed any more
LINGER = 5.0  # seconds that the thread stays when nobody waits any more


class End(NamedTuple):
    """How a task ended.  payload: None where no result is kept."""

    type: str
    state: State
    payload: Payload | None
    error: str = ""
    traceback: str = ""


class Waiting(Protocol):
    """Who is told of an end: a Deferred."""

    id: str

    def settle(self, end: End | TaskQueueError) -> None:
        """It has ended so, or nobody will ever know."""


def end_of(record: Record) -> End:
    """The end that a record tells of."""
    error, traceback = error_of(record.state, record.attempts[-1] if record.attempts else None)
    return End(record.type, record.state, record.result, error, traceback)


class Ends:
    """What both ways to hear of ends share: who waits, and the thread."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._known: weakref.WeakValueDictionary[str, Waiting] = weakref.WeakValueDictionary()
        self._wanted: dict[str, Waiting] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def known(self, id: str) -> Waiting | None:
        """Who is told of the end of `id`, if somebody is."""
        with self._lock:
            return self._known.get(id)

    def sent(self, waiting: Iterable[Waiting]) -> None:
        """These are under way, and told as long as somebody has them; the thread does not run for that alone."""
        with self._lock:
            for each in waiting:
                self._known[each.id] = each

    def want(self, waiting: Sequence[Waiting]) -> None:
        """Tell these as soon as they end; now, where they have."""
        with self._lock:
            for each in waiting:
                if each.id not in self._known:
                    self._known[each.id] = each
                self._wanted[each.id] = each
            self._lock.notify_all()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="taskqueue-ends", daemon=True)
                self._thread.start()
        self.ask([each.id for each in waiting])

    def look(self, waiting: Waiting) -> None:
        """Tell this one if it has ended; don't wait."""
        self.sent([waiting])
        self.ask([waiting.id])

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
            self._wanted.clear()
            self._lock.notify_all()
            thread = self._thread
        self.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        failures = 0
        while self._is_needed():
            try:
                self.listen()
                failures = 0
            except BrokerUnavailable as error:
                log.log(logging.DEBUG if failures else logging.WARNING, "%s; waiting on", error)
                with self._lock:
                    if not self._closed:
                        self._lock.wait(backoff(failures, base=0.1, maximum=15.0, jitter=random.random()))
                failures += 1
            except BrokerError as error:
                with self._lock:
                    ids = list(self._wanted)
                self.tell(dict.fromkeys(ids, error))

    def _is_needed(self) -> bool:
        with self._lock:
            if not self._wanted and not self._closed:
                self._lock.wait(LINGER)
            if self._wanted and not self._closed:
                return True
            self._thread = None
        self.stop()
        return False

    def tell(self, found: Mapping[str, End | TaskQueueError]) -> None:
        """Tell whoever waits for these, and forget them."""
        told = []
        with self._lock:
            for id, end in found.items():
                self._wanted.pop(id, None)
                waiting = self._known.pop(id, None)
                if waiting is not None:
                    told.append((waiting, end))
        for waiting, end in told:
            waiting.settle(end)


class StoreEnds(Ends):
    """Asks the store when its bell rings: it knows every end, however it came."""

    def __init__(self, store: Callable[[], Store]) -> None:
        super().__init__()
        self._store = store
        self._bell: Bell | None = None
        self._all_at = 0.0  # when to look at all of them next

    def ask(self, ids: Sequence[str]) -> int:
        with self._lock:
            along = [id for id in itertools.islice(self._known.keys(), ALONG) if id not in ids] if len(ids) == 1 else []
        return self._ask([*ids, *along])

    def _ask(self, ids: Sequence[str]) -> int:
        ended = 0
        for at in range(0, len(ids), LOOK_AT):
            found = self._store().ended(ids[at : at + LOOK_AT])
            self.tell({id: UnknownTask(id) if record is None else end_of(record) for id, record in found.items()})
            ended += len(found)
        return ended

    def listen(self) -> None:
        begun = time.monotonic()
        with self._lock:
            if self._closed:
                return
            if self._bell is None:
                self._bell = self._store().bell()
            bell = self._bell
            most = None if begun >= self._all_at else LOOK_AT
            ids = list(itertools.islice(self._wanted, most))
        found = self._ask(ids)
        took = time.monotonic() - begun
        if most is None:
            self._all_at = begun + max(LOOK_EVERY, took / SHARE)
        if not found:
            # Where others' ends ring all the time, half of the time is theirs.
            time.sleep(took)
            bell.wait(LOOK_EVERY)

    def stop(self) -> None:
        with self._lock:
            bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()


class ReplyEnds(Ends):
    """Reads this client's own reply queue: all that a broker without a store offers."""

    def __init__(self, producer: Producer) -> None:
        super().__init__()
        self._producer = producer

    def look(self, waiting: Waiting) -> None:
        self.want([waiting])

    def ask(self, ids: Sequence[str]) -> int:
        return 0  # the thread is at it

    def listen(self) -> None:
        reply, found = self._producer.next_reply(timeout=REPLY_EVERY), {}
        while reply is not None:
            found[reply.correlation_id] = _end_in(reply)
            reply = self._producer.next_reply(timeout=0) if len(found) < LOOK_AT else None
        self.tell(found)


def _end_in(reply: Workitem) -> End:
    headers = reply.headers
    if headers.get("status") == "succeeded":
        return End(reply.type, State.SUCCEEDED, Payload(reply.body, reply.content_type))
    error, traceback = str(headers.get("error", "")), str(headers.get("traceback", ""))
    return End(reply.type, State.FAILED, None, error, traceback)
