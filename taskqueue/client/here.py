"""What a queue has in one process: after a fork the child has its own, for threads and locks don't come along."""

from __future__ import annotations

import os
import threading

from taskqueue import broker
from taskqueue.client.callbacks import Callbacks
from taskqueue.client.ends import Ends
from taskqueue.client.hearing import ReplyEnds, StoreEnds
from taskqueue.store import Store

__all__ = ["Here"]


class Here:
    """The two ends of a broker, and who hears of the ends of tasks.

    lock: held while a Deferred changes.  callbacks: who calls what is to be called then.
    parent: that of the process before the fork; it is left alone, but not let go of either: its connections, closed
    here, would end there.
    """

    def __init__(self, broker: broker.Broker, parent: Here | None = None) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()  # what Python cleans up may need it in any thread, also in one that has it
        self.callbacks = Callbacks()
        self._ends: Ends | None = None
        self.producer = broker.producer(self._wants)
        self._ends = self._new_ends(broker)
        self._broker = broker
        self._parent = parent
        self._opening = threading.Lock()
        self._store: Store | None = None

    def _new_ends(self, broker: broker.Broker) -> Ends:
        return StoreEnds(lambda: self.store) if broker.capabilities.store else ReplyEnds(self.producer)

    @property
    def ends(self) -> Ends:
        """Who hears of the ends of tasks."""
        assert self._ends is not None
        return self._ends

    def _wants(self, id: str) -> bool:
        return self._ends is not None and self._ends.has(id)

    @property
    def store(self) -> Store:
        """What knows every workitem.  Raises Unsupported."""
        with self._opening:
            if self._store is None:
                self._store = self._broker.store()
            return self._store

    def close(self) -> None:
        """Let go of the broker; what is used again is connected again."""
        ends, self._ends = self.ends, self._new_ends(self._broker)
        ends.close()
        self.producer.close()
        with self._opening:
            store, self._store = self._store, None
        if store is not None:
            store.close()
        ends.abandon()
