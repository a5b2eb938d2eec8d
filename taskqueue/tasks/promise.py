"""What stands for the values of other tasks."""

from __future__ import annotations

from typing import Any

__all__ = ["Promise", "promise_of"]


class Promise:
    """What stands for the value of another task: its `id` and its task's name go over in its place.

    id: empty where there is no such task, but a value: that goes over, then.
    """

    __slots__ = ()
    id: str

    @property
    def value(self) -> Any:
        """The value, where it is there."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The task's name; empty where it is not known."""
        raise NotImplementedError


def promise_of(value: object) -> tuple[str, Any] | None:
    """The id and the name of the task that `value` stands for, or an empty id and its value; None: for none."""
    if not isinstance(value, Promise):
        return None
    return (value.id, value.name) if value.id else ("", value.value)
