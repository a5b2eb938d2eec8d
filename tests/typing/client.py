"""What type checkers say of the client; tests/test_types.py has them read it.  Nothing here is run."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import assert_type

import taskqueue

space = taskqueue.TaskSpace("shop")


class Colour(enum.Enum):
    RED = 1


@space.task
def num(value: int) -> int:
    return value


@space.task(retries=3, retry_on=OSError)
def paint(colour: Colour, *, twice: bool = False) -> str:
    return colour.name


@space.task
async def later(value: int) -> float:
    return float(value)


@space.task
def add(numbers: list[int]) -> int:
    return sum(numbers)


class Stock:
    def take(self, count: int) -> bool:
        return count > 0


take = space.expose(Stock().take)
queue = taskqueue.connect("memory://", retries=3)

assert_type(num(5), int)
assert_type(paint(Colour.RED, twice=True), str)
assert_type(queue.submit(num, 5), taskqueue.Deferred[int])
assert_type(queue.submit(num, 5).result(), int)
assert_type(queue.submit(paint, Colour.RED, twice=True).result(timeout=1), str)
assert_type(queue.submit(later, 5).result(), float)
assert_type(queue.submit(take, 5).value, bool)
assert_type(queue.options(priority=3).submit(num, 5).result(), int)
assert_type(queue.submit(num, 5).then(num), taskqueue.Deferred[int])
assert_type(queue.map(num, [1, 2]), Iterator[int])
assert_type(queue.submit(num, queue.submit(num, 5).argument).result(), int)


async def awaited() -> None:
    assert_type(await queue.submit(num, 5), int)


queue.submit(num, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
queue.submit(num)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
queue.submit(paint, Colour.RED, thrice=True)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
queue.submit(later, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
queue.options(prioriti=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
space.task(retrys=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
taskqueue.connect("memory://", "default", colour=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
