"""How long to wait before the next try."""

from __future__ import annotations

__all__ = ["backoff"]

MOST_DOUBLINGS = 64  # more change nothing, and would overflow a float in the end


def backoff(n: int, *, base: float, maximum: float, jitter: float) -> float:
    """Seconds to wait before try `n`, where 0 is the first that has to wait.

    It doubles from `base` up to `maximum`.  `jitter`, a random number from 0 to 1, takes up to half of it away,
    so that those who failed together don't come back together: 1 gives the whole wait, 0 half of it.  The result
    is never above `maximum`.
    """
    return min(maximum, base * 2.0 ** min(max(n, 0), MOST_DOUBLINGS)) * (0.5 + jitter / 2)
