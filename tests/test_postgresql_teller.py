"""When carriers are notified of what was stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from taskqueue.brokers.postgresql.rows import REPLIES
from taskqueue.brokers.postgresql.teller import QUIET, Teller


def play(scene: Callable[[Teller], Awaitable[None]]) -> list[list[str]]:
    """What the teller told of by itself."""
    told: list[list[str]] = []

    async def tell(queues: list[str]) -> None:
        told.append(queues)

    async def run() -> None:
        teller = Teller(tell)
        await scene(teller)
        await teller.close()

    asyncio.run(run())
    return told


def test_a_queue_is_told_of_at_once_and_then_only_so_often() -> None:
    async def scene(teller: Teller) -> None:
        assert teller.now(["a"]) == ["a"]
        assert teller.now(["a"]) == []
        assert sorted(teller.now(["a", "b"])) == ["b"]
        assert teller.now([f"{REPLIES}x"]) == teller.now([f"{REPLIES}x"]) == [f"{REPLIES}x"]

    assert play(scene) == [["a"]]


def test_what_is_left_for_later_goes_along_with_a_later_statement() -> None:
    async def scene(teller: Teller) -> None:
        teller.now(["a"])
        teller.now(["a"])
        teller.later(["b"])
        found: list[str] = []
        async with asyncio.timeout(10):
            while len(found) < 2:
                found += teller.now(["c"])
                found = [queue for queue in found if queue != "c"]
                await asyncio.sleep(QUIET / 10)
        assert sorted(found) == ["a", "b"]

    assert ["a"] not in play(scene)


def test_where_no_other_statement_comes_it_is_told_of_by_itself() -> None:
    async def scene(teller: Teller) -> None:
        teller.later(["b", "a"])

    assert play(scene) == [["a", "b"]]
