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

    def close(self) -> None:
        """Let go of the store.  May be called twice."""
