"""A worker process as the carrier sees it, with the other end of its socket played by a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from taskqueue.broker import Delivery, Ended, Lease
from taskqueue.carrier.worker_process import WorkerProcess
from taskqueue.config import Group
from taskqueue.process.protocol import Frames, Kind, pack
from taskqueue.process.shared import MARK
from taskqueue.workitem import Workitem

GROUP = Group(name="g", type="t", retries=1, retry_delay=10.0)
ITEM = Workitem(body=b"x", id="id", type="t")


class Told:
    """The owner of a worker process: notes what it is told; `worked_after` how many events it is told of work."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.worked_after: list[int] = []
        self.completing: list[Any] = []
        self.held_up = False
        self.seen: Callable[[], None] = lambda: None

    def ready(self, process: WorkerProcess) -> None:
        self.events.append(("ready",))

    def broken(self, process: WorkerProcess, error: str, traceback: str) -> None:
        self.events.append(("broken", error))

    def ticket(self, process: WorkerProcess, delivery: Delivery) -> dict[str, Any] | None:
        return {"of": delivery.tag}

    def ended(self, process: WorkerProcess, ended: Ended, seconds: float) -> None:
        self.events.append(("ended", ended.delivery.tag, ended.outcome))
        if ended.completing:
            self.completing.append(ended.delivery.tag)

    def worked(self, process: WorkerProcess) -> None:
        self.worked_after.append(len(self.events))

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        self.events.append(("unstarted", *(delivery.tag for delivery in deliveries)))

    def stopping(self, process: WorkerProcess) -> None:
        self.events.append(("stopping",))

    def said(self, process: WorkerProcess, name: str, level: int, text: str) -> None:
        self.events.append(("said", name, level, text))

    def mute(self, process: WorkerProcess, reason: str) -> None:
        self.events.append(("mute", reason))

    def over_limit(self, process: WorkerProcess, what: str) -> None:
        self.events.append(("over", what))

    def left_alone(self, process: WorkerProcess, what: str, seen: Callable[[], None]) -> None:
        self.events.append(("left", what))
        self.seen = seen
        if not self.held_up:
            seen()

    def unwanted(self, process: WorkerProcess, number: signal.Signals) -> None:
        self.events.append(("unwanted", number))


class Actor:
    """The other end, played by the test: what a worker process does, at the moments that matter."""

    def __init__(self, group: Group = GROUP) -> None:
        self.owner = Told()
        ours, self.socket = socket.socketpair()
        self.clock = Moving()
        hello = {"max_result": 1000, "formats": {"installed": {}, "default": "", "read_as": {}}}
        # It is this process that is weighed.
        self.process = WorkerProcess(os.getpid(), group, ours, hello, self.owner, self.clock)
        _, (self.memory, *_), _, _ = socket.recv_fds(self.socket, 1 << 16, 2)
        self.frames = Frames()
        self.lease = Lease()

    def say(self, kind: Kind, meta: Any, payload: bytes = b"") -> None:
        self.socket.sendall(pack(kind, meta, payload))
        self.process._wire.read()

    def mark(self, number: int, slot: int = 0) -> None:
        os.pwrite(self.memory, MARK.pack(number), slot * MARK.size)

    def told(self) -> list[Kind]:
        """What it was told since the last call."""
        found: list[Kind] = []
        with contextlib.suppress(BlockingIOError):
            while data := self.socket.recv(1 << 16, socket.MSG_DONTWAIT):
                found += [kind for kind, _, _ in self.frames.feed(data)]
        return found

    def give(self, *tags: str) -> None:
        self.process.hand_over([Delivery(workitem=ITEM, queue="worker_t", tag=tag, lease=self.lease) for tag in tags])

    def end(self, number: int, **more: Any) -> None:
        self.say(Kind.ENDED, [number, 1_000_000, 500_000, 1 << 20, "done", "text/plain", []], **more)

    def buried(self) -> tuple[dict[Any, Any], list[Any]]:
        running, rest = self.process.bury()
        return {cut.delivery.tag: cut.verdict for cut in running}, [delivery.tag for delivery in rest]

    def close(self) -> None:
        self.socket.close()
        os.close(self.memory)


class Moving:
    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def scene(play: Callable[[Actor], None], group: Group = GROUP) -> None:
    """Play with one worker process, inside an event loop that does nothing by itself meanwhile."""

    async def run() -> None:
        actor = Actor(group)
        try:
            play(actor)
        finally:
            actor.close()

    asyncio.run(run())
