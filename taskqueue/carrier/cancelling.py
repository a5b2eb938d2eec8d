"""What a worker process runs and somebody wants no more, and when it is to be terminated for that: pure."""

from __future__ import annotations

import signal

__all__ = ["Cancelling"]


class Cancelling:
    """Of one worker process; its workitems by the numbers of their hand-overs.

    timeout: seconds that a handler has to end once it was told; after half of them its process is terminated, at their
    end it is killed.  0: killed at once.  Infinite: told, and no more.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._since: dict[int, float] = {}  # monotonic seconds; the oldest first
        self._kill_at: float | None = None  # once it was terminated
        self._killed = False

    def __contains__(self, number: int) -> bool:
        return number in self._since

    def begin(self, number: int, now: float) -> None:
        """Its handler is told."""
        self._since[number] = now

    def over(self, number: int) -> None:
        """It has ended."""
        self._since.pop(number, None)

    @property
    def look_at(self) -> float | None:
        """When to look again; monotonic seconds.  None: there is nothing to be done."""
        if self._killed:
            return None
        if self._kill_at is not None:
            return self._kill_at
        return self._oldest + self._timeout / 2 if self._since else None

    @property
    def _oldest(self) -> float:
        return next(iter(self._since.values()))

    def due(self, now: float) -> signal.Signals | None:
        """What its process group is to be sent now, once each: SIGTERM, SIGKILL.

        What was terminated is killed even if the workitem has ended meanwhile: it was told to go.
        """
        if self.look_at is None or now < self.look_at:
            return None
        if self._kill_at is None:
            self._kill_at = self._oldest + self._timeout
        if now < self._kill_at:
            return signal.SIGTERM
        self._killed = True
        return signal.SIGKILL
