"""The carrier of a program, as a process of its own: what holds the program up holds no lease up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskqueue.clock import SYSTEM
from taskqueue.config import Group
from taskqueue.errors import PluginError
from taskqueue.inside.manager import Manager
from taskqueue.plan import Deaths, died
from taskqueue.process.protocol import Kind
from taskqueue.process.spawn import ended, everything_of, how_it_ended, spawn_inside
from taskqueue.workerpool.carrier_end import MUTE_FOR, NO_ANSWER, CarrierEnd
from taskqueue.workerpool.processes import GRACE

__all__ = ["CarrierApart"]

log = logging.getLogger(__name__)


class CarrierApart:
    """Looks like `Carrier` to whoever has it; one that dies is replaced.

    manager: told what it says.  settings: what it is told to work with, as `taskqueue.workerpool.carrier_end` has them.
    """

    def __init__(self, manager: Manager, settings: Mapping[str, Any]) -> None:
        self._manager = manager
        self._settings = settings
        self._end: CarrierEnd | None = None
        self._added: dict[int, tuple[Group, socket.socket]] = {}  # while there is none
        self._draining = asyncio.Event()
        self._drained = False
        self._works = False  # whether one has ever got so far
        self._error = ""  # what was logged last
        self._deaths: Deaths | None = None

    async def run(self) -> None:
        """Work until drained.  Raises PluginError where it can't be started."""
        while not self._draining.is_set():
            started = SYSTEM.monotonic()
            try:
                how = await self._one(started)
            except PluginError as error:
                how = str(error)
            if self._drained:
                return
            if not self._works:
                raise PluginError(f"the carrier can't be started: {how}\n{self._error}")
            log.error("there is no carrier: %s; another one takes its place, and what it had is done again", how)
            self._manager.bereaved()
            now = SYSTEM.monotonic()
            self._deaths = died(self._deaths, started=started, now=now, jitter=random.random())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._deaths.restart - now):
                    await self._draining.wait()
        self._let_go()
        self._manager.bereaved()  # workers that have been started since

    async def _one(self, started: float) -> str:
        """Have one, which `started` now; how it ended.  Raises PluginError."""
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        process, sock = spawn_inside("taskqueue.carrier", {"PYTHONPATH": path})
        end = self._end = CarrierEnd(
            process,
            sock,
            started=started,
            settings=self._settings,
            heard=self._heard,
            gone=self._mute,
            mute_for=MUTE_FOR,
        )
        end.configure(self._settings)
        for pid, (group, worker) in self._added.items():
            end.add(pid, group, worker)
        self._added.clear()
        returncode = await _end_of(process)
        self._end = None
        end.close()
        return f"process {process.pid} ended with {how_it_ended(returncode)}"

    def add(self, pid: int, group: Group, sock: socket.socket) -> None:
        """A worker process was started, with the other end of `sock`."""
        if self._end is None:
            self._added[pid] = group, sock
        else:
            self._end.add(pid, group, sock)

    def died(self, pid: int, how: str) -> None:
        """A worker process is dead."""
        if pid in self._added:
            self._added.pop(pid)[1].close()
        elif self._end is not None:
            self._end.died(pid, how)

    def retire_process(self, pid: int) -> None:
        """Let a worker process finish what it runs, and end."""
        if self._end is not None:
            self._end.retire_process(pid)

    def drain(self, *, hard: bool = False) -> None:
        """Take nothing new, have everything finished, and end.  hard: what runs is not waited for."""
        self._draining.set()
        if self._end is not None:
            self._end.drain(hard=hard)

    async def close(self) -> None:
        """End at once: what it has is given back."""
        self._let_go()
        if self._end is not None:
            everything_of(self._end.process, signal.SIGKILL)
            self._end.process.wait()

    def _let_go(self) -> None:
        for _, sock in self._added.values():
            sock.close()
        self._added.clear()

    def _mute(self, end: CarrierEnd, reason: str) -> None:
        """It is ending; or it speaks nonsense, or nothing at all."""
        grace = 0.0 if reason.startswith(("nonsense", NO_ANSWER)) else GRACE
        asyncio.get_running_loop().call_later(grace, everything_of, end.process, signal.SIGKILL)

    def _heard(self, end: CarrierEnd, kind: Kind, meta: Any) -> None:
        match kind:
            case Kind.BROKER:
                self._works = True
                self._manager.troubled(end.trouble)
            case Kind.UP:
                self._works = True
                self._manager.up(meta["pid"])
            case Kind.DOWN:
                self._manager.down(meta["group"], meta["error"], meta["traceback"])
            case Kind.WORKED:
                self._manager.worked(meta["pid"], meta["group"])
            case Kind.RECYCLE:
                self._manager.recycle(meta["pid"])
            case Kind.KILL:
                self._manager.kill(meta["pid"], signal.Signals(meta["signal"]))
            case Kind.DRAINED:
                self._drained = True
            case Kind.LOG:
                name, level, text = str(meta[0]), int(meta[1]), str(meta[2])
                self._error = text if level >= logging.ERROR else self._error
                self._manager.said(name, level, text)
            case _:
                raise ValueError(f"a carrier does not say {kind.name}")


async def _end_of(process: subprocess.Popen[bytes]) -> int:
    """Wait until it has ended; its returncode."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    try:
        file = os.pidfd_open(process.pid)
    except ProcessLookupError:  # the program does not want to know how its children end
        return process.wait()
    try:
        loop.add_reader(file, over.set)
        while (returncode := ended(process)) is None:
            await over.wait()
        return returncode
    finally:
        loop.remove_reader(file)
        os.close(file)
