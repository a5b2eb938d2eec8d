"""What is written down of a workitem's life, and how it is read again.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from taskqueue.broker import Ended, Input
from taskqueue.lifecycle import ENDED, State, after
from taskqueue.outcome import Crashed, Payload
from taskqueue.record import Attempt, Record, attempt_of, is_recorded, kept_result, promises_of
from taskqueue.story import attempts, more, running
from taskqueue.workitem import Workitem

__all__ = ["Past", "input_of", "past", "record"]


class Past(NamedTuple):
    """What is known of a workitem when a delivery of it has ended.

    story: with this attempt.
    state: in which it has ended for good; None where it goes on.
    whole: whether its story is to be kept.  off: nothing of it is.  crashes: how many there were; 0: as many as before.
    promises: whose results are kept as long as its own.
    """

    story: str
    state: State | None = None
    whole: bool = True
    off: bool = False
    error: str = ""
    crashes: int = 0
    result: Payload | None = None
    promises: tuple[str, ...] = ()


def past(ended: Ended, workitem: Workitem, story: str, now: float) -> Past | None:
    """Decide what to remember; None of what is no work.  story: so far.  now: POSIX seconds."""
    outcome, rules = ended.outcome, ended.rules
    if not is_recorded(ended.delivery.queue):
        return None
    state = after(workitem, outcome, rules, now)
    attempt = attempt_of(workitem, outcome, state, now=now, run=ended.run, log=ended.log)
    story = story if attempt is None else more(story, attempt)
    if state not in ENDED:
        return Past(story)
    return Past(
        story=story,
        state=state,
        whole=rules.history == "full",
        off=rules.history == "off",
        error=_error(attempt, state),
        crashes=workitem.crashes + 1 if isinstance(outcome, Crashed) else 0,
        result=kept_result(workitem, outcome, rules),
        promises=promises_of(workitem, outcome, rules),
    )


def _error(attempt: Attempt | None, state: State) -> str:
    """Why it did not succeed, in a line."""
    if state == State.SUCCEEDED:
        return ""
    if attempt is None:
        return state
    if attempt.outcome == "failed":
        return attempt.error
    return f"{attempt.outcome}: {attempt.error}" if attempt.error else attempt.outcome


def record(row: Sequence[Any]) -> Record:
    """The record that a row of the view `tasks` is."""
    id, type, state, reference, priority, sent, due, ended, sender, *_, task, _, story, said, result_type, result = row
    run, progress = running(said)
    return Record(
        id=id,
        type=type,
        state=State(state),
        sent=sent.timestamp(),
        task=task,
        sender=sender,
        reference=reference or "",
        priority=priority,
        due=_seconds(due),
        ended=_seconds(ended),
        attempts=attempts(story),
        running=run if ended is None else None,
        progress=progress,
        result=None if result is None else Payload(result, result_type),
    )


def input_of(row: Sequence[Any], result: bytes) -> Input:
    """How something ended that a workitem depends on: what the database's `inputs_of` says of it, and its result."""
    id, type, state, error, result_type, size, story, task = row
    last = attempts(story or "")[-1:]
    payload = None if size is None else Payload(result, result_type)
    if state in (State.CANCELLED, State.EXPIRED):  # as `taskqueue.depending.error_of` has it
        return Input(id, type or "", State(state), payload, task=task or "")
    return Input(id, type or "", State(state), payload, error or "", last[0].traceback if last else "", task or "")


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
