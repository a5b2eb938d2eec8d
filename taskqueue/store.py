"""The contract of what knows every workitem's state, history and result.

A broker that is a store gives one by `Broker.store`; others raise Unsupported.  Every implementation passes
`taskqueue.testing.StoreContract`.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Sequence
from typing import Protocol

from taskqueue.lifecycle import State
from taskqueue.record import Record
from taskqueue.statistics import Tally
from taskqueue.upkeep import Keeping, Round

__all__ = ["Bell", "Store", "sender"]


def sender() -> str:
    """Who this process is, as a record says who sent a workitem: user@host:pid."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in many containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


class Bell(Protocol):
    """Rings when workitems end.  Not to be waited at by two threads at once."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until something ended, or may have, since the bell was made or the last call returned.

        timeout: seconds; None: for ever.  False where time ran out, or the bell was closed.  Blocks by the backend's
        own means, and may raise BrokerUnavailable.
        """

    def close(self) -> None:
        """Let go of it, from any thread: a `wait` that goes on ends.  May be called twice."""


class Store(Protocol):
    """Answers questions about workitems.  Plain calls, from any thread; any may raise BrokerUnavailable.

    Where an id was used more than once, because a dead letter was requeued, it is the latest life that is meant.
    """

    def record(self, id: str) -> Record:
        """All that is known of a workitem.  Raises UnknownTask for an id that never was, or is not kept any more."""

    def history(
        self, *, reference: str = "", type: str = "", states: Sequence[State] = (), limit: int = 100
    ) -> list[Record]:
        """Workitems, the latest that was sent first: those of a reference, a type, in one of some states.

        Empty: of any.
        """

    def wait(self, id: str, *, timeout: float | None) -> Record:
        """Wait until a workitem has ended, up to `timeout` seconds (None: for ever); its record as it is then.

        Raises UnknownTask.
        """

    def ended(self, ids: Sequence[str]) -> dict[str, Record | None]:
        """The records of those that have ended; None for ids that never were, or are not kept any more.

        What has not ended is not in it.
        """

    def bell(self) -> Bell:
        """A new bell, to be closed by whoever asked for it.

        Who makes it, then asks (`ended`), then waits, and asks again, misses nothing.
        """

    def count(self, type: str) -> int:
        """How many workitems of `type` have neither ended, nor are lent to a carrier."""

    def discard(self, type: str) -> int:
        """Cancel all workitems of `type` that have neither ended, nor are lent to a carrier; how many there were.

        In small steps, each of them whole, the latest that was sent first: so none fails because of another of them.
        """

    def cancel(self, id: str) -> bool:
        """Have a workitem end for good, without a result or a dead letter; False where it has ended.

        At once where it waits, for whatever.  What a carrier has is only wished to end, and that is stored: its handler
        is told, then its worker process is terminated, then killed; and it is never lent again, whatever becomes of
        carrier or host.  Where its handler succeeds before that, it has succeeded.  Raises UnknownTask.
        """

    def statistics(self, *, type: str = "", since: float = 0.0) -> list[Tally]:
        """What ended since the hour of `since` (POSIX seconds), by type and hour; what ended just now is in it.

        type: of this one alone; empty: of all.
        """

    def maintain(self, keeping: Keeping) -> Round:
        """Do what has to be done now and then, until there is nothing left of it.

        Has what dead carriers had lent again, drops what need not be kept, makes statistics of the hours that are over,
        finds what waits for nothing that has not ended, and ends what somebody wants no more.  A result that a workitem
        which has not ended depends on is kept; so is one that a dead letter depends on.
        In small steps that keep nobody waiting for long, each of them whole: it may be killed at any moment, and done
        by several at once, of which all but one say that they were not needed.  `close` ends it, from any thread; it
        raises BrokerError then.
        """

    def close(self) -> None:
        """Let go of the store.  May be called twice."""
