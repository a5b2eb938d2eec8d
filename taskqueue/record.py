"""What is known of a workitem's life, as values.  A store keeps them; `taskqueue.lifecycle` has the states."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from taskqueue.lifecycle import ENDED, State, after, at_first
from taskqueue.outcome import (
    Cancelled,
    Crashed,
    Dead,
    Done,
    Failed,
    Forward,
    Outcome,
    Payload,
    Release,
    Retry,
    Rules,
    TimedOut,
    ignores_result,
    result_message,
)
from taskqueue.workitem import INCOMING, Workitem

__all__ = [
    "DEPENDENCY",
    "Attempt",
    "Progress",
    "Record",
    "Run",
    "attempt_of",
    "born",
    "finite",
    "is_recorded",
    "kept_result",
    "lost",
    "promises_of",
    "readers_of",
    "result_of",
    "results_queue",
    "settled",
    "started",
    "unmet",
]

DEPENDENCY = "dependency"
"""The outcome of the attempt that never was: what the workitem depends on did not succeed."""


class Run(NamedTuple):
    """A workitem in a worker process.

    started, ended: POSIX seconds; ended is None while it runs, and where nobody saw it end.
    cpu: seconds of user and system time, with reading its body and telling its end: of those that are handed over
    together, each begins where the one before it ended.  None with several workitems at once in a process.
    memory: the most that its process has used so far, bytes; None where the process did not live to say so.
    """

    host: str
    user: str
    pid: int
    started: float
    ended: float | None = None
    cpu: float | None = None
    memory: int | None = None


class Attempt(NamedTuple):
    """One try, and what became of it.

    number: 1 at first; a try that did not count, because its carrier died, has the number of the one after it.
    outcome: `succeeded`, `failed`, `retry`, `crashed`, `timed out`, `rejected`, `malformed`, `released`, `lost` or
    `cancelled`; or `dependency`: it was never started, because what the error names did not succeed, or its result is
    not kept.
    again: POSIX seconds from which the next one could begin; None where there was to be none.
    log: the lines that the handler logged.
    """

    number: int
    outcome: str
    run: Run | None = None
    error: str = ""
    traceback: str = ""
    again: float | None = None
    log: tuple[str, ...] = ()


def finite(number: float) -> float:
    """A number of `Progress`.  Raises ValueError, or TypeError, for what is none, or is too large."""
    if isinstance(number, str | bytes):
        raise TypeError(f"progress of {str(number)[:20]!r}: expected a number")
    try:
        found = float(number)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"progress of {str(found)[:20]}: expected a finite number")
    return found


class Progress(NamedTuple):
    """How far a handler says it is: `done` of `total`, in units of its own; `at`, POSIX seconds."""

    done: float
    total: float | None
    note: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One workitem: what it is about, where it stands, and what happened to it.

    type: empty until a dispatcher has found it out.
    task: the name of the task that a client called; empty for a workitem of another kind.
    sent, due, ended: POSIX seconds; due is None where it was to be done at once, ended until it has.
    sender: who sent it, as user@host:pid.
    running: the attempt under way, as far as its carrier has said.
    """

    id: str
    type: str
    state: State
    sent: float
    task: str = ""
    sender: str = ""
    reference: str = ""
    priority: int = 0
    due: float | None = None
    ended: float | None = None
    attempts: tuple[Attempt, ...] = ()
    running: Run | None = None
    progress: Progress | None = None
    result: Payload | None = None


def is_recorded(queue: str) -> bool:
    """Whether a store keeps records of what waits in `queue`: of work, not of results and dead letters."""
    return queue == INCOMING or queue.startswith("worker_")


def results_queue(workitem: Workitem, outcome: Outcome, rules: Rules, run: Run | None) -> str:
    """The queue whose readers get the result of what has ended out of its record; empty: a result has to be sent.

    So a store has it once, not twice, as long as nobody reads that queue.
    """
    if run is None or kept_result(workitem, outcome, rules) is None:
        return ""
    return readers_of(rules.results_routing_key)


def readers_of(key: str) -> str:
    """`key`, where it is a queue for results alone: only their readers get anything out of records; else empty."""
    return "" if is_recorded(key) or key.startswith("taskqueue.") else key


def result_of(record: Record) -> Workitem:
    """What a results queue has of a record: the same as `outcome.effects` would have sent there."""
    last, result = record.attempts[-1], record.result
    assert result is not None
    worker = f"{last.run.host}:{last.run.pid}" if last.run else ""
    return result_message(
        record.id, record.type, record.reference, result, attempt=last.number, worker=worker, status=record.state
    )


def kept_result(workitem: Workitem, outcome: Outcome, rules: Rules) -> Payload | None:
    """The result that is kept in the record of what ends with `outcome`; None: there is none, or none is wanted."""
    if not isinstance(outcome, Done) or rules.history != "full" or ignores_result(workitem):
        return None
    return outcome.result


def promises_of(workitem: Workitem, outcome: Outcome, rules: Rules) -> tuple[str, ...]:
    """The ids of those whose results are kept as long as that of what ends with `outcome`, each once."""
    if not isinstance(outcome, Done) or not outcome.promises or kept_result(workitem, outcome, rules) is None:
        return ()
    return tuple(dict.fromkeys(outcome.promises))


def born(workitem: Workitem, *, sender: str, now: float, blocked: bool = False) -> Record:
    """The record of a workitem that is sent at `now`, POSIX seconds.  blocked: see `lifecycle.at_first`."""
    return Record(
        id=workitem.id,
        type=workitem.type,
        state=at_first(workitem, now, blocked=blocked),
        sent=now,
        task=workitem.task,
        sender=sender,
        reference=workitem.reference,
        priority=workitem.priority or 0,
        due=workitem.due,
    )


def started(record: Record, run: Run, progress: Progress | None) -> Record:
    """The record of what a worker process is seen to run."""
    return replace(record, state=State.RUNNING, running=run, progress=progress or record.progress)


def unmet(record: Record, workitem: Workitem, cause: str, *, now: float) -> Record:
    """The record of what ends at `now`, POSIX seconds, because of what it depends on (`taskqueue.depending.cause`)."""
    attempt = Attempt(workitem.attempt, DEPENDENCY, error=cause)
    return replace(record, state=State.FAILED, ended=now, attempts=(*record.attempts, attempt))


def lost(record: Record, workitem: Workitem, *, now: float) -> Record:
    """The record of what its carrier does not have any more at `now`, POSIX seconds, and did not settle."""
    if record.running is None:
        return record
    attempt = Attempt(workitem.attempt, "lost", record.running, again=now)
    return replace(record, state=State.LOST, running=None, attempts=(*record.attempts, attempt))


def settled(
    record: Record,
    workitem: Workitem,
    outcome: Outcome,
    rules: Rules,
    *,
    now: float,
    run: Run | None = None,
    log: tuple[str, ...] = (),
) -> Record:
    """The record after a delivery of `workitem` was settled at `now`, POSIX seconds."""
    state = after(workitem, outcome, rules, now)
    attempt = attempt_of(workitem, outcome, state, now=now, run=run, log=log)
    known = outcome.workitem if isinstance(outcome, Forward) else workitem
    return replace(
        record,
        type=known.type,
        reference=known.reference,
        state=state,
        ended=now if state in ENDED else None,
        due=attempt.again if attempt is not None else known.due,
        attempts=record.attempts if attempt is None else (*record.attempts, attempt),
        running=None,
        result=kept_result(workitem, outcome, rules),
    )


def attempt_of(
    workitem: Workitem, outcome: Outcome, state: State, *, now: float, run: Run | None, log: tuple[str, ...]
) -> Attempt | None:
    """What to remember of a delivery that `outcome` brought to `state`; None where nothing was tried."""
    what, error, traceback = _told(outcome)
    if not what or (run is None and what in ("released", "cancelled")):
        return None
    again = None if state in ENDED else now + outcome.delay if isinstance(outcome, Retry) else now
    return Attempt(workitem.attempt, what, run, error, traceback, again, log)


def _told(outcome: Outcome) -> tuple[str, str, str]:
    """In a word, the error, and the traceback."""
    match outcome:
        case Done():
            return "succeeded", "", ""
        case Failed(error, traceback):
            return "failed", error, traceback
        case Retry(_, error, counts):
            return {"failure": "failed", "attempt": "retry", "nothing": "released"}[counts], error, ""
        case Crashed(how):
            return "crashed", how, ""
        case TimedOut(limit):
            return "timed out", f"time limit of {limit:g} s", ""
        case Dead(reason, detail):
            return ("" if reason == "expired" else reason), detail, ""
        case Cancelled(how):
            return "cancelled", how, ""
        case Release():
            return "released", "", ""
        case Forward():
            return "", "", ""
        case _:
            assert_never(outcome)
