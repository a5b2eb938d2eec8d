"""The carrier's view of a worker process: what it runs, what it is blamed for, what is taken back from it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from taskqueue.broker import Delivery, Lease
from taskqueue.carrier.pace import START_WITHIN
from taskqueue.carrier.worker_process import WorkerProcess
from taskqueue.config import Group
from taskqueue.outcome import Done, Outcome, Release, TimedOut
from taskqueue.process.protocol import START_MARK, Kind, pack
from taskqueue.workitem import Workitem

GROUP = Group(name="g", type="t", retries=1, retry_delay=10.0)
ITEM = Workitem(body=b"x", id="id", type="t")


class Told:
    """The owner of a worker process: notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def ready(self, process: WorkerProcess) -> None:
        self.events.append(("ready",))

    def broken(self, process: WorkerProcess, error: str, traceback: str) -> None:
        self.events.append(("broken", error))

    def ended(self, process: WorkerProcess, delivery: Delivery, outcome: Outcome, seconds: float) -> None:
        self.events.append(("ended", delivery.tag, outcome))

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        self.events.append(("unstarted", *(delivery.tag for delivery in deliveries)))

    def said(self, process: WorkerProcess, name: str, level: int, text: str) -> None:
        self.events.append(("said", name, level, text))

    def mute(self, process: WorkerProcess, reason: str) -> None:
        self.events.append(("mute", reason))

    def over_time(self, process: WorkerProcess) -> None:
        self.events.append(("over time",))


class Actor:
    """The other end, played by the test: what a worker process does, at the moments that matter."""

    def __init__(self, group: Group = GROUP) -> None:
        self.owner = Told()
        ours, self.socket = socket.socketpair()
        self.clock = Moving()
        hello = {"max_result": 1000, "formats": {"installed": {}, "default": "", "read_as": {}}}
        self.process = WorkerProcess(4711, group, ours, hello, self.owner, self.clock)
        _, (self.memory, *_), _, _ = socket.recv_fds(self.socket, 1 << 16, 2)
        self.lease = Lease()

    def say(self, kind: Kind, meta: Any, payload: bytes = b"") -> None:
        self.socket.sendall(pack(kind, meta, payload))
        self.process._wire.read()

    def mark(self, number: int) -> None:
        os.pwrite(self.memory, START_MARK.pack(number), 0)

    def give(self, *tags: str) -> None:
        self.process.hand_over([Delivery(workitem=ITEM, queue="worker_t", tag=tag, lease=self.lease) for tag in tags])

    def end(self, number: int, **more: Any) -> None:
        self.say(Kind.ENDED, [number, 0.001, "done", "text/plain", []], **more)

    def buried(self) -> tuple[Any, ...]:
        blamed, verdict, rest = self.process.bury()
        return (blamed.tag if blamed else None, verdict, [delivery.tag for delivery in rest])

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


class TestWorkerProcess:
    def test_the_one_that_was_started_is_blamed_alone(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.end(1)
            actor.mark(2)
            assert actor.buried() == ("b", None, ["c"])

        scene(play)

    def test_what_was_handed_over_and_not_started_is_not_blamed(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            assert actor.buried() == (None, None, ["a", "b"])

        scene(play)

    def test_what_it_reported_before_its_death_has_ended(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.socket.sendall(pack(Kind.ENDED, [1, 0.1, "done", None, []]))
            assert actor.buried() == (None, None, ["b"])
            assert actor.owner.events[0] == ("ended", "a", Done(None))

        scene(play)

    def test_an_answer_that_is_none_leaves_its_workitem_running(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.say(Kind.ENDED, [1, 0.1, "wonderful"])
            (event,) = actor.owner.events
            assert event[0] == "mute" and event[1].startswith("nonsense")
            assert not actor.process.usable
            assert actor.buried() == ("a", None, ["b"])

        scene(play)

    @pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, "x", None])
    def test_a_run_time_that_is_none_is_nonsense(self, seconds: object) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.say(Kind.ENDED, [1, seconds, "done", None, []])
            assert [event[0] for event in actor.owner.events] == ["mute"]
            assert actor.buried() == ("a", None, [])

        scene(play)

    def test_what_waits_behind_a_long_one_is_taken_back_once(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.process._look()
            assert actor.owner.events == []
            actor.clock.now += START_WITHIN + 0.001
            actor.process._look()
            assert actor.owner.events == [("unstarted", "b", "c")]
            actor.say(Kind.UNSTARTED, [2, 3])  # it finds out by itself, later
            assert actor.owner.events[1:] == [("unstarted",)]
            actor.end(1)
            assert actor.process.load == 0

        scene(play)

    def test_what_it_did_not_start_in_time_comes_back(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.end(1)
            actor.say(Kind.UNSTARTED, [2, 3])
            assert actor.owner.events[1:] == [("unstarted", "b", "c")]
            assert actor.process.current_since is None

        scene(play)

    def test_a_later_hand_over_is_taken_back_in_time_although_the_time_limit_is_far_away(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            far = actor.process._timer
            assert far is not None
            actor.give("b")
            near = actor.process._timer
            assert near is not None and far.cancelled()
            assert near.when() < far.when() - 3000

        scene(play, Group(name="g", type="t", time_limit=3600.0))

    def test_a_time_limit_blames_the_workitem_that_it_was_measured_for(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.clock.now += 0.06
            actor.process._look()
            assert actor.owner.events[-1] == ("over time",)
            assert not actor.process.usable
            assert actor.buried() == ("a", TimedOut(0.05), ["b"])

        scene(play, Group(name="g", type="t", time_limit=0.05))

    def test_one_that_was_started_before_the_kill_arrived_is_innocent(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.clock.now += 0.06
            actor.process._look()
            actor.socket.sendall(pack(Kind.ENDED, [1, 0.06, "done", None, []]))
            actor.mark(2)
            assert actor.buried() == ("b", Release(), ["c"])
            assert ("ended", "a", Done(None)) in actor.owner.events

        scene(play, Group(name="g", type="t", time_limit=0.05))

    def test_the_time_of_each_is_measured_from_the_end_of_the_one_before(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.clock.now += 0.04
            actor.end(1)
            actor.mark(2)
            actor.clock.now += 0.04
            actor.process._look()
            assert ("over time",) not in actor.owner.events
            actor.clock.now += 0.04
            actor.process._look()
            assert ("over time",) in actor.owner.events

        scene(play, Group(name="g", type="t", time_limit=0.05))

    def test_a_result_that_is_too_long_is_nonsense(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.end(1, payload=b"x" * 1001)
            assert actor.buried() == ("a", None, [])

        scene(play)
