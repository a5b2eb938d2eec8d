"""What the tests of dependencies do again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskqueue.broker import Delivery, Ended
from taskqueue.dead import requeued
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Outcome, Payload, Release, Retry, Rules
from taskqueue.record import DEPENDENCY, Record
from taskqueue.testing.bench import RULES, TYPE, Bench, item
from taskqueue.testing.recorded import RUN
from taskqueue.workitem import Workitem, worker_queue

__all__ = [
    "LATER",
    "ONE",
    "assert_failed_by",
    "blocked_on",
    "finish",
    "later",
    "nothing_comes",
    "nothing_in",
    "peek",
    "requeue",
]

LATER = "contract.later"
"""The type of what depends on others, where they are to be told apart."""
ONE = Done(Payload(b"1"))


def later(id: str, *after: str, on_error: str = "", **properties: Any) -> Workitem:
    """A workitem of another type that depends on others."""
    headers = {"on_error": on_error} if on_error else {}
    return item(id=id, type=LATER, after=after, headers=headers, **properties)


def blocked_on(*ids: str) -> Retry:
    """It was found to depend on these, too."""
    return Retry(0.0, "not yet", "nothing", ids)


def assert_failed_by(record: Record, error: str) -> None:
    """That it ended without having run, for this reason."""
    (attempt,) = record.attempts
    assert (record.state, attempt.outcome, attempt.error) == (State.FAILED, DEPENDENCY, error)
    assert (attempt.number, attempt.run, attempt.again, record.result) == (1, None, None, None)
    assert record.ended is not None and record.ended >= record.sent


def finish(
    bench: Bench,
    outcomes: Mapping[str, Outcome | None],
    rules: Rules = RULES,
    *,
    type: str = TYPE,
    run: bool = False,
) -> None:
    """Receive until all of these are there, and settle them, in that order; what has no outcome is given back."""

    async def work() -> None:
        broker = bench.another()
        consumer = broker.consumer(worker_queue(type), reserve=10)
        lent: dict[str, Delivery] = {}
        while not lent.keys() >= outcomes.keys():
            lent |= {delivery.workitem.id: delivery for delivery in await consumer.receive(limit=10)}
        ended = [Ended(lent[id], outcome, rules, RUN if run else None) for id, outcome in outcomes.items() if outcome]
        assert await consumer.settle(ended) == [True] * len(ended)
        await broker.close()

    bench.run_once(work)


def peek(bench: Bench, type: str, count: int = 1) -> Sequence[Delivery]:
    """Be lent the first ones, and give them back."""

    async def work() -> list[Delivery]:
        broker = bench.another()
        found = await bench.lent(broker.consumer(worker_queue(type), reserve=count), count)
        await broker.close()
        return found

    return bench.run_once(work)


def nothing_comes(bench: Bench, type: str) -> bool:
    """Whether nothing is lent to workers of `type`."""
    return nothing_in(bench, worker_queue(type))


def nothing_in(bench: Bench, queue: str) -> bool:
    """Whether nothing can be had from `queue`."""

    async def work() -> bool:
        broker = bench.another()
        nothing = await bench.nothing_comes(broker.consumer(queue, reserve=1))
        await broker.close()
        return nothing

    return bench.run_once(work)


def requeue(bench: Bench) -> None:
    """Requeue all dead letters."""

    async def work() -> None:
        broker = bench.another()
        view = broker.dead_letters()
        letters: list[Delivery] = []
        for _ in range(2):  # what is looked at and left stays as it was
            letters = [delivery async for delivery in view.look()]
            assert await view.settle([Ended(letter, Release()) for letter in letters]) == [True] * len(letters)
        assert letters
        ended = [Ended(letter, requeued(letter.workitem)) for letter in letters]
        assert await view.settle(ended) == [True] * len(letters)
        await view.close()
        await broker.close()

    bench.run_once(work)
