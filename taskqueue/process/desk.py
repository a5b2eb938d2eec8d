"""What becomes of one workitem in a worker process, however many of them run at once there."""

from __future__ import annotations

import json
import math
import os
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from taskqueue.depending import Input
from taskqueue.process.calling import Answer
from taskqueue.process.handing import read
from taskqueue.process.line import Line
from taskqueue.process.protocol import Kind, framed, pack
from taskqueue.process.shared import Marks
from taskqueue.title import set_title, shown
from taskqueue.worker import CurrentWorkitem
from taskqueue.workitem import Workitem

if TYPE_CHECKING:
    from taskqueue.process.completing import Completing

__all__ = ["Desk", "Item", "items"]


BRIEF = 0.001  # seconds, in which no handler can need much more memory than those before it
SAY_EVERY = 0.1  # seconds
KEEP_FOR = 0.001  # seconds that the end of one may be kept while the next one runs

_here: ContextVar[int] = ContextVar("number", default=0)


class Item(NamedTuple):
    """What the carrier handed over as `number`; not to be started any more from `start_by` on, monotonic seconds."""

    number: int
    body: bytes
    properties: dict[str, Any]
    start_by: float
    inputs: tuple[Input, ...] = ()


def items(meta: dict[str, Any], bodies: bytes) -> Iterator[Item]:
    """One batch.  The first one for an idle process may be started at any time: nothing there can hold it up."""
    offset = 0
    start_by = math.inf if meta["idle"] else meta["start_by"]
    for number, size, properties in meta["items"]:
        described = properties.pop("inputs", ())
        inputs = tuple(read(described, bodies, offset + size)) if described else ()
        yield Item(number, bodies[offset : offset + size], properties, start_by, inputs)
        offset += size + sum(one[4] for one in described)
        start_by = meta["start_by"]


class Desk:
    """Starts workitems and reports their ends; `label` is what titles call this process.

    In a program that is not there for the line alone, nothing is said or measured of the whole process.
    """

    def __init__(self, line: Line, marks: Marks, hello: dict[str, Any]) -> None:
        self._line = line
        self._marks = marks
        self._type: str = hello["type"]
        self._slots: int = hello["slots"]
        self._one = line.whole and self._slots == 1
        self._title = f"worker {hello['label']}"
        self._running = 0
        self._counting = threading.Lock()
        self._number = 0
        self._cpu: float | None = None  # seconds, when the last one of the batch ended, and the next one began
        self._memory = 0  # bytes, the most so far
        self._said: dict[int, float] = {}
        self._flushed = 0.0
        self.completing: Completing | None = None
        self.left: set[int] = set()  # hand-overs whose handlers are told to end, and are waited for no more
        self.idle()

    def start(self, slot: int, item: Item) -> Workitem | None:
        """Mark `item` as started; None where it is too late for that: the carrier gives it to others, then.

        The mark is set before the clock is read; so whatever starts in time is seen to have started.
        """
        self._marks[slot] = item.number
        if time.monotonic() >= item.start_by:
            self._marks[slot] = 0
            return None
        ticket = None if self.completing is None else item.properties.pop("ticket", None)
        workitem = Workitem(body=item.body, type=self._type, **item.properties)
        if self.completing is not None:
            self.completing.start(item.number, workitem, ticket)
        _here.set(item.number)
        if self._one:
            self._number = item.number
            if self._cpu is None:
                self._cpu = time.process_time()
            self._show(f"running {shown(workitem.id)}, attempt {workitem.attempt}")
        else:
            self._count(1)
        return workitem

    def end(self, item: Item, started: float, answer: Answer) -> None:
        """Say what became of `item`, before the next one is started in its place."""
        if os.getpid() != self._line.pid:  # a child that the handler forked came back: it is none of ours
            os._exit(0 if answer.meta[0] == "done" else 1)
        cpu = None
        if self._one:
            spent = time.process_time()
            cpu, self._cpu = spent - (self._cpu or spent), spent
        else:
            self._count(-1)
        if self.completing is not None:
            answer = self.completing.end(item.number, answer)
        self._said.pop(item.number, None)
        now = time.monotonic()
        seconds = now - started
        if seconds > BRIEF or not self._memory:
            self._memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._line.keep(_ending(item.number, seconds, cpu, self._memory, answer))
        if not self._one or now >= self._flushed + KEEP_FOR:
            self._flushed = now
            self._line.flush()

    def here(self) -> int:
        """The number of the hand-over that this thread or task works for; 0: of none, or of any."""
        return self._number if self._one else _here.get()

    def progress(self, done: float, total: float | None, note: str) -> None:
        """Say how far the one that is handled here is; not more than ten times a second, but for the end."""
        number, now = self.here(), time.monotonic()
        if number in self.left:
            return
        if number and (now >= self._said.get(number, 0.0) + SAY_EVERY or done == total):
            self._said[number] = now
            self._line.send(Kind.PROGRESS, [number, done, total, note])

    def is_unwanted(self) -> bool:
        """Whether the one that is handled here is to be cancelled."""
        number = self.here()
        return number != 0 and (number in self.left or number in self._marks[self._slots : 2 * self._slots])

    def leave(self, item: Item, started: float) -> None:
        """Say that `item` has ended, in place of its handler, which goes on, or was not called at all."""
        self.end(item, started, Answer(("reject", "its handler was left alone")))

    def complete(self, connection: object, result: Any) -> None:
        """End the one that is handled here in the transaction of `connection`."""
        assert self.completing is not None
        cpu = time.process_time() - self._cpu if self._one and self._cpu is not None else None
        self.completing.complete(self.here(), connection, result, cpu)

    def unstarted(self, late: Sequence[Item]) -> None:
        """Say that these will not be started here."""
        self._line.send(Kind.UNSTARTED, [item.number for item in late])

    def idle(self) -> None:
        """Nothing runs, for now."""
        self._line.flush()
        self._cpu = None
        self._show("idle")

    def _count(self, more: int) -> None:
        with self._counting:
            self._running += more
            self._show(f"running {self._running} of {self._slots}" if self._running else "idle")

    def _show(self, doing: str) -> None:
        if self._line.whole:
            set_title(f"{self._title} {doing}")


def _ending(number: int, seconds: float, cpu: float | None, memory: int, answer: Answer) -> bytes:
    """The frame that says what became of it.  Times in nanoseconds: as text, a float takes longer."""
    meta, payload = answer
    ran, spent = int(seconds * 1e9), None if cpu is None else int(cpu * 1e9)
    if spent is None or meta[0] != "done" or meta[2] or meta[3:]:
        return pack(Kind.ENDED, [number, ran, spent, memory, *meta], payload)
    # Nearly always it is this one: in a third of the time.
    return framed(Kind.ENDED, f'[{number},{ran},{spent},{memory},"done",{_quoted(meta[1])},[]]', payload)


@lru_cache(maxsize=1024)
def _quoted(content_type: str | None) -> str:
    return json.dumps(content_type)


def current(workitem: Workitem, inputs: tuple[Input, ...] = ()) -> CurrentWorkitem:
    """What a handler sees of it.  inputs: how those have ended that it depends on."""
    return CurrentWorkitem(
        workitem.body,
        workitem.id,
        workitem.type,
        workitem.content_type,
        workitem.headers,
        workitem.attempt,
        workitem.reference,
        inputs,
    )
