"""What a worker manager is elsewhere, in an event loop of a program: it has a carrier, and workers of one group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import Protocol

from taskqueue.clock import SYSTEM
from taskqueue.config import Group
from taskqueue.errors import BrokerUnavailable, PluginError
from taskqueue.workerpool.processes import GRACE, Carrier

__all__ = ["Carrying", "Manager", "Workers"]

log = logging.getLogger(__name__)


class Carrying(Carrier, Protocol):
    """The carrier, in this event loop or in a process of its own."""

    async def run(self) -> None:
        """Work until drained.  Raises what went wrong inside."""

    def drain(self, *, hard: bool = False) -> None:
        """Take nothing new, have everything finished, and end.  hard: what runs is not waited for."""

    async def close(self) -> None:
        """Give back what is held, at once."""


class Workers(Protocol):
    """Those who run the workitems: worker processes, or threads.

    there: whether there are any.  trouble: why they don't start, or stay up; empty: they do.
    """

    @property
    def there(self) -> bool: ...
    @property
    def trouble(self) -> str: ...

    def act(self) -> float | None:
        """Start what is missing; the seconds after which to look again."""

    def reap(self, *, stopping: bool) -> None:
        """Take note of those that have ended.  stopping: they are wanted to."""

    def retire(self) -> None:
        """The carrier tells all to end."""

    def kill(self) -> None:
        """End all at once."""

    def kill_one(self, pid: int, number: signal.Signals) -> None:
        """End one, by this signal."""

    def close(self) -> None:
        """All have ended: let go of what belongs to them."""

    # What the carrier says, as `taskqueue.workerpool.processes.Processes` has it.

    def is_up(self, pid: int) -> None: ...
    def is_down(self, name: str, error: str, traceback: str) -> None: ...
    def has_worked(self, pid: int, name: str) -> None: ...
    def is_recycled(self, pid: int) -> None: ...


class Manager:
    """Of one group.

    carrier: makes its carrier, in this event loop or not.
    workers: makes those of the group, who work for a carrier and call back when there is something to do.
    ready: called with None once somebody is there to work, or with why nobody can be.
    """

    def __init__(
        self,
        group: Group,
        carrier: Callable[[Manager], Carrying],
        workers: Callable[[Carrying, Callable[[], None]], Workers],
        ready: Callable[[BaseException | None], None],
    ) -> None:
        self._group = group
        self._ready = ready
        self._began = False  # whether that was called
        self._wake = asyncio.Event()
        self._killing_at: float | None = None
        self._trouble = ""
        self._carrier = carrier(self)
        self._workers = workers(self._carrier, self._wake.set)

    async def run(self) -> None:
        """Work until `stop`, and then until all that was taken is settled.

        Raises what went wrong in the carrier; BrokerUnavailable where it can't settle what was taken, in time.
        """
        working = asyncio.create_task(self._carrier.run())
        working.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                self._wake.clear()
                self._workers.reap(stopping=self._killing_at is not None)
                if working.done():
                    working.result()
                    if not self._workers.there:
                        return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._act()):
                        await self._wake.wait()
        except BaseException:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(GRACE):
                    await self._give_up()
            raise
        finally:
            self._workers.close()

    def _act(self) -> float | None:
        """Do what there is to do; the seconds after which to look again."""
        if not self._began and self._workers.trouble:
            self._begin(PluginError(self._workers.trouble))
            self.stop(hard=True)
        if self._killing_at is None:
            return self._workers.act()
        left = self._killing_at - SYSTEM.monotonic()
        if left > 0:
            return left
        if not self._workers.there:  # it is the carrier that does not end: as long as it can't settle what has ended
            raise BrokerUnavailable(f"{self._trouble or 'the broker does not answer'}; what was taken is done again")
        self._workers.kill()
        return 1.0

    def _begin(self, trouble: BaseException | None) -> None:
        if not self._began:
            self._began = True
            self._ready(trouble)

    async def _give_up(self) -> None:
        """After a fault: leave nothing behind in a program that goes on."""
        self._workers.kill()
        while True:
            self._wake.clear()
            self._workers.reap(stopping=True)
            if not self._workers.there:
                break
            await self._wake.wait()
        await self._carrier.close()

    def stop(self, *, hard: bool = False) -> None:
        """Take nothing new, and have what runs finished within `stop_timeout`; hard: at once.  May be called twice."""
        self._killing_at = SYSTEM.monotonic() + (0.0 if hard else self._group.stop_timeout) + GRACE
        self._workers.retire()
        self._carrier.drain(hard=hard)
        self._wake.set()

    # What the carrier says.

    def up(self, pid: int) -> None:
        self._workers.is_up(pid)
        self._begin(None)

    def down(self, group: str, error: str, traceback: str) -> None:
        self._workers.is_down(group, error, traceback)

    def worked(self, pid: int, group: str) -> None:
        self._workers.has_worked(pid, group)

    def recycle(self, pid: int) -> None:
        self._workers.is_recycled(pid)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        self._workers.kill_one(pid, number)

    def bereaved(self) -> None:
        """The carrier is dead, and will be replaced: what its workers do is done again."""
        self._workers.retire()
        self._workers.kill()

    def when_seen(self, then: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(then)

    def said(self, name: str, level: int, text: str) -> None:
        logging.getLogger(name).log(level, "%s", text)

    def troubled(self, trouble: str) -> None:
        self._trouble = trouble

    def shown(self, doing: str) -> None:
        pass
