"""Who gets which workitem, and when: a lane over the memory broker, with worker processes that the test plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from actor import Actor, Moving

from taskqueue.broker import Delivery, Ended, Options, connect
from taskqueue.carrier import lane, pace
from taskqueue.carrier.lane import Lane
from taskqueue.carrier.worker_process import WorkerProcess
from taskqueue.config import Group
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Payload
from taskqueue.process.protocol import Kind
from taskqueue.workitem import Workitem, worker_queue


class Crew:
    """A lane, and the worker processes in it; what it wants to be recycled is noted."""

    def __init__(self, name: str) -> None:
        self.broker = connect(Options(url=f"memory://{name}"))
        self.recycled: list[tuple[WorkerProcess, str]] = []
        self.clock = Moving()
        self.lane = Lane("t", self.broker, self.clock, lambda process, why: self.recycled.append((process, why)))
        self.actors: list[Actor] = []

    def add(self, group: Group) -> Actor:
        actor = Actor(group)
        actor.owner = self  # type: ignore[assignment]
        actor.process._owner = self
        self.actors.append(actor)
        self.lane.add(actor.process)
        actor.say(Kind.READY, None)
        return actor

    def send(self, *workitems: Workitem) -> None:
        self.broker.producer().send(workitems, queue=worker_queue("t"))

    async def has(self, actor: Actor, *bodies: str) -> None:
        """Wait until `actor` has exactly these."""
        async with asyncio.timeout(10):
            while held(actor) != list(bodies):
                await asyncio.sleep(0.001)

    def loads(self) -> list[int]:
        """How many workitems each has."""
        return [actor.process.load for actor in self.actors]

    def end(self, actor: Actor, *answer: Any) -> None:
        """The first one that it has has ended; answer: how, where it has not succeeded."""
        number = next(iter(actor.process._handed))
        actor.mark(number)
        if answer:
            actor.say(Kind.ENDED, [number, 1_000_000, 500_000, 1 << 20, *answer])
        else:
            actor.end(number)

    def die(self, actor: Actor) -> None:
        self.lane.died(actor.process, "exit status 0")

    # What worker processes say.

    def ready(self, process: WorkerProcess) -> None:
        self.lane.ready(process)

    def ended(self, process: WorkerProcess, ended: Ended, seconds: float) -> None:
        self.lane.ended(process, ended, seconds)

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        self.lane.unstarted(process, deliveries)

    def worked(self, process: WorkerProcess) -> None:
        pass

    def stopping(self, process: WorkerProcess) -> None:
        pass

    def mute(self, process: WorkerProcess, reason: str) -> None:
        pass


def held(actor: Actor) -> list[str]:
    return [delivery.workitem.body.decode() for delivery in actor.process._handed.values()]


def play(scene: Callable[[Crew], Awaitable[None]]) -> None:
    async def run() -> None:
        crew = Crew(f"lane{time.monotonic_ns()}")
        try:
            await scene(crew)
        finally:
            crew.lane.stop_receiving()
            for actor in crew.actors:
                actor.close()
            await crew.broker.close()

    asyncio.run(run())


def item(body: str, **more: Any) -> Workitem:
    return Workitem(body=body.encode(), id=body, type="t", content_type="text/plain", **more)


def group(**options: Any) -> Group:
    return Group(name="t", type="t", **options)


class TestWhoIsNext:
    def test_of_idle_ones_the_one_that_succeeded_last_and_not_one_that_failed(self) -> None:
        async def scene(crew: Crew) -> None:
            actors = [crew.add(group(workers=3)) for _ in range(3)]
            for actor in actors:
                actor.process._clock = crew.clock

            async def whoever_gets(body: str) -> int:
                crew.clock.now += 1.0
                crew.send(item(body))
                async with asyncio.timeout(10):
                    while not any(crew.loads()):
                        await asyncio.sleep(0.001)
                return crew.loads().index(1)

            async def end(number: int, *answer: Any) -> None:
                crew.clock.now += 0.1
                crew.end(actors[number], *answer)
                async with asyncio.timeout(10):
                    while crew.lane.loop.held:
                        await asyncio.sleep(0.001)

            assert await whoever_gets("a") == 0
            await end(0)
            assert await whoever_gets("b") == 0
            await end(0, "failed", "no", "", "", 0)
            assert await whoever_gets("c") == 1  # it had none for longer
            await end(1, "failed", "no", "", "", 0)
            assert await whoever_gets("d") == 2
            await end(2)
            assert await whoever_gets("e") == 2
            await end(2, "failed", "no", "", "", 0)
            assert await whoever_gets("f") == 0
            await end(0)
            assert await whoever_gets("g") == 0
            await end(0)
            assert await whoever_gets("h") == 0
            actors[0].say(Kind.UNSTARTED, list(actors[0].process._handed))
            assert crew.loads() == [0, 1, 0]

        play(scene)


class TestSlots:
    def test_each_process_gets_as_many_as_it_has_slots_and_no_more(self) -> None:
        async def scene(crew: Crew) -> None:
            _, two = crew.add(group(threads=4, workers=2)), crew.add(group(threads=4, workers=2))
            crew.send(*map(item, "abcdefghij"))
            async with asyncio.timeout(10):
                while crew.loads() != [4, 4]:
                    await asyncio.sleep(0.001)
            for _ in range(3):
                crew.end(two)
            async with asyncio.timeout(10):
                while crew.loads() != [4, 3]:
                    await asyncio.sleep(0.001)

        play(scene)


class TestTheReserve:
    def test_follows_how_long_work_runs_and_not_a_moment_in_which_it_had_to_wait(self) -> None:
        async def scene(crew: Crew) -> None:
            crew.add(group(workers=1))
            reserves = []
            for run_times in ([0.001], [0.001, 0.1], [0.001, 0.001], [0.1, 0.1, 0.1]):
                for crew.lane.run_time in run_times:
                    crew.lane.adjust()
                    crew.clock.now += lane.RESIZE_EVERY / 2
                crew.lane.adjust()
                reserves.append(crew.lane._reserve)
            few, many = pace.reserve(1, 0.1, 0), pace.reserve(1, 0.001, 0)
            assert few < many / 10
            assert reserves == [1, many, many, few]

        play(scene)


class TestResting:
    def test_what_waits_behind_long_tasks_is_for_others_and_the_next_end_lets_it_receive_again(self) -> None:
        async def scene(crew: Crew) -> None:
            actor = crew.add(group(workers=1))
            crew.lane.run_time = 0.01
            crew.lane.adjust(at_once=True)
            crew.send(*map(item, "abc"))
            await crew.has(actor, "a")
            while crew.lane.loop.held < 3:
                await asyncio.sleep(0.001)
            crew.clock.now += lane.REST_AFTER / 2
            crew.lane.rest()
            assert crew.lane.loop.held == 3
            crew.clock.now += lane.REST_AFTER / 2
            crew.lane.rest()
            other = crew.broker.consumer(worker_queue("t"), reserve=1)
            for body in (b"b", b"c"):
                (found,) = await other.receive(limit=1)
                assert found.workitem.body == body
                await other.settle([Ended(found, Done(None))])
            crew.send(item("d"))
            await asyncio.sleep(0.05)
            assert crew.lane.loop.held == 1
            crew.end(actor)
            await crew.has(actor, "d")

        play(scene)

    @pytest.mark.parametrize("options", [{"prefetch": 3}, {}], ids=["held as the operator wants", "nothing waits"])
    def test_not_where(self, options: dict[str, Any]) -> None:
        async def scene(crew: Crew) -> None:
            actor = crew.add(group(workers=1, **options))
            crew.send(*map(item, "abc"))
            await crew.has(actor, "a")
            await asyncio.sleep(0.05)
            held = crew.lane.loop.held
            crew.clock.now += 2 * lane.REST_AFTER
            crew.lane.rest()
            await asyncio.sleep(0.05)
            assert crew.lane.loop.held == held == options.get("prefetch", 1)
            assert crew.lane._receiving is not None

        play(scene)

    def test_not_while_a_worker_process_is_replaced(self) -> None:
        async def scene(crew: Crew) -> None:
            actor = crew.add(group(workers=1))
            crew.lane.run_time = 0.01
            crew.lane.adjust(at_once=True)
            crew.send(*map(item, "abc"))
            await crew.has(actor, "a")
            while crew.lane.loop.held < 3:
                await asyncio.sleep(0.001)
            crew.die(actor)
            crew.clock.now += 2 * lane.REST_AFTER
            crew.lane.rest()
            await asyncio.sleep(0.05)
            assert crew.lane._receiving is not None
            assert {delivery.workitem.id for delivery in crew.lane._waiting} == {"a", "b", "c"}

        play(scene)


class TestSuspects:
    def test_one_that_was_there_at_a_crash_runs_alone(self) -> None:
        async def scene(crew: Crew) -> None:
            actor = crew.add(group(threads=3))
            crew.send(item("a"), item("b"))
            await crew.has(actor, "a", "b")
            crew.send(item("suspect", crashes=1), item("c"))
            await asyncio.sleep(0.05)
            crew.end(actor)
            await crew.has(actor, "b")  # nothing more, so that it is idle soon
            crew.end(actor)
            await crew.has(actor, "suspect")
            crew.end(actor)
            await crew.has(actor, "c")

        play(scene)

    def test_meanwhile_the_other_processes_go_on(self) -> None:
        async def scene(crew: Crew) -> None:
            one, other = crew.add(group(threads=2, workers=2)), crew.add(group(threads=2, workers=2))
            crew.send(*map(item, "abcd"))
            async with asyncio.timeout(10):
                while crew.loads() != [2, 2]:
                    await asyncio.sleep(0.001)
            crew.end(one)
            crew.send(item("suspect", crashes=1), item("e"), item("f"))
            await asyncio.sleep(0.05)
            assert crew.loads() == [1, 2]
            crew.end(other)
            await asyncio.sleep(0.05)
            assert crew.loads() == [1, 2]  # the other one has got "e"
            crew.end(one)
            await crew.has(one, "suspect")

        play(scene)


class TestInputs:
    def test_what_depends_on_more_than_a_worker_process_takes_fails_and_the_others_go_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lane, "MAX_HANDED_OVER", 1_000_000)

        async def scene(crew: Crew) -> None:
            store = crew.broker.store()
            crew.send(item("a"), item("b"))
            consumer = crew.broker.consumer(worker_queue("t"), reserve=2)
            lent = [*await consumer.receive(limit=2)]
            await consumer.settle([Ended(one, Done(Payload(bytes(600_000)))) for one in lent])
            await consumer.close()
            crew.send(item("much", after=("a", "b")), item("little", after=("a",)))

            actor = crew.add(group())
            await crew.has(actor, "little")

            async with asyncio.timeout(10):
                while (record := store.record("much")).state != State.FAILED:
                    await asyncio.sleep(0.001)
            assert record.attempts[0].error.startswith("the results that it depends on have 1 MiB together")

        play(scene)


class TestRecycling:
    def test_no_more_than_max_tasks_are_handed_over_and_the_end_is_announced_before_it_is_told(self) -> None:
        async def scene(crew: Crew) -> None:
            old = crew.add(group(max_tasks=2))
            crew.send(item("a"), item("b"), item("c"))
            await crew.has(old, "a")
            assert crew.recycled == []  # how long they run is not known yet
            crew.end(old)
            await crew.has(old, "b")
            assert crew.recycled == [(old.process, "max_tasks = 2")]
            crew.end(old)
            assert held(old) == [] and not old.process.usable
            assert Kind.STOP in old.told()

        play(scene)

    def test_a_successor_gets_nothing_before_the_old_one_has_ended(self) -> None:
        async def scene(crew: Crew) -> None:
            old = crew.add(group(max_tasks=1))
            crew.send(item("a"), item("b"))
            await crew.has(old, "a")
            new = crew.add(group(max_tasks=1))
            await asyncio.sleep(0.05)
            assert held(new) == []
            crew.end(old)
            await asyncio.sleep(0.05)
            assert held(new) == []  # it may still be in its teardown
            crew.die(old)
            await crew.has(new, "b")

        play(scene)

    def test_with_threads_it_works_while_the_last_ones_are_finished(self) -> None:
        async def scene(crew: Crew) -> None:
            old = crew.add(group(max_tasks=2, threads=2))
            crew.send(item("a"), item("b"), item("c"))
            await crew.has(old, "a", "b")
            new = crew.add(group(max_tasks=2, threads=2))
            await crew.has(new, "c")
            assert Kind.STOP not in old.told()

        play(scene)

    def test_a_process_that_has_grown_gets_nothing_more(self) -> None:
        async def scene(crew: Crew) -> None:
            old = crew.add(group(max_memory=1 << 20))
            crew.send(item("a"), item("b"))
            await crew.has(old, "a")
            crew.end(old)
            await asyncio.sleep(0.05)
            assert held(old) == []
            ((process, why),) = crew.recycled
            assert process is old.process and why.endswith("exceeds max_memory (1 MiB)")
            assert Kind.STOP in old.told()

        play(scene)
