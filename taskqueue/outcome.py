"""What becomes of a delivery, and what settling it must store before the delivery may end.

Every broker settles by `effects`: it stores what an outcome sends, waits until that is safe, and ends the
delivery then, or gives it back.  So the outcomes mean the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, assert_never

from taskqueue.workitem import DEAD_LETTERS, Workitem, worker_queue

__all__ = [
    "NULL",
    "Cancelled",
    "Crashed",
    "Dead",
    "Done",
    "Effects",
    "Failed",
    "Forward",
    "Outcome",
    "Payload",
    "Reason",
    "Release",
    "Retry",
    "Rules",
    "Send",
    "TimedOut",
    "effects",
    "ignores_result",
    "result_message",
    "unmet",
]

Reason = Literal[
    "malformed", "failed", "crashed", "timed out", "rejected", "expired", "too many types", "delivery limit"
]

MAX_ERROR = 4 * 1024  # characters of an error, and of a traceback, that travel in a header: all headers of a
MAX_TRACEBACK = 32 * 1024  # message must fit into one AMQP frame (128 KiB unless negotiated otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a group says about the end of its workitems, and who had them.

    results_routing_key: the queue that results go to; empty: none.
    dead_letters: whether a workitem that was given up is kept whole.
    max_crashes: with that many crashes a workitem is given up.
    worker: host:pid of the worker process, for whoever reads the result.
    history: what a store keeps of them once they have ended: all of it, no more than how they ended, or nothing.
    """

    results_routing_key: str = ""
    dead_letters: bool = True
    max_crashes: int = 3
    worker: str = ""
    history: Literal["full", "outcome", "off"] = "full"


class Payload(NamedTuple):
    """Bytes and what they are."""

    body: bytes = b"null"
    content_type: str = "application/json"


NULL = Payload()
"""The JSON `null`, as which most handlers return None."""


class Send(NamedTuple):
    """One workitem to store in `queue`, due by its own `due`.

    required: False where a queue that does not exist is nobody's fault (the reply queue of a client that left).
    goes_on: it is the workitem itself, on its way; not a result, a dead letter, or what its handler sent.
    more: what that depends on from now on, beside what it did: the last ones of its `after`.
    """

    queue: str
    workitem: Workitem
    required: bool = True
    goes_on: bool = False
    more: tuple[str, ...] = ()


class Done(NamedTuple):
    """The handler returned.

    result: None where it wants no result to be sent.
    sends: what it published itself, stored together with its result.
    promises: the ids of those whose values belong into its result; a store keeps their results as long as that one.
    """

    result: Payload | None = NULL
    sends: tuple[Send, ...] = ()
    promises: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler failed, and no retry is left."""

    error: str
    traceback: str = ""
    result: Payload = NULL


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again in `delay` seconds.

    counts: as a `failure`, which uses up one of the workitem's retries; as an `attempt` only, where its handler asked
    for it; as `nothing`, where it never started.

    after: ids of what has to end before; where there is a store, and it depended on something already.
    """

    delay: float
    error: str = ""
    counts: Literal["failure", "attempt", "nothing"] = "failure"
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Crashed:
    """The worker process died with this workitem running; `how` is a signal's name or an exit status."""

    how: str
    result: Payload = NULL


@dataclass(frozen=True, slots=True)
class TimedOut:
    """It ran longer than `limit` seconds, was killed, and no retry is left."""

    limit: float
    result: Payload = NULL


@dataclass(frozen=True, slots=True)
class Forward:
    """Pass `workitem` on to `queue`; empty: to the queue of its type."""

    workitem: Workitem
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Dead:
    """Give it up: it is no workitem, or its worker rejected it."""

    reason: Reason
    detail: str = ""
    result: Payload = NULL


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody wants it no more, and it was stopped: no retry, no dead letter, a result only for who waits for one.

    how: by what; empty where it had not started.
    """

    how: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Give it back as if it had never been lent; it will be lent again."""


Outcome = Done | Failed | Retry | Crashed | TimedOut | Forward | Dead | Cancelled | Release


class Effects(NamedTuple):
    """What settling one delivery stores.  `ends` False: the delivery is given back instead."""

    sends: tuple[Send, ...] = ()
    ends: bool = True


def effects(
    workitem: Workitem, outcome: Outcome, rules: Rules, *, queue: str, now: float, recorded: bool = False
) -> Effects:
    """Decide what must be safe before a delivery of `workitem` from `queue` may end with `outcome`.

    `now` is POSIX seconds.  recorded: a store has the result of Done in its record, and whoever reads the results
    queue gets it from there (`taskqueue.record.results_queue`).  No I/O: the same arguments give the same effects.
    """
    match outcome:
        case Done(result, sends):
            results = () if result is None else _results(workitem, rules, "succeeded", result, recorded=recorded)
            return Effects((*sends, *results))
        case Failed(error, traceback, result):
            return _given_up(workitem, rules, queue, now, "failed", error, error, result, traceback)
        case Retry(delay, _, counts, more):
            again = workitem._replace(
                attempt=workitem.attempt + (counts != "nothing"),
                failures=workitem.failures + (counts == "failure"),
                due=now + delay if delay > 0 else None,
                after=(*workitem.after, *more),
            )
            return Effects((Send(queue, again, goes_on=True, more=more),))
        case Crashed(how, result):
            again = workitem._replace(attempt=workitem.attempt + 1, crashes=workitem.crashes + 1)
            if again.crashes < rules.max_crashes:
                return Effects((Send(queue, again, goes_on=True),))
            error = f"worker process crashed: {how}"
            crashed = workitem._replace(crashes=again.crashes)
            return _given_up(crashed, rules, queue, now, "crashed", how, error, result)
        case TimedOut(limit, result):
            detail = f"time limit of {limit:g} s"
            return _given_up(workitem, rules, queue, now, "timed out", detail, f"timed out: {detail}", result)
        case Forward(forwarded, to):
            return Effects((Send(to or worker_queue(forwarded.type), forwarded, goes_on=True),))
        case Dead(reason, detail, result):
            error = f"{reason}: {detail}" if detail else reason
            return _given_up(workitem, rules, queue, now, reason, detail, error, result)
        case Cancelled(how):
            nowhere = replace(rules, results_routing_key="")
            return Effects(
                _results(workitem, nowhere, "failed", Payload(), f"cancelled: {how}" if how else "cancelled")
            )
        case Release():
            return Effects(ends=False)
        case _:
            assert_never(outcome)


def unmet(workitem: Workitem, cause: str) -> Effects:
    """What is stored when `workitem` ends without having run, because of what it depends on: no dead letter.

    cause: why, as `taskqueue.depending.cause` has it.
    """
    return Effects(_results(workitem, Rules(), "failed", Payload(), cause))


def ignores_result(workitem: Workitem) -> bool:
    """Whether nobody wants its result, by the header `ignore_result`: none is sent or stored."""
    return workitem.headers.get("ignore_result") is True


def result_message(
    id: str, type: str, reference: str, result: Payload, *, attempt: int, worker: str, **headers: object
) -> Workitem:
    """What the results queue gets of the workitem `id`; `headers`: its status, and of a failure the rest."""
    return Workitem(
        id=f"{id[:200]}.{attempt}",
        type=type,
        reference=reference,
        body=result.body,
        content_type=result.content_type,
        correlation_id=id,
        headers={**headers, "attempt": attempt, **({"worker": worker} if worker else {})},
    )


def _results(
    workitem: Workitem,
    rules: Rules,
    status: str,
    result: Payload,
    error: str = "",
    traceback: str = "",
    *,
    recorded: bool = False,
) -> tuple[Send, ...]:
    to = "" if recorded else rules.results_routing_key
    reply_to = "" if workitem.reply_to == rules.results_routing_key else workitem.reply_to
    if not (to or reply_to) or ignores_result(workitem):
        return ()
    headers: dict[str, object] = {"status": status}
    if status == "failed":
        headers["error"] = error[:MAX_ERROR]
        headers["traceback"] = traceback[-MAX_TRACEBACK:]
    message = result_message(
        workitem.id, workitem.type, workitem.reference, result,
        attempt=workitem.attempt, worker=rules.worker, **headers,
    )  # fmt: skip
    sends = []
    if to:
        sends.append(Send(to, message))
    if reply_to:
        reply = message._replace(correlation_id=workitem.correlation_id or workitem.id)
        sends.append(Send(reply_to, reply, required=False))
    return tuple(sends)


def _given_up(
    workitem: Workitem,
    rules: Rules,
    queue: str,
    now: float,
    reason: Reason,
    detail: str,
    error: str,
    result: Payload,
    traceback: str = "",
) -> Effects:
    sends = _results(workitem, rules, "failed", result, error, traceback)
    if rules.dead_letters:
        headers = {
            **workitem.headers,
            "reason": reason,
            "detail": detail[:MAX_ERROR],
            "attempts": workitem.attempt,
            "crashes": workitem.crashes,
            "from": queue,
            "died": int(now),
        }
        if traceback:
            headers["traceback"] = traceback[-MAX_TRACEBACK:]
        dead = workitem._replace(headers=headers, expiration=None, due=None, attempt=1, crashes=0, failures=0)
        sends = (*sends, Send(DEAD_LETTERS, dead))
    return Effects(sends)
