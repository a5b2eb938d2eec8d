"""What a carrier does with a workitem that somebody wants no more, by its worker process' marks and its clock."""

from __future__ import annotations

import asyncio
import math
import os
import signal

import pytest
from actor import Actor, scene
from test_lane import Crew, group, item, play

from taskqueue.carrier.cancelling import Cancelling
from taskqueue.carrier.verdicts import after_death, unwanted
from taskqueue.config import Group
from taskqueue.lifecycle import ENDED, State
from taskqueue.outcome import Cancelled, Dead, Done, Failed, Outcome, Payload, Release, Retry, TimedOut
from taskqueue.process.protocol import Kind
from taskqueue.process.shared import MARK
from taskqueue.workitem import Workitem

PLAIN = Group(name="g", type="t", retries=1, cancel_timeout=10.0)
THREADS = Group(name="g", type="t", threads=3, cancel_timeout=10.0)
ITEM = Workitem(body=b"x", id="id", type="t")


class TestWhenToAct:
    def test_it_is_terminated_after_half_of_the_time_and_killed_at_its_end_once_each(self) -> None:
        cancelling = Cancelling(10.0)
        assert (cancelling.look_at, cancelling.due(0.0)) == (None, None)

        cancelling.begin(1, 100.0)

        assert 1 in cancelling and 2 not in cancelling
        assert [cancelling.due(now) for now in (100.0, 104.9, 105.0, 106.0, 109.9, 110.0, 111.0)] == [
            None, None, signal.SIGTERM, None, None, signal.SIGKILL, None,
        ]  # fmt: skip
        assert cancelling.look_at is None

    def test_it_looks_when_there_is_something_to_do(self) -> None:
        cancelling = Cancelling(10.0)
        cancelling.begin(1, 100.0)
        cancelling.begin(2, 103.0)
        assert cancelling.look_at == 105.0
        cancelling.over(1)
        assert cancelling.look_at == 108.0
        assert cancelling.due(108.0) == signal.SIGTERM
        cancelling.over(2)  # it was told to go: nothing more is handed over to it
        assert (cancelling.look_at, cancelling.due(113.0)) == (113.0, signal.SIGKILL)

    def test_what_ended_in_time_is_left_alone(self) -> None:
        cancelling = Cancelling(10.0)
        cancelling.begin(1, 100.0)
        cancelling.over(1)

        assert (cancelling.look_at, cancelling.due(200.0)) == (None, None)

    def test_without_time_it_is_killed_at_once_and_with_all_of_it_never(self) -> None:
        for timeout, number in ((0.0, signal.SIGKILL), (math.inf, None)):
            cancelling = Cancelling(timeout)
            cancelling.begin(1, 100.0)
            assert cancelling.due(100.0) == number


class TestVerdicts:
    @pytest.mark.parametrize(
        ("outcome", "instead"),
        [
            (Done(Payload(b"1")), Done(Payload(b"1"))),
            (Failed("TaskCancelled: x", "tb"), Cancelled("TaskCancelled: x")),
            (Retry(5.0, "OSError"), Cancelled("OSError")),
            (Dead("rejected", "no"), Cancelled("no")),
        ],
    )
    def test_only_what_was_done_stays(self, outcome: Outcome, instead: Outcome) -> None:
        assert unwanted(outcome) == instead

    def test_its_process_may_die_in_any_way(self) -> None:
        assert after_death(ITEM, PLAIN, "SIGTERM", Cancelled(), jitter=0.0) == Cancelled("SIGTERM")


def mark_of(actor: Actor, slot: int = 0) -> int:
    """The hand-over that is to be cancelled there."""
    (number,) = MARK.unpack(os.pread(actor.memory, MARK.size, (actor.process.slots + slot) * MARK.size))
    return int(number)


def cancel(actor: Actor, number: int) -> None:
    actor.process.cancel(actor.process._handed[number])


class TestWorkerProcess:
    def test_what_runs_is_marked_and_told_once_and_what_waits_behind_it_is_not(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.told()
            cancel(actor, 2)
            assert (mark_of(actor), actor.told()) == (0, [])
            cancel(actor, 1)
            cancel(actor, 1)
            assert (mark_of(actor), actor.told()) == (1, [Kind.CANCEL])

        scene(play, PLAIN)

    def test_a_failure_after_that_is_its_end_and_a_result_is_one(self) -> None:
        def play(actor: Actor) -> None:
            actor.say(Kind.READY, None)
            for number, answer in ((1, ["failed", "E: x", "tb", "text/plain", None]), (2, ["done", "text/plain", []])):
                actor.give(str(number))
                actor.mark(number)
                cancel(actor, number)
                actor.say(Kind.ENDED, [number, 1_000_000, None, 0, *answer])
            actor.give("3")
            actor.mark(3)
            actor.say(Kind.ENDED, [3, 1_000_000, None, 0, "failed", "E: y", "tb", "text/plain", None])
            first, second, third = (event[2] for event in actor.owner.events[1:])
            assert (first, second) == (Cancelled("E: x"), Done(Payload(b"", "text/plain")))
            assert isinstance(third, Retry)
            assert actor.process.usable

        scene(play, PLAIN)

    def test_one_that_goes_on_is_terminated_then_killed_and_the_others_are_innocent(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1, slot=0)
            actor.mark(2, slot=2)
            cancel(actor, 2)
            assert [mark_of(actor, slot) for slot in range(3)] == [0, 0, 2]
            actor.process._look()
            assert [event for event in actor.owner.events if event[0] == "unwanted"] == []
            for _ in range(3):
                actor.clock.now += 5.0
                actor.process._look()
            signals = [event[1] for event in actor.owner.events if event[0] == "unwanted"]
            assert signals == [signal.SIGTERM, signal.SIGKILL]
            assert not actor.process.usable
            assert actor.owner.worked_after != []
            assert actor.buried() == ({"a": Release(), "b": Cancelled()}, [])

        scene(play, THREADS)

    @pytest.mark.parametrize("verdict", [TimedOut(3.0), None], ids=["killed for another", "crashed"])
    def test_it_is_cancelled_also_where_its_process_dies_of_something_else(self, verdict: TimedOut | None) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1, slot=0)
            actor.mark(2, slot=1)
            cancel(actor, 2)
            if verdict is not None:
                actor.process.condemn({1: verdict})
            assert actor.buried() == ({"a": verdict, "b": Cancelled()}, [])

        scene(play, THREADS)


class TestLane:
    def test_what_waits_is_over_at_once_and_what_runs_is_told(self) -> None:
        async def scene(crew: Crew) -> None:
            actor = crew.add(group(prefetch=3, cancel_timeout=10.0))
            crew.send(*map(item, "abc"))
            await crew.has(actor, "a")
            actor.mark(1)
            async with asyncio.timeout(10):
                while crew.lane.loop.held < 3:
                    await asyncio.sleep(0.001)
            store = crew.broker.store()
            assert store.cancel("a") and store.cancel("b")
            await crew.lane.report()
            async with asyncio.timeout(10):
                while store.record("b").state not in ENDED:
                    await asyncio.sleep(0.001)
            assert store.record("b").state == State.CANCELLED
            assert store.record("a").state not in ENDED
            assert mark_of(actor) == 1
            actor.say(Kind.ENDED, [1, 1_000_000, None, 0, "failed", "E: x", "tb", "text/plain", None])
            await crew.has(actor, "c")
            async with asyncio.timeout(10):
                while store.record("a").state not in ENDED:
                    await asyncio.sleep(0.001)
            assert (store.record("a").state, store.record("a").attempts[0].error) == (State.CANCELLED, "E: x")

        play(scene)
