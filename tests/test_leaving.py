"""What a carrier does where a task takes too long in threads of a program, which nobody can kill."""

from __future__ import annotations

import math
from dataclasses import replace

from actor import Actor, scene

from taskqueue.carrier.worker_process import START_WITHIN_PROGRAM
from taskqueue.config import Group
from taskqueue.outcome import Done, Release, TimedOut
from taskqueue.process.protocol import Kind

THREADS = Group(name="g", type="t", threads=3, retries=0, time_limit=1.0, cancel_timeout=math.inf)


def test_it_ends_alone_whatever_its_handler_says_then() -> None:
    def play(actor: Actor) -> None:
        actor.say(Kind.READY, None)
        actor.owner.events.clear()
        actor.give("a", "b")
        actor.mark(1, slot=0)
        actor.mark(2, slot=1)
        actor.told()
        actor.clock.now += 10.0  # the event loop was held up: they have had no time to say anything
        actor.process._look()
        actor.process._look()
        assert actor.told() == [Kind.LEAVE]
        assert actor.process.usable and actor.owner.events == [("left", "time limit of 1 s")]
        actor.say(Kind.ENDED, [1, 1_000_000, None, 0, "reject", "its handler was left alone"])
        actor.say(Kind.ENDED, [2, 1_000_000, None, 0, "done", "text/plain", []])
        first, second = (event[2] for event in actor.owner.events[1:])
        assert isinstance(first, TimedOut) and isinstance(second, Done)
        assert actor.process.load == 0

    scene(play, THREADS)


def test_where_they_do_not_let_go_of_it_all_of_them_are_left_alone() -> None:
    def play(actor: Actor) -> None:
        actor.say(Kind.READY, None)
        actor.owner.events.clear()
        actor.give("a")
        actor.mark(1, slot=0)
        actor.clock.now += 1.1
        actor.process._look()
        actor.clock.now += 1.9
        actor.give("b")
        actor.mark(2, slot=1)
        actor.process._look()
        assert actor.process.usable
        actor.clock.now += 0.2
        actor.process._look()
        assert not actor.process.usable
        assert [event[0] for event in actor.owner.events] == ["left", "over"]
        assert actor.buried() == ({"a": TimedOut(1.0), "b": Release()}, [])

    scene(play, THREADS)


def test_what_they_do_not_start_comes_back_also_where_they_had_nothing_else() -> None:
    def play(actor: Actor) -> None:
        actor.say(Kind.READY, None)
        actor.owner.events.clear()
        actor.give("a", "b")
        actor.mark(2, slot=1)
        actor.clock.now += START_WITHIN_PROGRAM - 0.1
        actor.process._look()
        assert actor.owner.events == [] and not actor.process.is_stuck
        actor.clock.now += 0.2
        actor.process._look()
        assert actor.owner.events == [("unstarted", "a")] and actor.process.is_stuck
        actor.say(Kind.UNSTARTED, [1])
        assert not actor.process.is_stuck and actor.process.load == 1

    scene(play, replace(THREADS, time_limit=0.0))


def test_a_program_that_is_held_up_is_waited_for() -> None:
    def play(actor: Actor) -> None:
        actor.say(Kind.READY, None)
        actor.owner.held_up = True
        actor.give("a")
        actor.mark(1, slot=0)
        for _ in range(3):
            actor.clock.now += 60.0
            actor.process._look()
        assert actor.process.usable
        actor.owner.seen()
        actor.clock.now += 1.9
        actor.process._look()
        assert actor.process.usable
        actor.clock.now += 0.2
        actor.process._look()
        assert not actor.process.usable

    scene(play, THREADS)


def test_processes_are_killed() -> None:
    def play(actor: Actor) -> None:
        actor.say(Kind.READY, None)
        actor.owner.events.clear()
        actor.give("a")
        actor.mark(1)
        actor.clock.now += 1.1
        actor.give("b")
        actor.mark(2, slot=1)
        actor.process._look()
        assert not actor.process.usable
        assert actor.buried() == ({"a": TimedOut(1.0), "b": Release()}, [])

    scene(play, Group(name="g", type="t", threads=3, time_limit=1.0))
