"""Tasks for tests of the client."""

from __future__ import annotations

import asyncio
import enum
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
