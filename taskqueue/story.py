"""The attempts of a workitem as one text, to which each adds its own: for stores that keep it in a column."""

from __future__ import annotations

import json
from functools import lru_cache

from taskqueue.record import Attempt, Progress, Run

__all__ = ["attempts", "brief", "more", "running", "told"]

_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: it costs as much as what it does


def more(story: str, attempt: Attempt) -> str:
    """A story that goes on with `attempt`; JSON in ASCII, and empty at first."""
    run = attempt.run
    if run is None or run.cpu is None or run.ended is None or attempt[3:] != ("", "", None, ()):
        text = _encode(attempt)
    else:  # nothing to tell, as nearly always: in a third of the time
        text = brief(attempt.number, attempt.outcome, run)
    return f"{story[:-1]},{text}]" if story else f"[{text}]"


def brief(number: int, outcome: str, run: Run) -> str:
    """The attempt `number`, of which there is nothing to tell but how it ran: until it ended, with its CPU time."""
    host, user, pid, started, ended, cpu, memory = run
    assert ended is not None and cpu is not None
    how = f"{int(started * 1e6)}e-6,{int(ended * 1e6)}e-6,{int(cpu * 1e6)}e-6,{memory or 'null'}"
    return f'[{number},"{outcome}",[{_where(host, user, pid)},{how}],"","",null,[]]'


@lru_cache(maxsize=1024)
def _where(host: str, user: str, pid: int) -> str:
    return _encode((host, user, pid))[1:-1]


def attempts(story: str) -> tuple[Attempt, ...]:
    """What a story tells."""
    return tuple(
        Attempt(number, outcome, run and Run(*run), error, traceback, again, tuple(log))
        for number, outcome, run, error, traceback, again, log in json.loads(story or "[]")
    )


def told(run: Run, progress: Progress | None) -> str:
    """What is said of an attempt while it is under way, as text."""
    return _encode((run, progress))


def running(text: str) -> tuple[Run | None, Progress | None]:
    """What was `told`; empty: nothing was."""
    if not text:
        return None, None
    run, progress = json.loads(text)
    return Run(*run), progress and Progress(*progress)
