"""Worker processes that run several workitems at once, and those that are weighed."""

from __future__ import annotations

import re

from actor import Actor, scene

from taskqueue.carrier.limits import WEIGH_EVERY
from taskqueue.carrier.pace import START_WITHIN
from taskqueue.config import Group
from taskqueue.outcome import Crashed, Release, TimedOut
from taskqueue.process.protocol import Kind

THREADS = Group(name="g", type="t", threads=3, time_limit=10.0)


class TestSeveralAtOnce:
    def test_all_that_ran_are_blamed_and_what_was_not_started_is_not(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(2, slot=0)
            actor.mark(1, slot=2)
            assert actor.buried() == ({"a": None, "b": None}, ["c"])

        scene(play, THREADS)

    def test_they_end_in_any_order(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            for number in (1, 2, 3):
                actor.mark(number, slot=number - 1)
            actor.end(2)
            assert actor.process.room(1) == 1
            actor.give("d")
            actor.mark(4, slot=1)
            actor.end(4)
            assert [event[1] for event in actor.owner.events] == ["b", "d"]
            assert actor.buried() == ({"a": None, "c": None}, [])

        scene(play, THREADS)

    def test_a_time_limit_is_that_of_one_and_the_others_are_released(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.clock.now += 6
            actor.give("b", "c")
            actor.mark(2, slot=1)
            actor.clock.now += 5
            actor.process._look()
            assert actor.owner.events == [("unstarted", "c"), ("over", "time limit of 10 s")]
            assert actor.buried() == ({"a": TimedOut(10.0), "b": Release()}, [])

        scene(play, THREADS)

    def test_a_process_that_starts_nothing_gets_nothing_until_it_says_something(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.give("b")
            actor.clock.now += START_WITHIN + 0.001
            actor.process._look()
            assert actor.owner.events == [("unstarted", "b")]
            assert actor.process.room(1) == 0
            actor.say(Kind.UNSTARTED, [2])  # it is back
            assert actor.process.room(1) == 2

        scene(play, THREADS)

    def test_memory_beyond_the_limit_may_be_the_fault_of_any(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1, slot=0)
            actor.mark(2, slot=1)
            actor.clock.now += WEIGH_EVERY
            actor.process._look()
            blamed, rest = actor.buried()
            assert [type(verdict) for verdict in blamed.values()] == [Crashed, Crashed] and rest == []

        scene(play, Group(name="g", type="t", concurrency=3, memory_limit=1 << 20))


class TestMemory:
    def test_memory_beyond_the_limit_is_a_crash_of_what_runs_and_not_of_what_comes_then(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.process._look()
            assert actor.owner.events == []  # not more often than a few times a second
            actor.clock.now += WEIGH_EVERY
            actor.process._look()
            ((_, why),) = actor.owner.events
            assert re.fullmatch(r"memory limit of 1 MiB exceeded: \d+\.?\d* MiB", why)
            assert actor.buried() == ({"a": Crashed(why)}, [])

        scene(play, Group(name="g", type="t", memory_limit=1 << 20))

    def test_memory_below_the_limit_is_nobodys_fault(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.clock.now += WEIGH_EVERY
            actor.process._look()
            actor.end(1)
            assert [event[0] for event in actor.owner.events] == ["ended"] and actor.process.worn == ""

        scene(play, Group(name="g", type="t", memory_limit=1 << 40, max_memory=1 << 40))

    def test_nothing_is_handed_over_behind_another_one_where_each_is_weighed(self) -> None:
        def play(actor: Actor) -> None:
            assert actor.process.room(32) == 1
            actor.give("a")
            assert actor.process.room(32) == 0

        scene(play, Group(name="g", type="t", memory_limit=1 << 40))
