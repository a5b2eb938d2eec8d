"""Who has worker processes, as each of them sees it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from taskqueue.broker import Delivery, Ended
from taskqueue.carrier.verdicts import Verdict
from taskqueue.record import Run

if TYPE_CHECKING:
    from taskqueue.carrier.worker_process import WorkerProcess

__all__ = ["Cut", "Owner"]


class Owner(Protocol):
    """Who has worker processes; told what they say."""

    def ready(self, process: WorkerProcess) -> None:
        """Its plugin is loaded; it waits for work."""

    def broken(self, process: WorkerProcess, error: str, traceback: str) -> None:
        """Its plugin did not load; it ends."""

    def ticket(self, process: WorkerProcess, delivery: Delivery) -> dict[str, Any] | None:
        """What it needs to end a delivery by itself; None where it can't."""

    def ended(self, process: WorkerProcess, ended: Ended, seconds: float) -> None:
        """It is through with a workitem, which ran for `seconds`."""

    def worked(self, process: WorkerProcess) -> None:
        """It has brought a workitem to its end, or to its time limit, for the first time."""

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        """These were handed over and will not be started there."""

    def stopping(self, process: WorkerProcess) -> None:
        """It has nothing left, and was told to end."""

    def said(self, process: WorkerProcess, name: str, level: int, text: str) -> None:
        """It logged something."""

    def mute(self, process: WorkerProcess, reason: str) -> None:
        """Its socket ended, or it spoke nonsense."""

    def over_limit(self, process: WorkerProcess, what: str) -> None:
        """A workitem runs longer than the group's time limit, or memory is over the limit; it is condemned."""

    def left_alone(self, process: WorkerProcess, what: str, seen: Callable[[], None]) -> None:
        """A workitem runs longer than its time limit, and nobody can be killed for it: it ends without its handler.

        seen: to be called once the program whose threads they are is seen to run, which may be held up.
        """

    def unwanted(self, process: WorkerProcess, number: signal.Signals) -> None:
        """A workitem that was cancelled goes on: all of its process group is to get this signal; it is condemned."""


class Cut(NamedTuple):
    """A workitem that a worker process was running when it died.

    verdict: what it was killed for, if it was.  completing: see Ended.
    """

    delivery: Delivery
    verdict: Verdict | None
    run: Run
    log: tuple[str, ...]
    completing: bool
