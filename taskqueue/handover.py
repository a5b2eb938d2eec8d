"""A daemon goes on as the version of itself that is installed now: same process, same children, same pid file."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TextIO

__all__ = [
    "SIGNALS",
    "VERSION",
    "become_anew",
    "check",
    "hold_signals",
    "last_signals",
    "left_by_predecessor",
    "release_signals",
]

log = logging.getLogger(__name__)

VARIABLE = "TASKQUEUE_HANDOVER"
"""In the environment: the descriptor of a file that says what the program before this one left."""
VERSION = 1
"""Of what is in that file; later programs understand earlier ones."""
PATIENCE = 30.0  # seconds that the new version has to say whether it could go on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
"""Those that mean something to a daemon, and would end it between two programs."""


def left_by_predecessor() -> dict[str, Any] | None:
    """What the program left that this process was before; None: there was none.  To be called once."""
    number = os.environ.pop(VARIABLE, "")
    if not number:
        return None
    with open(int(number), encoding="utf-8") as file:
        file.seek(0)
        left: dict[str, Any] = json.load(file)
    if left.get("version") != VERSION:
        raise ValueError(f"a handover of version {left.get('version')}, and this program knows {VERSION}")
    return left


async def check(arguments: Sequence[str], left: Mapping[str, Any]) -> str:
    """Why the version that is installed now could not go on; empty: it could, as far as that can be known before."""
    with _file(left) as file, tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *_command([*arguments, "--check"]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env={**os.environ, VARIABLE: str(file.fileno())},
            pass_fds=(file.fileno(),),
        )
        try:
            async with asyncio.timeout(PATIENCE):
                status = await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"it did not say within {PATIENCE:g} s that it can start"
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    return "" if status == 0 else said.removeprefix("taskqueue: ") or f"exit status {status}"


def become_anew(arguments: Sequence[str], left: Mapping[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Become `taskqueue ARGUMENTS` as it is installed now, with these files open.

    Raises OSError where that can't be done; nothing has changed then.
    """
    with _file(left) as file:
        kept = [file.fileno(), *descriptors]
        for descriptor in kept:
            os.set_inheritable(descriptor, True)
        command = _command(arguments)
        try:
            os.execve(command[0], command, {**os.environ, VARIABLE: str(file.fileno())})
        finally:  # it did not work
            for descriptor in kept:
                os.set_inheritable(descriptor, False)


def hold_signals() -> None:
    """Until the next program has its handlers: a signal that comes in between is not lost, and ends nothing."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


async def last_signals() -> None:
    """After `hold_signals`: have the handlers called for those that came before."""
    for _ in range(3):  # the event loop reads of them, then calls the handlers
        await asyncio.sleep(0)


def release_signals() -> None:
    """The handlers are there."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-P", "-m", "taskqueue", *arguments]


def _file(left: Mapping[str, Any]) -> TextIO:
    # In memory: environments and settings of groups may hold secrets, which are to be on no disk.
    file = open(os.memfd_create("taskqueue-handover"), "w", encoding="utf-8")  # noqa: SIM115  (the caller closes it)
    json.dump({**left, "version": VERSION}, file)
    file.flush()
    return file
