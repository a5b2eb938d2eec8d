"""How much work to hold, and how much to hand over at a time.  Pure decisions."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["START_WITHIN", "batch_size", "depth", "is_soon", "mean_run_time", "reserve"]

START_WITHIN = 0.1
"""Seconds within which a workitem must be started that was handed over behind another one; then others get it."""
MAX_DEPTH = 128
DEPTH_TIME = 0.005  # seconds of work that are handed over at a time
RESERVE_TIME = 0.25  # seconds of work that are held beside what runs
MAX_RESERVE = 4000
MAX_BATCH_BYTES = 256 * 1024
SOON = 1.0  # seconds, about what a worker process takes to start


def mean_run_time(mean: float | None, seconds: float) -> float:
    """The moving mean of run times, in seconds, with one more; it follows slow ones faster than quick ones."""
    if mean is None:
        return seconds
    weight = 0.3 if seconds > mean else 0.05
    return mean + weight * (seconds - mean)


def depth(run_time: float | None) -> int:
    """How many workitems one worker process may have: many of a few microseconds, one of a few milliseconds."""
    if run_time is None:
        return 1
    return max(1, min(MAX_DEPTH, int(DEPTH_TIME / max(run_time, 1e-9))))


def reserve(slots: int, run_time: float | None, prefetch: int) -> int:
    """How many deliveries to hold for worker processes that run `slots` at once, what runs included.

    prefetch: what the operator asks for; 0: as many as are done in a quarter of a second, so that long tasks are left
    to whoever is free first.
    """
    if prefetch:
        return max(prefetch, 1)
    beside = 0 if run_time is None else int(slots * RESERVE_TIME / max(run_time, 1e-9))
    return max(1, slots, min(MAX_RESERVE, slots + beside))


def is_soon(workitems: int, slots: int, run_time: float | None) -> bool:
    """Whether a worker process will be through with so many in about the time that another one takes to start."""
    return run_time is not None and workitems * run_time / slots <= SOON


def batch_size(sizes: Sequence[int], room: int) -> int:
    """How many of the first workitems, whose bodies have `sizes` in bytes, go over in one batch of at most `room`."""
    total = 0
    for count, size in enumerate(sizes[:room]):
        total += size
        if total > MAX_BATCH_BYTES:
            return max(count, 1)
    return min(room, len(sizes))
