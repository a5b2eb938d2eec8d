"""A store's chores: in a thread beside the carrier's event loop, over a connection of their own, now and then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from dataclasses import asdict

from taskqueue.errors import BrokerError
from taskqueue.store import Store
from taskqueue.upkeep import Keeping

__all__ = ["Chores"]

log = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two rounds


class Chores:
    """Begins at once.  keeping: what is to be kept."""

    def __init__(self, store: Store, keeping: Keeping) -> None:
        self._keeping = keeping
        self._store = store
        self._wake = asyncio.Event()
        self._doing = asyncio.get_running_loop().create_task(self._do())
        self._doing.add_done_callback(lambda task: task.cancelled() or task.result())  # not in silence

    def keep(self, keeping: Keeping) -> None:
        """From now on this is to be kept; where it is news, the next round begins at once."""
        if keeping != self._keeping:
            self._keeping = keeping
            self._wake.set()

    async def _do(self) -> None:
        failed = False
        while True:
            self._wake.clear()
            try:
                done = await asyncio.to_thread(self._store.maintain, self._keeping)
            except BrokerError as error:
                log.log(logging.DEBUG if failed else logging.WARNING, "%s; chores are done later", error)
                failed = True
            else:
                failed = False
                if not (done.idle or done.busy):
                    log.info("chores: %s", ", ".join(f"{n} {name}" for name, n in asdict(done).items() if n))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY * (0.75 + random.random() / 2)):
                    await self._wake.wait()

    async def close(self) -> None:
        """End them, in the middle of a round, too."""
        self._doing.cancel()
        self._store.close()
        with contextlib.suppress(asyncio.CancelledError):
            await self._doing
