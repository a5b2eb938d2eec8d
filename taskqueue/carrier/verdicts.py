"""From what a worker process says, or from how it died, to an outcome.  Pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskqueue import formats
from taskqueue.config import Group
from taskqueue.outcome import Crashed, Dead, Done, Failed, Outcome, Payload, Release, Retry, Send, TimedOut
from taskqueue.retry import backoff
from taskqueue.workitem import Workitem

__all__ = ["after_answer", "after_death"]


def after_answer(
    workitem: Workitem, group: Group, answer: Sequence[Any], payload: bytes, *, max_result: int, jitter: float
) -> Outcome:
    """The outcome of an answer (`taskqueue.process.calling.Answer.meta`).

    max_result: bytes; a broker ends the channel for a message that it finds too long.
    jitter: 0 to 1.  Raises ValueError, TypeError or IndexError for what is no answer.
    """
    match answer:
        case ["done" | "failed", *_] if len(payload) > max_result:
            return _failed(workitem, group, f"its result of {len(payload)} bytes is longer than {max_result}", jitter)
        case ["done", None, sends]:
            return Done(None, tuple(_send(*send) for send in sends))
        case ["done", str(content_type), sends]:
            return Done(Payload(payload, content_type), tuple(_send(*send) for send in sends))
        case ["failed", str(error), str(traceback), str(content_type)]:
            return _failed(workitem, group, error, jitter, traceback, Payload(payload, content_type))
        case ["retry", float() | int() as seconds, str(reason)]:
            return Retry(float(seconds), reason, "attempt")
        case ["reject", str(reason)]:
            return Dead("rejected", reason, formats.failed_result(workitem, f"rejected: {reason}", ""))
        case ["malformed", str(detail)]:
            return Dead("malformed", detail)
        case _:
            raise ValueError(f"not an answer: {list(answer)[:1]!r}")


def after_death(
    workitem: Workitem, group: Group, how: str, condemned: TimedOut | Release | None, *, jitter: float
) -> Outcome:
    """The outcome for the workitem that a worker process was running when it died.

    condemned: what it was killed for, if the carrier had it killed.
    """
    match condemned:
        case Release():
            return condemned
        case TimedOut(limit):
            error = f"timed out: time limit of {limit:g} s"
            if workitem.failures < group.retries:
                return _retry(workitem, group, error, jitter)
            return TimedOut(limit, formats.failed_result(workitem, error, ""))
        case None:
            return Crashed(how, formats.failed_result(workitem, f"worker process crashed: {how}", ""))


def _failed(
    workitem: Workitem, group: Group, error: str, jitter: float, traceback: str = "", result: Payload | None = None
) -> Outcome:
    if workitem.failures < group.retries:
        return _retry(workitem, group, error, jitter)
    return Failed(error, traceback, result or formats.failed_result(workitem, error, traceback))


def _retry(workitem: Workitem, group: Group, error: str, jitter: float) -> Retry:
    delay = backoff(workitem.failures, base=group.retry_delay, maximum=group.retry_max_delay, jitter=jitter)
    return Retry(delay, error)


def _send(queue: Any, properties: Any, body: Any) -> Send:
    return Send(str(queue), Workitem(body=str(body).encode("latin-1"), **properties))
