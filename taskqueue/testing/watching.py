"""How every broker says whether it is reached."""

from __future__ import annotations

import asyncio

from taskqueue.testing.bench import Bench, item

__all__ = ["WatchingContract"]


class WatchingContract:
    """Sentences about `watch`."""

    def test_watch_says_that_the_broker_is_reached_though_nothing_is_consumed(self, bench: Bench) -> None:
        async def test() -> list[str]:
            told: asyncio.Queue[str] = asyncio.Queue()
            bench.broker.watch(told.put_nowait)
            return [await told.get()]

        assert bench.run(test) == [""]

    def test_watch_says_it_once_and_says_nothing_of_the_end(self, bench: Bench) -> None:
        told: list[str] = []

        async def test() -> None:
            reached = asyncio.Event()

            def heard(trouble: str) -> None:
                told.append(trouble)
                reached.set()

            bench.broker.watch(heard)
            await reached.wait()
            consumer = bench.consumer()
            await asyncio.to_thread(bench.send, item())
            await bench.lent(consumer, 1)
            await bench.broker.close()
            await asyncio.sleep(0)

        bench.run(test)
        assert told == [""]

    def test_a_broker_that_is_watched_can_be_closed_before_it_is_reached(self, bench: Bench) -> None:
        async def test() -> None:
            bench.broker.watch(lambda trouble: None)
            await bench.broker.close()

        bench.run(test)
