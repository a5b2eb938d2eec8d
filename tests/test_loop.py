"""The one loop moves deliveries to a handler and outcomes back."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.broker import Delivery, Ended, connect
from taskqueue.brokers.memory import MemoryBroker
from taskqueue.loop import Loop
from taskqueue.outcome import Done
from taskqueue.testing.bench import within
from taskqueue.workitem import Workitem


def filled(count: int) -> MemoryBroker:
    broker = connect("memory://")
    assert isinstance(broker, MemoryBroker)
    broker.producer().send([Workitem(body=b"", type="any", id=str(n)) for n in range(count)])
    return broker


def test_it_holds_no_more_than_its_reserve_and_goes_on_as_work_ends() -> None:
    async def test() -> None:
        broker = filled(20)
        held: list[Delivery] = []

        async def handle(deliveries: list[Delivery]) -> None:
            held.extend(deliveries)

        loop = Loop(broker.consumer("worker_any", reserve=3), handle, reserve=3)
        running = asyncio.create_task(loop.run())
        while loop.settled < 20:
            await asyncio.sleep(0)
            assert loop.held <= 3
            if held:
                loop.end(Ended(held.pop(0), Done(None)))
        running.cancel()
        await loop.settled_all()
        assert (loop.held, loop.settled, loop.discarded) == (0, 20, 0)

    within(test())


def test_what_was_taken_is_handled_also_when_it_is_stopped_at_that_moment() -> None:
    async def test() -> None:
        handled: list[Delivery] = []
        begun = asyncio.Event()

        async def handle(deliveries: list[Delivery]) -> None:
            begun.set()
            await asyncio.sleep(0)
            handled.extend(deliveries)

        loop = Loop(filled(1).consumer("worker_any", reserve=1), handle, reserve=1)
        running = asyncio.create_task(loop.run())
        await begun.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(0)
        assert [delivery.workitem.id for delivery in handled] == ["0"]

    within(test())


def test_what_settling_raises_ends_it() -> None:
    class Broken:
        def __init__(self, delivery: Delivery) -> None:
            self.deliveries = [delivery]

        async def receive(self, *, limit: int) -> list[Delivery]:
            if not self.deliveries:
                await asyncio.Event().wait()
            return [self.deliveries.pop()]

        async def settle(self, ended: list[Ended]) -> list[bool]:
            raise ZeroDivisionError

    async def test() -> None:
        (delivery,) = await filled(1).consumer("worker_any", reserve=1).receive(limit=1)

        async def handle(deliveries: list[Delivery]) -> None:
            loop.end(Ended(deliveries[0], Done(None)))

        loop = Loop(Broken(delivery), handle, reserve=1)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            await loop.run()
        with pytest.raises(ZeroDivisionError):
            await loop.settled_all()

    within(test())
