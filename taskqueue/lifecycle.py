"""The states of a workitem, and the moves between them: one table, drawn in docs/lifecycle.md."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import assert_never

from taskqueue.outcome import Cancelled, Crashed, Dead, Done, Failed, Forward, Outcome, Release, Retry, Rules, TimedOut
from taskqueue.workitem import Workitem

__all__ = ["ENDED", "MOVES", "State", "after", "at_first", "may"]


class State(enum.StrEnum):
    """Where a workitem is in its life.

    scheduled: it was sent for later, and was never tried.
    waiting: some worker process may start it at any time; also while a carrier holds it in reserve.
    blocked: it waits until those have ended that it depends on; one more may be found when it is started.
    running: a worker process has started it, and has not ended it.
    retrying: an attempt ended without success, and another one will be made, at once or after a delay.
    lost: its carrier died while it may have been running; it will be started again.
    succeeded: its handler returned.
    failed: its handler failed, and no retry was left; or what it depends on did not succeed, and it never ran.
    dead: it was given up: it crashed or timed out for good, was rejected, or is no workitem at all.
    cancelled: somebody wanted it no more; it never started, or was stopped.
    expired: its time was over before it was started.
    """

    SCHEDULED = enum.auto()
    WAITING = enum.auto()
    BLOCKED = enum.auto()
    RUNNING = enum.auto()
    RETRYING = enum.auto()
    LOST = enum.auto()
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    DEAD = enum.auto()
    CANCELLED = enum.auto()
    EXPIRED = enum.auto()


_S = State
ENDED = (_S.SUCCEEDED, _S.FAILED, _S.DEAD, _S.CANCELLED, _S.EXPIRED)  # what most end in comes first
"""States that are final, but that what was given up may be sent once more under its old id."""

# What is started need not have been seen to run: a store hears of short attempts only when they end.
_STARTED = frozenset((_S.RUNNING, _S.SUCCEEDED, _S.FAILED, _S.DEAD, _S.RETRYING, _S.BLOCKED, _S.LOST))
_NOT_STARTED = frozenset((_S.CANCELLED, _S.EXPIRED))
_AGAIN = frozenset((_S.WAITING, _S.SCHEDULED))
_REQUEUED = _AGAIN | {_S.BLOCKED}

MOVES: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        _S.SCHEDULED: frozenset((_S.WAITING,)) | _STARTED | _NOT_STARTED,
        _S.WAITING: frozenset((_S.SCHEDULED,)) | _STARTED | _NOT_STARTED,
        _S.BLOCKED: frozenset((_S.WAITING, _S.SCHEDULED, _S.FAILED)) | _NOT_STARTED,
        _S.RUNNING: _STARTED - {_S.RUNNING} | {_S.CANCELLED} | _AGAIN,
        _S.RETRYING: _STARTED | _NOT_STARTED,
        _S.LOST: _STARTED | _NOT_STARTED,
        _S.SUCCEEDED: frozenset(),
        _S.FAILED: _REQUEUED,
        _S.DEAD: _REQUEUED,
        _S.CANCELLED: frozenset(),
        _S.EXPIRED: _REQUEUED,
    }
)
"""From each state to those that may follow.  What failed, is dead or expired is a dead letter, and may be requeued."""


def may(before: State, then: State) -> bool:
    """Whether a workitem may go from `before` to `then`; to stay where it is is no move."""
    return before == then or then in MOVES[before]


def at_first(workitem: Workitem, now: float, *, blocked: bool = False) -> State:
    """The state of a workitem that is sent at `now`, POSIX seconds; or waits for nothing more from then on.

    blocked: it depends on what has not ended.
    """
    if blocked:
        return State.BLOCKED
    return State.SCHEDULED if workitem.due is not None and workitem.due > now else State.WAITING


def after(workitem: Workitem, outcome: Outcome, rules: Rules, now: float) -> State:
    """The state to which `outcome` brings `workitem` at `now`, POSIX seconds.  Says what `outcome.effects` does."""
    match outcome:
        case Done():
            return State.SUCCEEDED
        case Failed():
            return State.FAILED
        case Retry(after=(_, *_)):
            return State.BLOCKED
        case Retry(_, _, counts):
            return State.WAITING if counts == "nothing" else State.RETRYING
        case Crashed():
            return State.RETRYING if workitem.crashes + 1 < rules.max_crashes else State.DEAD
        case TimedOut():
            return State.DEAD
        case Forward(forwarded):
            return at_first(forwarded, now)
        case Dead(reason):
            return State.EXPIRED if reason == "expired" else State.DEAD
        case Cancelled():
            return State.CANCELLED
        case Release():
            return State.WAITING
        case _:
            assert_never(outcome)
