"""When to notify of what was stored: at once, but for each queue so often only.

Each commit that notifies waits for all others that do, on the whole database server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable

from taskqueue.brokers.postgresql.rows import REPLIES
from taskqueue.errors import BrokerError

__all__ = ["Teller"]

log = logging.getLogger(__name__)
QUIET = 0.02  # seconds between two notifications of the same queue


class Teller:
    """Says which queues to notify of together with the statement that goes out now; of the others with a later one.

    Where none comes, it tells of them by itself.
    """

    def __init__(self, tell: Callable[[list[str]], Coroutine[object, object, None]]) -> None:
        self._tell = tell
        self._last: dict[str, float] = {}
        self._later: set[str] = set()
        self._telling: asyncio.Task[None] | None = None

    def now(self, queues: Iterable[str]) -> list[str]:
        """Those of `queues`, and of those that were left for later, that are to be told of now."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        found = []
        for queue in {*queues, *self._later}:
            if queue.startswith(REPLIES):  # one client, one result
                found.append(queue)
            elif now - self._last.get(queue, 0.0) >= QUIET:
                self._last[queue] = now
                self._later.discard(queue)
                found.append(queue)
            else:
                self._later.add(queue)
        self.later(())
        return found

    def later(self, queues: Iterable[str]) -> None:
        """Tell of `queues` in a moment."""
        self._later.update(queues)
        if self._later and self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell_later())

    async def _tell_later(self) -> None:
        try:
            while self._later:
                await asyncio.sleep(2 * QUIET)
                queues, self._later = sorted(self._later), set()
                now = asyncio.get_running_loop().time()
                self._last.update(dict.fromkeys(queues, now))
                try:
                    if queues:
                        await self._tell(queues)
                except BrokerError as error:
                    log.debug("%s: not notified of %s; polling finds it", error, ", ".join(queues))
        finally:
            self._telling = None

    async def close(self) -> None:
        """Tells what is still to be told."""
        if self._telling is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.shield(self._telling)
            if self._telling is not None:
                self._telling.cancel()
