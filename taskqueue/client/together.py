"""Many tasks together: all of their values, or one after the other as they come."""

from __future__ import annotations

import asyncio
import functools
import itertools
import queue as queues
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from taskqueue.client.deferred import Deferred
from taskqueue.errors import ResultTimeout

__all__ = ["Gathered", "as_completed", "progress"]

T = TypeVar("T")


class Gathered(Generic[T]):
    """The values of several tasks, in order.  Can be awaited."""

    def __init__(self, deferreds: Sequence[Deferred[T]]) -> None:
        self.deferreds = tuple(_checked(deferreds))

    def result(self, timeout: float | None = None) -> list[T]:
        """Wait up to `timeout` seconds (None: for ever) for all of them.

        Raises what the first in order that has no value raises: see `Deferred.result`.
        """
        want(self.deferreds)
        deadline = _deadline(timeout)
        return [each.result(_left(deadline)) for each in self.deferreds]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all have ended, up to `timeout` seconds (None: for ever); whether they have."""
        want(self.deferreds)
        deadline = _deadline(timeout)
        return all(each.wait(_left(deadline)) for each in self.deferreds)

    def done(self) -> bool:
        """Whether all have ended."""
        return all(each.done() for each in self.deferreds)

    def __await__(self) -> Generator[Any, None, list[T]]:
        yield from asyncio.get_running_loop().run_in_executor(None, want, self.deferreds).__await__()
        found = []
        for each in self.deferreds:
            found.append((yield from each.__await__()))
        return found

    def __iter__(self) -> Iterator[Deferred[T]]:
        return iter(self.deferreds)

    def __len__(self) -> int:
        return len(self.deferreds)

    def __repr__(self) -> str:
        return f"<Gathered: {len(self.deferreds)} tasks>"


def want(deferreds: Iterable[Deferred[Any]]) -> None:
    """Have all of these told of their ends: together, not one by one."""
    by_queue: dict[int, list[Deferred[Any]]] = {}
    for each in deferreds:
        if not each.has_ended:
            by_queue.setdefault(id(each.queue), []).append(each)
    for some in by_queue.values():
        some[0].queue.ends.want(some)


def as_completed(deferreds: Iterable[Deferred[T]], timeout: float | None = None) -> Iterator[Deferred[T]]:
    """Each of them, as soon as it has ended.

    Raises ResultTimeout when `timeout` seconds from this call on are over before the last.
    """
    return _Completed(_checked(deferreds), timeout)


class _Completed(Iterator[Deferred[T]]):
    def __init__(self, deferreds: Sequence[Deferred[T]], timeout: float | None) -> None:
        self.count = len(deferreds)
        self._found = _completed(deferreds, timeout, _deadline(timeout))

    def __next__(self) -> Deferred[T]:
        return next(self._found)


def _completed(waiting: Sequence[Deferred[T]], timeout: float | None, deadline: float | None) -> Iterator[Deferred[T]]:
    over: queues.SimpleQueue[Deferred[T]] = queues.SimpleQueue()
    told = [(each, functools.partial(over.put, each)) for each in waiting]
    for each, tell in told:
        each.tell(tell)
    try:
        want(waiting)
        for _ in waiting:
            try:
                found = over.get(timeout=_left(deadline))
            except queues.Empty:
                late = next((each for each in waiting if not each.has_ended), None)
                if late is not None:
                    raise ResultTimeout(late.id, timeout or 0.0) from None
                found = over.get()  # just now
            yield found
    finally:
        for each, tell in told:
            if not each.has_ended:
                each.untell(tell)


@overload
def progress(tasks: Deferred[T], description: str = "") -> Iterator[Deferred[T]]: ...
@overload
def progress(tasks: Iterable[T], description: str = "") -> Iterator[T]: ...
def progress(tasks: Any, description: str = "") -> Iterator[Any]:
    """Pass on deferreds as they end, or the values of `map` as they come; with a bar where there is a terminal.

    tasks: any number of deferreds, or one; what `gather`, `as_completed` or `map` returned.
    """
    import tqdm  # which nobody shall wait for who draws no bar

    found, total = _passing(tasks)
    # None: where there is no terminal there is no bar.
    yield from tqdm.tqdm(found, total=total, desc=description or None, disable=None, unit="task")


def _passing(tasks: Any) -> tuple[Iterable[Any], int | None]:
    """What to pass on as it comes, and how many there will be; None: nobody knows."""
    if isinstance(tasks, Deferred):
        return as_completed([tasks]), 1
    if isinstance(tasks, _Completed):
        return tasks, tasks.count
    if hasattr(tasks, "__len__"):
        items = list(tasks)
    else:
        first = list(itertools.islice(rest := iter(tasks), 1))
        if not isinstance(first[0] if first else None, Deferred):
            return itertools.chain(first, rest), None
        items = [*first, *rest]
    return as_completed(items) if all(isinstance(each, Deferred) for each in items) else items, len(items)


def _checked(deferreds: Iterable[Deferred[T]]) -> list[Deferred[T]]:
    found = list(deferreds)
    for each in found:
        if not isinstance(each, Deferred):
            raise TypeError(f"{each!r} is no Deferred (a task with ignore_result=True has none)")
    return found


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None or timeout > threading.TIMEOUT_MAX else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
