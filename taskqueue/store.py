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

__all__ = ["Store", "sender"]


def sender() -> str:
    """Who this process is, as a record says who sent a workitem: user@host:pid."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in many containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


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

    def cancel(self, id: str) -> bool:
        """Take a workitem out of its queue for good; False where it has ended, or a worker process has it.

        Raises UnknownTask.
        """

    def statistics(self, *, type: str = "", since: float = 0.0) -> list[Tally]:
        """What ended since the hour of `since` (POSIX seconds), by type and hour; what ended just now is in it.

        type: of this one alone; empty: of all.
        """

    def maintain(self, keeping: Keeping) -> Round:
        """Do what has to be done now and then, until there is nothing left of it.

        Has what dead carriers had lent again, drops what need not be kept, makes statistics of the hours that are over.
        In small steps that keep nobody waiting for long, each of them whole: it may be killed at any moment, and done
        by several at once, of which all but one say that they were not needed.  `close` ends it, from any thread; it
        raises BrokerError then.
        """

    def close(self) -> None:
        """Let go of the store.  May be called twice."""
