"""The only reader of time."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["SYSTEM", "Clock", "SystemClock"]


class Clock(Protocol):
    """Tells the time; tests have one that moves when told."""

    def wall(self) -> float:
        """POSIX seconds, for what is kept and compared between hosts."""

    def monotonic(self) -> float:
        """Seconds that never go back, the same for all processes of a host (CLOCK_MONOTONIC)."""


class SystemClock:
    """The clock of this host."""

    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


SYSTEM: Clock = SystemClock()
