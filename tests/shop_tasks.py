"""Tasks for tests of the client."""

from __future__ import annotations

import asyncio
import enum
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import taskqueue

space = taskqueue.TaskSpace("shop")
gate = threading.Event()
"""What `wait` waits for, where tasks run in threads of the test."""


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Order:
    number: int
    colours: tuple[Colour, ...] = ()


@space.task
def num(value: int) -> int:
    return value


@space.task
def add(numbers: list[int]) -> int:
    return sum(numbers)


@space.task
def plus(a: int, b: int = 1) -> int:
    return a + b


@space.task
def fail(what: str = "on purpose") -> None:
    raise ValueError(what)


@space.task
async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value + taskqueue.current().attempt


@space.task
def wait(value: int = 0) -> int:
    assert gate.wait(60)
    return value


@space.task(time_limit=0.3)
def limited() -> int:
    assert gate.wait(60)
    return 1


@space.task
def repaint(order: Order) -> Order:
    return Order(order.number + 1, (*order.colours, Colour.RED))


@space.task
def same(value: Any) -> Any:
    return value


@space.task(retries=2, retry_on=OSError)
def flaky(times: int) -> int:
    attempt = taskqueue.current().attempt
    if attempt <= times:
        raise OSError("not yet")
    return attempt


@space.task(retries=5, retry_on=OSError)
def other_error() -> None:
    raise ValueError(f"attempt {taskqueue.current().attempt}")


@space.task
def attempts() -> None:
    raise ValueError(f"attempt {taskqueue.current().attempt}")


@space.task(on_error="pass")
def name_of(value: Any) -> str:
    if isinstance(value, taskqueue.TaskFailure):
        return f"TaskFailure of {value.task or value.id} in {value.queue}: {value.error}"
    return f"{type(value).__name__}: {value}"


@space.task(id=lambda order: f"invoice-{order}")
def invoice(order: int) -> int:
    return wait(order)


@space.task(ignore_result=True)
def quiet() -> int:
    return 7


@space.task
def until_cancelled() -> None:
    while True:
        taskqueue.current().check()
        time.sleep(0.01)


@space.task
async def sleep() -> None:
    await asyncio.sleep(3600)


@space.task
def named_oddly(self: int, function: int = 0) -> list[int]:
    return [self, function]


@dataclass(frozen=True)
class Strict:
    value: Any

    def __post_init__(self) -> None:
        if self.value is None:
            raise ValueError("no value")


@space.task
def strict(id: str) -> Strict:
    return Strict(taskqueue.Deferred(id, None))


@space.task
def unwrap(value: Strict) -> Any:
    return value.value


@space.task
def promise(id: str) -> Any:
    return taskqueue.Deferred(id, None)


@space.task
def promises(ids: list[str]) -> list[Any]:
    return [taskqueue.Deferred(id, None, "shop.num") for id in ids]


class Stock:
    def __init__(self) -> None:
        self.pieces = 10

    def take(self, pieces: int) -> int:
        self.pieces -= pieces
        return self.pieces


stock = Stock()
take = space.expose(stock.take)


@dataclass(frozen=True)
class Parts:
    first: Any
    others: Any


@space.task
def weigh(parts: Parts) -> int:
    return parts.first + sum(parts.others)  # type: ignore[no-any-return]


@space.task
def halfway() -> None:
    taskqueue.current().progress(1, 2, "halfway")
    until_cancelled()


@space.task(retries=5)
def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    taskqueue.current().progress(1)
    while True:
        time.sleep(1)


@space.task(priority=7, reference="order:1", retries=1, result_timeout=5)
def particular() -> int:
    return taskqueue.current().attempt


@space.task
def leave() -> None:
    raise SystemExit(taskqueue.current().attempt)


called: list[int] = []


@space.task
def once(value: int) -> int:
    called.append(value)
    return wait(value)


@space.task(time_limit=0.3)
def look_late(value: int) -> None:
    wait()
    called.append(value if taskqueue.current().cancelled else -1)


coroutines = taskqueue.TaskSpace("lines")


@coroutines.task(time_limit=0.3)
async def patient() -> None:
    await asyncio.sleep(3600)


@coroutines.task(time_limit=0.3)
async def blocking() -> None:
    time.sleep(10)


@coroutines.task
async def once_more(value: int) -> int:
    called.append(value)
    await asyncio.sleep(1)
    return value


@space.task
def slowly(value: int) -> int:
    time.sleep(0.5)
    return value


@space.task
def say(done: Any, note: str = "") -> None:
    taskqueue.current().progress(done, 10, note)
