"""From what a worker process says, or from how it died, to an outcome.  Pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskqueue import formats
from taskqueue.config import Group
from taskqueue.formats import Formats
from taskqueue.outcome import (
    MAX_ERROR,
    Cancelled,
    Crashed,
    Dead,
    Done,
    Failed,
    Outcome,
    Payload,
    Release,
    Retry,
    Send,
    TimedOut,
)
from taskqueue.process.calling import LONGEST_DELAY
from taskqueue.retry import backoff
from taskqueue.workitem import Workitem

__all__ = ["Verdict", "after_answer", "after_death", "own_limit", "unwanted"]

Verdict = TimedOut | Crashed | Cancelled | Release
"""What a worker process was killed for, as far as one workitem is concerned that it ran; or that it is unwanted."""


def after_answer(
    workitem: Workitem,
    group: Group,
    answer: Sequence[Any],
    payload: bytes,
    *,
    jitter: float,
    known: Formats = formats.ONLY_BUILTIN,
) -> Outcome:
    """The outcome of an answer (`taskqueue.process.calling.Answer.meta`).

    jitter: 0 to 1.  known: the formats by which the result of a failure is made.

    Raises ValueError or TypeError for what is no answer: nothing of it reaches the broker unchecked.
    """
    match answer:
        case ["done", str(content_type), []]:  # nearly always it is this one
            return Done(Payload(payload, _short(content_type)))
        case ["done", None | str() as content_type, [*sends]]:
            result = None if content_type is None else Payload(payload, _short(content_type))
            return Done(result, tuple(_send(*send) for send in sends))
        case ["done", str(content_type), [*sends], [str(), *_] as ids]:
            result = Payload(payload, _short(content_type))
            return Done(result, tuple(_send(*send) for send in sends), tuple(map(_short, ids)))
        case ["failed", str(error), str(traceback), str(content_type), None | int() as own]:
            retries = group.retries if own is None else own
            return _failed(workitem, group, error, jitter, traceback, Payload(payload, _short(content_type)), retries)
        case ["retry", float() | int() as seconds, str(reason)] if 0 <= seconds <= LONGEST_DELAY:
            return Retry(float(seconds), reason, "attempt")
        case ["blocked", [str(), *_] as ids] if workitem.after:
            return Retry(0.0, f"waits for the end of {', '.join(ids)}"[:MAX_ERROR], "nothing", tuple(map(_short, ids)))
        case ["reject", str(reason)]:
            return Dead("rejected", reason, formats.failed_result(workitem, f"rejected: {reason}", "", known))
        case ["malformed", str(detail)]:
            return Dead("malformed", detail)
        case _:
            raise ValueError(f"not an answer: {list(answer)[:1]!r}")


def after_death(
    workitem: Workitem,
    group: Group,
    how: str,
    condemned: Verdict | None,
    *,
    jitter: float,
    known: Formats = formats.ONLY_BUILTIN,
) -> Outcome:
    """The outcome for a workitem that a worker process was running when it died.

    condemned: what it was killed for, if the carrier had it killed.
    """
    match condemned:
        case Release():
            return condemned
        case TimedOut(limit):
            error = f"timed out: time limit of {limit:g} s"
            if workitem.failures < _retries(workitem, group):
                return _retry(workitem, group, error, jitter)
            return TimedOut(limit, formats.failed_result(workitem, error, "", known))
        case Crashed(why):
            return _crashed(workitem, why, known)
        case Cancelled():
            return Cancelled(how)
        case None:
            return _crashed(workitem, how, known)


def unwanted(outcome: Outcome) -> Outcome:
    """The same for one that somebody wants no more: what it did stays done; there is no retry, and no dead letter."""
    match outcome:
        case Done():
            return outcome
        case Failed(error) | Retry(_, error) | Dead(_, error):
            return Cancelled(error)
        case _:
            return Cancelled()


def own_limit(workitem: Workitem) -> float:
    """The `time_limit` of a task, seconds; 0: it has none."""
    limit = workitem.headers.get("time_limit") if "task" in workitem.headers else None
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < float("inf"):
        return 0.0
    return float(limit)


def _retries(workitem: Workitem, group: Group) -> int:
    """Those of a task, where it says so; else those of its group."""
    own = workitem.headers.get("retries") if "task" in workitem.headers else None
    return group.retries if isinstance(own, bool) or not isinstance(own, int) else own


def _crashed(workitem: Workitem, how: str, known: Formats) -> Crashed:
    return Crashed(how, formats.failed_result(workitem, f"worker process crashed: {how}", "", known))


def _failed(
    workitem: Workitem, group: Group, error: str, jitter: float, traceback: str, result: Payload, retries: int
) -> Outcome:
    if workitem.failures < retries:
        return _retry(workitem, group, error, jitter)
    return Failed(error, traceback, result)


def _retry(workitem: Workitem, group: Group, error: str, jitter: float) -> Retry:
    delay = backoff(workitem.failures, base=group.retry_delay, maximum=group.retry_max_delay, jitter=jitter)
    return Retry(delay, error)


def _send(queue: Any, properties: Any, body: Any) -> Send:
    """What the older form of handler published: queue, properties, and the body as text of latin-1."""
    rest = dict(properties)
    headers = {str(name): value for name, value in dict(rest.pop("headers", {})).items()}
    numbers = {name: rest.pop(name, None) for name in ("priority", "timestamp")}
    for name, most in (("priority", 255), ("timestamp", 1 << 60)):
        if numbers[name] is not None and not 0 <= int(numbers[name]) <= most:
            raise ValueError(f"a {name} of {numbers[name]}")
    texts: dict[str, Any] = {name: _short(value) for name, value in rest.items()}
    return Send(_short(queue), Workitem(body=str(body).encode("latin-1"), headers=headers, **numbers, **texts))


def _short(text: Any) -> str:
    """Text that fits where AMQP has one byte for its length."""
    if not isinstance(text, str) or len(text.encode()) > 255:  # a lone surrogate is a ValueError, too
        raise ValueError(f"{str(text)[:40]!r} is no short text")
    return text
