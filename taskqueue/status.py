"""How a daemon is, as one small value that people and programs can read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

__all__ = ["READY_WITHIN", "State", "Status", "judge", "status_file"]

State = Literal["starting", "running", "degraded", "stopping"]

READY_WITHIN = 5.0
"""Seconds that a daemon has for its start; then it runs, degraded where something is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a daemon is.

    status: a sentence for people, in one line, without secrets.
    reloads: how many have finished, whether they took or not.
    problems: what was wrong with the last one; empty: it took.
    """

    pid: int
    state: State
    status: str
    reloads: int = 0
    problems: tuple[str, ...] = ()
    version: str = ""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def from_json(text: str) -> Status:
        """What `to_json` wrote, of this version or another.  Raises ValueError for anything else."""
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("not a status")
        known = {field.name for field in fields(Status)}
        try:
            status = Status(**{name: value for name, value in found.items() if name in known})
        except TypeError as error:
            raise ValueError(f"not a status: {error}") from None
        return Status(**{**asdict(status), "problems": tuple(status.problems)})


def judge(missing: Sequence[str], *, pending: bool, late: bool, was_ready: bool, stopping: bool) -> State:
    """The state of a daemon.

    missing: sentences about what it lacks to do its work.
    pending: its start is not through, and nothing is known to be wrong.
    late: it has had the time for its start.  was_ready: it has been ready before.
    """
    if stopping:
        return "stopping"
    if not (late or was_ready) and (missing or pending):
        return "starting"
    return "degraded" if missing else "running"


def status_file(pid_file: Path) -> Path:
    """Where the daemon that holds `pid_file` keeps its status."""
    return pid_file.with_suffix(".status")
