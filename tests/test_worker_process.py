"""The carrier's view of a worker process: what it runs, what it is blamed for, what is taken back from it."""

from __future__ import annotations

import math

import pytest
from actor import ITEM, Actor, scene

from taskqueue.broker import Delivery, Input
from taskqueue.carrier.pace import START_WITHIN
from taskqueue.config import Group
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Payload, Release, TimedOut
from taskqueue.process.desk import items
from taskqueue.process.protocol import Kind, pack

OVER = ("over", "time limit of 0.05 s")


class TestWorkerProcess:
    def test_the_one_that_was_started_is_blamed_alone(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.end(1)
            actor.mark(2)
            assert actor.buried() == ({"b": None}, ["c"])

        scene(play)

    def test_what_was_handed_over_and_not_started_is_not_blamed(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            assert actor.buried() == ({}, ["a", "b"])

        scene(play)

    def test_what_it_reported_before_its_death_has_ended(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.socket.sendall(pack(Kind.ENDED, [1, 0.1, None, 0, "done", None, []]))
            assert actor.buried() == ({}, ["b"])
            assert actor.owner.events[0] == ("ended", "a", Done(None))

        scene(play)

    def test_it_gets_the_inputs_of_a_workitem_with_it(self) -> None:
        inputs = (
            Input("a", "t", State.SUCCEEDED, Payload(b"first")),
            Input("b", "t", State.FAILED, None, "ValueError: x", "Traceback"),
            Input("c", "t", State.SUCCEEDED, Payload(b"third", "text/plain")),
        )

        def play(actor: Actor) -> None:
            actor.process.hand_over(
                [
                    Delivery(workitem=ITEM, queue="worker_t", tag=tag, lease=actor.lease, inputs=given)
                    for tag, given in (("a", ()), ("b", inputs), ("c", ()))
                ]
            )
            data = actor.socket.recv(1 << 16)
            ((_, meta, bodies),) = [frame for frame in actor.frames.feed(data) if frame[0] == Kind.WORK]
            found = list(items(meta, bodies))
            assert [one.body for one in found] == [ITEM.body] * 3
            assert [one.inputs for one in found] == [(), inputs, ()]

        scene(play)

    @pytest.mark.parametrize(("said", "ticket"), [(None, None), ("completes", {"of": "a"})])
    def test_it_gets_tickets_if_it_said_that_it_completes(self, said: object, ticket: object) -> None:
        def play(actor: Actor) -> None:
            actor.say(Kind.READY, said)
            actor.give("a")
            data = actor.socket.recv(1 << 16)
            ((_, _, properties),) = [
                i for kind, meta, _ in actor.frames.feed(data) if kind == Kind.WORK for i in meta["items"]
            ]
            assert properties.get("ticket") == ticket

        scene(play)

    def test_what_it_may_have_completed_is_said_with_its_end_or_its_death_and_not_reported(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.say(Kind.COMPLETING, [1, 4711])
            assert actor.process.underway(0.0) == []
            actor.end(1)
            actor.mark(2)
            assert [one.delivery.tag for one in actor.process.underway(0.0)] == ["b"]
            actor.socket.sendall(pack(Kind.COMPLETING, [2]))
            running, _ = actor.process.bury()
            assert [(cut.delivery.tag, cut.completing) for cut in running] == [("b", True)]
            assert actor.owner.completing == ["a"]

        scene(play)

    def test_it_has_worked_once_it_has_brought_one_to_its_end(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            assert actor.owner.worked_after == []
            actor.end(1)
            actor.socket.sendall(pack(Kind.ENDED, [2, 0.1, None, 0, "done", None, []]))
            actor.buried()
            assert actor.owner.worked_after == [1]

        scene(play)

    def test_one_that_dies_of_its_first_workitem_has_not_worked(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            assert actor.buried() == ({"a": None}, ["b"])
            assert actor.owner.worked_after == []

        scene(play)

    @pytest.mark.parametrize(
        ("kind", "meta"),
        [
            (Kind.ENDED, [1, 0.1, None, 0, "wonderful"]),
            (Kind.ENDED, [1, 0.1, None, math.inf, "done", "", []]),
            (Kind.PROGRESS, [1, 10**400, 1, ""]),
            (Kind.PROGRESS, [1, 1, math.nan, ""]),
            (Kind.PROGRESS, [1, "x", None, ""]),
        ],
    )
    def test_an_answer_that_is_none_leaves_its_workitem_running(self, kind: Kind, meta: object) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.say(kind, meta)
            (event,) = actor.owner.events
            assert event[0] == "mute" and event[1].startswith("nonsense")
            assert not actor.process.usable
            assert actor.buried() == ({"a": None}, ["b"])

        scene(play)

    @pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, "x", None])
    def test_a_run_time_that_is_none_is_nonsense(self, seconds: object) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.say(Kind.ENDED, [1, seconds, None, 0, "done", None, []])
            assert [event[0] for event in actor.owner.events] == ["mute"]
            assert actor.buried() == ({"a": None}, [])

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

    def test_what_was_started_in_time_and_has_ended_is_not_taken_back_for_another_one_that_runs(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.end(1)
            actor.clock.now += START_WITHIN + 0.001
            actor.socket.sendall(pack(Kind.ENDED, [2, 1_000_000, None, 0, "done", None, []]))  # not read yet
            actor.mark(3)
            actor.process._look()
            assert [event[:2] for event in actor.owner.events] == [("ended", "a"), ("ended", "b")]
            assert actor.process.load == 1

        scene(play)

    def test_what_it_did_not_start_in_time_comes_back(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.end(1)
            actor.say(Kind.UNSTARTED, [2, 3])
            assert actor.owner.events[1:] == [("unstarted", "b", "c")]
            assert actor.process.load == 0

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
            assert actor.owner.events[-1] == OVER
            assert not actor.process.usable
            assert actor.buried() == ({"a": TimedOut(0.05)}, ["b"])
            assert actor.owner.worked_after == [0]  # it was killed in the middle of its work, not for want of any

        scene(play, Group(name="g", type="t", time_limit=0.05))

    @pytest.mark.parametrize(
        ("own", "group"), [(0.05, 0.0), (0.05, 3600.0), (None, 0.05), ("soon", 0.05), (True, 0.05), (-1, 0.05)]
    )
    def test_a_task_says_its_limit_itself(self, own: object, group: float) -> None:
        def play(actor: Actor) -> None:
            task = ITEM._replace(headers={"task": "shop.num", **({"time_limit": own} if own is not None else {})})
            plain = Delivery(workitem=ITEM, queue="worker_t", tag="a", lease=actor.lease)
            limited = Delivery(workitem=task, queue="worker_t", tag="b", lease=actor.lease)
            actor.process.hand_over([plain, limited])
            actor.mark(1)
            actor.end(1)
            actor.mark(2)
            actor.clock.now += 0.06
            actor.process._look()
            assert actor.owner.events[-1] == OVER
            assert actor.buried() == ({"b": TimedOut(0.05)}, [])

        scene(play, Group(name="g", type="t", time_limit=group))

    def test_one_that_was_started_before_the_kill_arrived_is_innocent(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.clock.now += 0.06
            actor.process._look()
            actor.socket.sendall(pack(Kind.ENDED, [1, 0.06, None, 0, "done", None, []]))
            actor.mark(2)
            assert actor.buried() == ({"b": Release()}, ["c"])
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
            assert OVER not in actor.owner.events
            actor.clock.now += 0.04
            actor.process._look()
            assert OVER in actor.owner.events

        scene(play, Group(name="g", type="t", time_limit=0.05))

    def test_a_result_that_is_too_long_is_nonsense(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.end(1, payload=b"x" * 1001)
            assert actor.buried() == ({"a": None}, [])

        scene(play)
