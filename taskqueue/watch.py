"""Notices what is installed, upgraded and removed while a daemon runs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import pwd
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from taskqueue.discovery import Installed, marks_of
from taskqueue.errors import TaskQueueError
from taskqueue.process.spawn import account, environment

__all__ = ["Watch", "find_installed", "is_dpkg_busy"]

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds
PATIENCE = 30.0  # seconds that an interpreter has to say what it sees
DPKG_LOCKS = (Path("/var/lib/dpkg/lock-frontend"), Path("/var/lib/dpkg/lock"))
_FLOCK = "hhqqi4x"  # type, whence, start, length and pid of struct flock


async def find_installed() -> Installed:
    """What a fresh interpreter sees, as a worker process would.  Raises TaskQueueError where it can't say."""
    user = account(pwd.getpwuid(os.geteuid()).pw_name)
    assert user is not None
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", "taskqueue.discovery"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env=environment(user, {}),
        )
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await _everything(process)
        except TimeoutError:
            raise TaskQueueError(f"what is installed can't be found out within {PATIENCE:g} s") from None
        finally:
            process.kill()  # it has nothing more to say
            process.wait()
        try:
            return Installed.from_json(answer)
        except ValueError:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise TaskQueueError(f"what is installed can't be found out: {said or 'it ended without a word'}") from None


async def _everything(process: subprocess.Popen[bytes]) -> bytes:
    """All that it writes.  Without a thread, which asyncio's own processes cost."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
    try:
        return await reader.read()
    finally:
        transport.close()


class Watch:
    """Looks once a second at the directories that matter, and has a fresh interpreter look where they have changed.

    A change counts when it has been the same for one look, and while no package is being installed.
    """

    def __init__(
        self,
        installed: Installed,
        changed: Callable[[Installed], None],
        *,
        busy: Callable[[], bool] = lambda: is_dpkg_busy(),
        every: float = LOOK_EVERY,
    ) -> None:
        """changed: called with what is installed, each time that it has changed."""
        self._installed = installed
        self._known: Mapping[str, str] = installed.places
        self._before: Mapping[str, str] = installed.places
        self._changed = changed
        self._busy = busy
        self._every = every
        self._task = asyncio.get_running_loop().create_task(self._run())

    def knows(self, installed: Installed) -> None:
        """Somebody else has found out what is installed."""
        self._installed = installed
        self._known = installed.places

    async def close(self) -> None:
        """Look no more.  May be called twice."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            now = marks_of(self._known)
            if now != self._known and now == self._before and not self._busy():
                await self._look(now)
            self._before = now

    async def _look(self, now: Mapping[str, str]) -> None:
        try:
            found = await find_installed()
        except TaskQueueError as error:
            log.error("%s; the next change is waited for", error)
            self._known = now
            return
        before = self._installed
        self.knows(found)
        if found != before:
            self._changed(found)


def is_dpkg_busy(locks: tuple[Path, ...] = DPKG_LOCKS) -> bool:
    """Whether packages are being installed or removed right now, as far as this user may know."""
    return any(map(_is_locked, locks))


def _is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        return bool(struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)
    finally:
        os.close(file)
