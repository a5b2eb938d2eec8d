"""Dead letters: which of them are meant, and what a workitem is when it is given another chance.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

from taskqueue.outcome import Forward
from taskqueue.workitem import INCOMING, Workitem, is_type, worker_queue

__all__ = ["Selection", "age", "requeued", "type_of"]

_NOTES = frozenset(
    ("reason", "detail", "attempts", "crashes", "from", "died", "traceback", "headers_dropped", "x-death")
)
"""The headers that say why it was given up, and are nobody's business once it is a workitem again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters are meant: those that are all that is named here; nothing named: all.

    older, newer: seconds since it was given up; one that does not say when is neither.
    """

    ids: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    older: float | None = None
    newer: float | None = None

    def picks(self, letter: Workitem, now: float) -> bool:
        """Whether `letter` is meant, at POSIX time `now`."""
        if self.ids and letter.id not in self.ids:
            return False
        if self.types and type_of(letter) not in self.types:
            return False
        if self.reasons and letter.headers.get("reason") not in self.reasons:
            return False
        if self.older is None and self.newer is None:
            return True
        seconds = age(letter, now)
        if seconds is None or (self.older is not None and seconds < self.older):
            return False
        return self.newer is None or seconds <= self.newer


def type_of(letter: Workitem) -> str:
    """The worker type that it names; empty where it names none."""
    claimed = letter.headers.get("worker_type")
    return letter.type or (claimed if isinstance(claimed, str) and is_type(claimed) else "")


def age(letter: Workitem, now: float) -> float | None:
    """Seconds since it was given up; None where it does not say when."""
    died = letter.headers.get("died")
    return max(0.0, now - died) if isinstance(died, (int, float)) and not isinstance(died, bool) else None


def requeued(letter: Workitem) -> Forward:
    """Give it another chance: the same workitem with all counters anew, to the queue of its type.

    What no dispatcher could pass on goes to the dispatcher again, which may know better by now.
    """
    headers = {name: value for name, value in letter.headers.items() if name not in _NOTES}
    again = letter._replace(headers=headers, attempt=1, crashes=0, failures=0, due=None)
    type = type_of(letter)
    if type and letter.headers.get("from") != INCOMING:
        headers.pop("worker_type", None)
        return Forward(again._replace(type=type), queue=worker_queue(type))
    if letter.type:  # read from its header, which the dispatcher reads as well
        headers["worker_type"] = letter.type
    return Forward(again._replace(type=""), queue=INCOMING)
