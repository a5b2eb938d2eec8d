"""The two ways to hear of ends: a store is asked, or replies are read."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence

from taskqueue.broker import Producer
from taskqueue.client.ends import End, Ends, Waiting, settle_all
from taskqueue.depending import error_of
from taskqueue.errors import BrokerUnavailable, UnknownTask, Unsupported
from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.record import Record
from taskqueue.store import Bell, Store
from taskqueue.workitem import Workitem

__all__ = ["ReplyEnds", "StoreEnds"]

LOOK_AT = 500  # tasks that are asked for at a time
ALONG = 100  # that are asked for together with one that is: who waits for one waits for the next one soon
LOOK_EVERY = 1.0  # seconds between looks at all of them, or longer where they are so many
SHARE = 0.02  # of the time, for such looks
REPLY_EVERY = 0.25  # seconds after which the thread sees that it is not needed any more


def end_of(record: Record) -> End:
    """The end that a record tells of."""
    error, traceback = error_of(record.state, record.attempts[-1] if record.attempts else None)
    return End(record.type, record.state, record.result, error, traceback, record.task)


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
        while ids:
            further = []
            for at in range(0, len(ids), LOOK_AT):
                found = self._store().ended(ids[at : at + LOOK_AT])
                further += self.tell(
                    {id: UnknownTask(id) if record is None else end_of(record) for id, record in found.items()}
                )
                ended += len(found)
            ids = further
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

    def sent(self, waiting: Iterable[Waiting]) -> None:
        super().sent(waiting)
        while self._thread is None and self._hear(timeout=0):  # else they would pile up as long as nobody waits
            pass

    def want(self, waiting: Sequence[Waiting]) -> None:
        with self._lock:
            ours = [each for each in waiting if each in self._waiting(each.id)]
        settle_all([(each, _unheard(each.id)) for each in waiting if each not in ours])
        if ours:
            super().want(ours)
            with self._lock:
                for each in ours:
                    if each.has_ended:  # meanwhile: nothing comes any more
                        self._forget(each.id, [each])

    def look(self, waiting: Waiting) -> None:
        self.want([waiting])

    def ask(self, ids: Sequence[str]) -> int:
        return 0  # the thread is at it

    def listen(self) -> None:
        self._hear(timeout=REPLY_EVERY)

    def _hear(self, timeout: float) -> bool:
        """Tell of replies, for the first of which there are `timeout` seconds; whether there was one."""
        reply, found = self._producer.next_reply(timeout=timeout), {}
        while reply is not None:
            found[reply.correlation_id] = _end_in(reply)
            reply = self._producer.next_reply(timeout=0) if len(found) < LOOK_AT else None
        self.tell(found)
        return bool(found)

    def abandoned(self) -> list[Waiting | None]:
        return [*self._known.values()]

    def _drop(self, waiting: Waiting) -> None:
        """It is found again by its id, which is its own, as long as somebody has it."""

    def closed_error(self, id: str) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"the queue was closed while task {id} was waited for, and its reply is lost: postgresql://, or sqlite:/// "
            "on one host, keep records"
        )

    def refused(self, id: str, next_id: str, passed: set[str]) -> Exception | None:
        return Unsupported(
            f"the value of task {id} is that of {next_id}, whose reply goes to whoever submitted that: values like "
            "that need a broker that keeps records: postgresql://, or sqlite:/// on one host"
        )


def _unheard(id: str) -> Unsupported:
    return Unsupported(
        f"task {id} was submitted before the queue was closed, or by another process, which its reply goes to: "
        "postgresql://, or sqlite:/// on one host, keep records"
    )


def _end_in(reply: Workitem) -> End:
    headers = reply.headers
    if headers.get("status") == "succeeded":
        return End(reply.type, State.SUCCEEDED, Payload(reply.body, reply.content_type))
    error, traceback = str(headers.get("error", "")), str(headers.get("traceback", ""))
    return End(reply.type, State.FAILED, None, error, traceback)
