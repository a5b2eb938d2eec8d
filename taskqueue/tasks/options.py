"""What may be said of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

__all__ = ["TaskOptions", "check", "several"]


class TaskOptions(TypedDict, total=False):
    """What may be said of a task: where it is made, for a whole queue, or as it is submitted, which wins.

    retries: how often it is tried again after a failure, in place of its group's.
    retry_on: only after these exceptions, and after its time limit.
    time_limit: seconds that an attempt may take.
    priority: 0 to 255, larger first.
    result_timeout: seconds that its result is kept after its end; None: as long as its record.  An hour by default.
    ignore_result: keep and send no result.
    on_error: what becomes of it where a task failed whose value it waits for: `fail`, or `pass` the TaskFailure in.
    id: its id, or a function of its arguments that gives it; only one of an id can be under way.
    reference, delay, due, expiration: as `Queue.send` has them.
    """

    retries: int | None
    retry_on: type[Exception] | tuple[type[Exception], ...]
    time_limit: float | None
    priority: int | None
    result_timeout: float | None
    ignore_result: bool
    on_error: str
    id: str | Callable[..., str] | None
    reference: str
    delay: float | None
    due: float | None
    expiration: float | None


def check(options: Mapping[str, Any]) -> None:
    """Raises TypeError for options that there are not, ValueError for values that make no sense."""
    unknown = sorted(set(options) - set(TaskOptions.__annotations__))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r} of a task: expected {', '.join(TaskOptions.__annotations__)}")
    if options.get("on_error", "fail") not in ("fail", "pass"):
        raise ValueError(f"on_error {options['on_error']!r}: expected 'fail' or 'pass'")
    for name in ("retries", "time_limit", "result_timeout"):
        value = options.get(name)
        if value is not None and not value >= (1e-3 if name == "time_limit" else 0):
            raise ValueError(f"{name} {value!r}: expected a positive number")
    for name in ("retries", "priority"):
        if not isinstance(options.get(name), int | None):
            raise TypeError(f"{name} {options[name]!r}: expected a whole number")
    for kind in several(options.get("retry_on", ())):
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"retry_on {options['retry_on']!r}: expected a class of exceptions, or a tuple of them")
    if not (isinstance(options.get("id"), str | None) or callable(options["id"])):
        raise TypeError(f"id {options['id']!r}: expected text, or a function that makes it of the arguments")


def several(kinds: Any) -> tuple[Any, ...]:
    """The classes of `retry_on`, which may be one, as a tuple."""
    return kinds if isinstance(kinds, tuple) else (kinds,)
