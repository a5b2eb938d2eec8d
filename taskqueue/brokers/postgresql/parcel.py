"""What became of workitems, and what is sent for that, as it is written for the database's functions.  Pure.

Any number of them is one JSON text, or a few columns, and one string of bytes with all bodies behind each other: the
server takes that apart much faster than a driver could put it together value by value.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from functools import lru_cache
from typing import Any, cast

from taskqueue.broker import Ended
from taskqueue.brokers.postgresql.history import Past, past
from taskqueue.brokers.postgresql.rows import (
    BETWEEN,
    ENDED,
    MAX_INDEXED,
    MAX_NAME,
    MAX_SECONDS,
    REPLIES,
    Row,
    clean,
    delay,
    is_exact,
    lifetime,
    priority,
    stored_id,
    usable,
)
from taskqueue.depending import passes, result_ends
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, effects, ignores_result
from taskqueue.properties import to_text
from taskqueue.record import Progress, Run, is_recorded, readers_of, results_queue
from taskqueue.story import brief, told
from taskqueue.workitem import DEAD_LETTERS, Workitem

__all__ = ["Parcel"]

MAX_INTEGER = (1 << 31) - 1
_KEPT = ("id", "type", "task", "reference", "content_type")

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Parcel:
    """What one statement settles, sends, and says of what runs.

    settled: the rows of all deliveries that are settled, by their numbers.
    asks: whether somebody wants to hear what is wanted no more.
    asked: what some that are sent depend on, unless that was sent before them in the same call; None: none does.
    """

    def __init__(self, now: float, *, in_columns: bool = False) -> None:
        """in_columns: what succeeded is asked for by `successes`; else it is among `ends`, too."""
        self.now = now
        self._in_columns = in_columns
        self._successes: list[tuple[str, ...]] = []
        self.ends: list[dict[str, object]] = []
        self.releases: list[dict[str, object]] = []
        self.sends: list[dict[str, Any]] = []
        self.reports: list[dict[str, object]] = []
        self.asks = False
        self.told: set[str] = set()
        self.settled: dict[int, Row] = {}
        self.asked: dict[str, None] | None = None
        self._lanes: dict[tuple[str, object], bool] = {}
        self._bodies: list[bytes] = []
        self._size = 0
        self._last: tuple[bytes | None, int] = (None, 0)

    def end(self, row: Row, ended: Ended) -> None:
        """The delivery of `row` has ended."""
        self.settled[row.seq] = row
        if not (self._in_columns and self._end_briefly(row, ended)):
            self._end(row, ended)

    def _end_briefly(self, row: Row, ended: Ended) -> bool:
        """What nearly always happens: the same as `_end`, in a third of the time, or nothing."""
        (delivery, outcome, rules, run, log, _), workitem = ended, row.workitem
        if (
            not isinstance(outcome, Done)
            or outcome.result is None
            or run is None
            or run.ended is None
            or run.cpu is None
            or row.story
            or row.number is not None
            or workitem.headers
            or workitem.reply_to
            or outcome.sends
            or outcome.promises
            or log
            or rules.history != "full"
        ):
            return False
        body, content_type = outcome.result
        common = _common(delivery.queue, rules.worker, content_type, rules.results_routing_key)
        if common is None or not is_exact(workitem.id) or not is_exact(workitem.reference):
            return False
        worker, content_type, results = common
        at, size = self._place(body)
        story = f"[{brief(workitem.attempt, 'succeeded', run)}]"
        self._successes.append((row.place, str(row.seq), worker, content_type, story, results, "", str(at), str(size)))
        self.told.add(ENDED)
        if results:
            self.told.add(results)
        return True

    def _end(self, row: Row, ended: Ended) -> None:
        queue = ended.delivery.queue
        before = past(ended, row.workitem, row.story, self.now)
        results = _results(row, ended) if before is not None else ""
        todo = effects(row.workitem, ended.outcome, ended.rules, queue=queue, now=self.now, recorded=bool(results))
        end: dict[str, object] = {"seq": row.seq, "place": row.place}
        if not todo.ends:
            if before is not None and ended.run is not None:  # else the database has it, and whether it was lost
                end["story"] = before.story
            self.releases.append(end)
            self.told.add(queue)
            return
        if before is None or not self._succeeded(row, before, ended, results):
            if before is not None and before.state is not None:
                end |= self._kept(before, ended, results)
            self.ends.append(end)
        goes_on = False
        for send in todo.sends:
            item = self.send(send.queue, send.workitem, optional=not send.required and send.queue.startswith(REPLIES))
            item["parent"] = row.seq
            if before is not None and send.goes_on:
                item |= {"sent": row.sent, "sender": row.sender, "story": before.story}
            if row.number is not None and send.workitem.after:
                goes_on = True
                item["inputs"] = row.number
                if send.more:
                    item |= {"after": [], "failing": _failing(send.workitem), "more": list(map(stored_id, send.more))}
                if queue == DEAD_LETTERS and is_recorded(send.queue):  # a new life
                    item |= {"after": [], "failing": _failing(send.workitem)}
        if row.number is not None and not goes_on:
            end["unbinds"] = True

    def _succeeded(self, row: Row, before: Past, ended: Ended, results: str) -> bool:
        """Put what nearly always happens into columns, where these can tell all of it."""
        result = before.result
        if before.state != State.SUCCEEDED or result is None or before.promises:
            return False
        if row.number is not None or not self._in_columns:
            return False
        worker, content_type = clean(ended.rules.worker), clean(result.content_type)
        if BETWEEN in worker or BETWEEN in content_type or BETWEEN in results:
            return False
        at, size = self._place(result.body)
        timeout = result_ends(ended.delivery.workitem, 0.0)
        kept = "" if timeout is None else str(min(timeout, MAX_SECONDS))
        self._successes.append(
            (row.place, str(row.seq), worker, content_type, before.story, results, kept, str(at), str(size))
        )
        self.told.add(ENDED)
        if results:
            self.told.add(results)
        return True

    def _kept(self, before: Past, ended: Ended, results: str) -> dict[str, object]:
        """What the history gets of what has ended; results: the queue whose readers get the result from there."""
        self.told.add(ENDED)
        kept: dict[str, object] = {"state": before.state, "worker": clean(ended.rules.worker)}
        if before.error:
            kept["error"] = clean(before.error)
        if before.off:
            kept["off"] = True
        if before.crashes:
            kept["crashes"] = before.crashes
        if before.whole:
            kept["story"] = before.story
        if before.result is not None:
            at, size = self._place(before.result.body)
            kept |= {"result_type": clean(before.result.content_type), "at": at, "size": size}
            timeout = result_ends(ended.delivery.workitem, 0.0)
            if timeout is not None:
                kept["timeout"] = min(timeout, MAX_SECONDS)
            if before.promises:
                kept |= {"id": stored_id(ended.delivery.workitem.id), "promises": list(map(stored_id, before.promises))}
        if results:
            kept["results"] = results
            self.told.add(results)
        return kept

    def move(self, moved: Mapping[int, str]) -> None:
        """Some rows are somewhere else now, by their numbers."""
        for end in (*self.ends, *self.releases):
            end["place"] = moved.get(cast(int, end["seq"]), end["place"])
        self._successes = [(moved.get(int(seq), place), seq, *rest) for place, seq, *rest in self._successes]

    def report(self, row: Row, run: Run, progress: Progress | None) -> None:
        """The delivery of `row` is running."""
        self.reports.append({"seq": row.seq, "place": row.place, "running": told(run, progress)})

    def send(self, queue: str, workitem: Workitem, *, optional: bool = False) -> dict[str, object]:
        """Store a workitem; optional: only where the queue exists."""
        note: dict[str, object] = {}
        if not usable(queue):
            detail = f"no queue can be named {queue[:MAX_NAME]!r}"
            note["headers"] = {**workitem.headers, "reason": "rejected", "detail": detail}
            queue, optional = DEAD_LETTERS, False
        at, size = self._place(workitem.body)
        item: dict[str, object] = {"queue": queue, "at": at, "size": size}
        for name in _KEPT:
            value = getattr(workitem, name)
            item[name] = known = clean(value)
            if name in ("id", "reference") and len(known) > MAX_INDEXED:
                item[name] = known = known[:MAX_INDEXED]
            if known != value:
                note[name] = value
        if workitem.priority:
            item["priority"] = priority(workitem)
        if (wait := delay(workitem, self.now)) is not None:
            item["delay"] = wait
        if (seconds := lifetime(workitem)) is not None:
            item["lifetime"] = seconds
        if workitem.attempt != 1:
            item["attempt"] = min(workitem.attempt, MAX_INTEGER)
        if workitem.crashes:
            item["crashes"] = min(workitem.crashes, MAX_INTEGER)
        if workitem.failures:
            item["failures"] = min(workitem.failures, MAX_INTEGER)
        properties = to_text(workitem, **note)
        if properties:
            item["properties"] = properties
        if optional:
            item["optional"] = True
        lane = queue, item.get("priority", 0)
        self._lanes[lane] = optional and self._lanes.get(lane, True)
        self.sends.append(item)
        self.told.add(queue)
        return item

    def bind(self, item: dict[str, object], workitem: Workitem, sent: Container[str]) -> None:
        """Have what is sent as `item` depend on others.  sent: the ids that came before it in the same call."""
        after = [stored_id(id) for id in workitem.after]
        item |= {"after": after, "failing": _failing(workitem)}
        self.asked = (self.asked or {}) | {id: None for id in after if id not in sent}

    def _place(self, body: bytes) -> tuple[int, int]:
        if self._last[0] is body:  # a result goes into the history and to whoever waits for it
            return self._last[1], len(body)
        at = self._size
        self._bodies.append(body)
        self._size += len(body)
        self._last = body, at
        return at, len(body)

    def lanes(self) -> str:
        """The queues and priorities that are sent to, as the database's functions take them."""
        return _encode(
            [{"queue": queue, "priority": n, "optional": maybe} for (queue, n), maybe in self._lanes.items()]
        )

    def successes(self) -> list[str] | None:
        """What succeeded and has no more to say, in columns, as the database's function `succeeded` takes it."""
        return [BETWEEN.join(column) for column in zip(*self._successes, strict=True)] or None

    def texts(self) -> tuple[str | None, str | None, str | None, bytes, str | None]:
        """What ends, is released and is sent, as the database's functions take it; the bodies; the queues sent to."""
        return (
            _encode(self.ends) if self.ends else None,
            _encode(self.releases) if self.releases else None,
            _encode(self.sends) if self.sends else None,
            b"".join(self._bodies),
            self.lanes() if self._lanes else None,
        )


def _results(row: Row, ended: Ended) -> str:
    """The queue whose readers get the result out of the history; empty: it is sent.  Only what is there as it was."""
    workitem = row.workitem
    queue = results_queue(workitem, ended.outcome, ended.rules, ended.run)
    return queue if usable(queue) and is_exact(workitem.id) and is_exact(workitem.reference) else ""


@lru_cache(maxsize=1024)
def _common(queue: str, worker: str, content_type: str, results: str) -> tuple[str, str, str] | None:
    """What many that succeeded have in common: worker, content type of the result, and the queue whose readers get it
    out of the history; None where columns can't tell that, or it is to be sent."""
    readers = readers_of(results)
    if not is_recorded(queue) or (results and not usable(readers)):
        return None
    worker, content_type = clean(worker), clean(content_type)
    return None if BETWEEN in f"{worker}{content_type}{readers}" else (worker, content_type, readers)


def _failing(workitem: Workitem) -> str | None:
    """Who gets its result where it fails with what it depends on, for the database; None: it runs in any case."""
    if passes(workitem):
        return None
    if not usable(workitem.reply_to) or ignores_result(workitem):
        return "{}"
    return _encode({"queue": workitem.reply_to, "correlation_id": clean(workitem.correlation_id or workitem.id)})
