"""Workers for programs that run them inside: in a module that a worker process imports in no time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from taskqueue.worker import BaseWorker

log = logging.getLogger("handlers")


class Worker(BaseWorker):
    """Does what the body says: a list of a word and its arguments."""

    def handle_task(self, body: list[Any]) -> Any:
        word, *rest = body
        return getattr(self, word)(*rest)

    def double(self, number: int) -> int:
        return 2 * number

    def where(self) -> dict[str, Any]:
        umask = os.umask(0)
        os.umask(umask)
        return {
            "pid": os.getpid(),
            "thread": threading.current_thread().name,
            "environment": dict(os.environ),
            "directory": str(Path.cwd()),
            "umask": umask,
            "settings": dict(self.settings),
            "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        }

    def attempt(self) -> int:
        return self.workitem.attempt

    def meet(self, directory: str, count: int) -> int:
        """Come back once `count` of them are here, or never."""
        (Path(directory) / self.workitem.id).touch()
        until(lambda: len(list(Path(directory).iterdir())) >= count)
        return count

    def hold(self, directory: str) -> int:
        """Come back once somebody has put a file `go` there."""
        (Path(directory) / f"started.{self.workitem.attempt}").write_text(str(os.getpid()))
        until((Path(directory) / "go").exists)
        (Path(directory) / "finished").touch()
        return self.workitem.attempt

    def crash_once(self) -> int:
        if self.workitem.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.workitem.attempt

    def tally(self, file: str, number: int, crash: bool) -> int:
        """Leave a number in a file; crash: and die of it, the first time."""
        with open(file, "a") as tally:
            tally.write(f"{number}\n")
        if crash and self.workitem.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def fail(self) -> None:
        raise LookupError("nothing here")

    def say(self, text: str) -> None:
        log.warning("%s", text)

    def spin(self, seconds: float) -> None:
        """Python code that never waits."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass


class Asynchronous(BaseWorker):
    async def handle_task(self, body: str) -> int:
        """Come back once two of them are here."""
        (Path(body) / self.workitem.id).touch()
        while len(list(Path(body).iterdir())) < 2:
            await asyncio.sleep(0.005)
        return 2


class Unready(BaseWorker):
    def setup(self) -> None:
        raise LookupError("no such table")


class Completing(BaseWorker):
    completes = True

    def handle_task(self, file: str) -> None:
        """End it in a transaction of its own, which writes something, too."""
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS done (id)")
            connection.execute("INSERT INTO done VALUES (?)", [self.workitem.id])
            self.complete(connection, "completed")


class Space:
    """Makes its worker, as an object that has a name in its module."""

    def __init__(self, module: str) -> None:
        self.module = module

    def factory(self) -> Worker:
        return Worker()


def make() -> Worker:
    return Worker()


space = Space(__name__)


def until(met: Any) -> None:
    while not met():
        time.sleep(0.005)
