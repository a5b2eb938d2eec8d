"""Workitems that depend on others: what they get of them, and why they end with them.  Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.record import DEPENDENCY, Attempt, Record
from taskqueue.workitem import Workitem

__all__ = ["Input", "cause", "error_of", "input_of", "passes", "result_ends"]

NO_RESULT = "no result is kept"


class Input(NamedTuple):
    """How a workitem has ended that another one depends on.

    type: empty where no dispatcher had found it out, or no record is kept any more.
    state: one in which it ended; `succeeded` without a payload where nothing is known of it any more.
    payload: its result; None where there is none, or none is kept.
    error, traceback: of its last attempt, as text; empty where it succeeded.
    task: the name of the task that it called; empty where it called none, or no record is kept any more.
    """

    id: str
    type: str
    state: State
    payload: Payload | None
    error: str = ""
    traceback: str = ""
    task: str = ""


def input_of(record: Record) -> Input:
    """What those that depend on it get of a record that has ended."""
    last = record.attempts[-1] if record.attempts else None
    error, traceback = error_of(record.state, last)
    return Input(record.id, record.type, record.state, record.result, error, traceback, record.task)


def error_of(state: State, last: Attempt | None) -> tuple[str, str]:
    """The error and the traceback of what ended in `state`, by its last attempt; empty where it succeeded."""
    if state == State.SUCCEEDED or last is None or state in (State.CANCELLED, State.EXPIRED):
        return "", ""
    if last.outcome in ("failed", DEPENDENCY):
        return last.error, last.traceback
    return f"{last.outcome}: {last.error}" if last.error else last.outcome, last.traceback


def cause(id: str, name: str, state: State, last: Attempt | None, *, has_result: bool) -> str:
    """Why whatever depends on a workitem that has ended, and needs its result, fails; empty: it need not.

    name: that of the task that it called, or else its type.
    last: its last attempt.  Where that failed for the same reason, it is the first of them all that is named.
    """
    if state == State.SUCCEEDED and has_result:
        return ""
    if state == State.FAILED and last is not None and last.outcome == DEPENDENCY:
        return last.error
    error = NO_RESULT if state == State.SUCCEEDED else error_of(state, last)[0]
    return f"{id}{f' of {name}' if name else ''}: {state}{f': {error}' if error else ''}"


def passes(workitem: Workitem) -> bool:
    """Whether it runs however those have ended that it depends on: header `on_error`, `fail` (default) or `pass`."""
    return workitem.headers.get("on_error") == "pass"


def result_ends(workitem: Workitem, ended: float) -> float | None:
    """When the result of what `ended` then need not be kept any longer; POSIX seconds.

    By the header `result_timeout`, seconds; None: it is kept as long as the record, also where that is no such number.
    """
    seconds = workitem.headers.get("result_timeout")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        return None
    return ended + seconds
