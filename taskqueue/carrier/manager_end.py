"""The manager as its carrier sees it: both are processes, with a socket between them."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from taskqueue.broker import Options, connect
from taskqueue.carrier.carrier import Carrier
from taskqueue.config import Group
from taskqueue.process.protocol import Kind
from taskqueue.process.wire import Wire
from taskqueue.title import set_title
from taskqueue.upkeep import Keep, Keeping

__all__ = ["ManagerEnd"]

log = logging.getLogger(__name__)

FLUSH_WITHIN = 5.0  # seconds
LOG_BACKLOG = 1 << 22  # bytes: what worker processes log beyond what the manager takes is dropped, not piled up
HELLO = ("log_level", "max_result", "formats", "program")  # what worker processes are told of the configuration
PAIRS = ("environment", "settings")  # of a group; JSON makes lists of them


class ToManager(logging.Handler):
    """Hands log records to the manager: one log for all processes."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        self._wire.send(Kind.LOG, [record.name, record.levelno, self.format(record)])


class ManagerEnd:
    """A carrier that is a process.  It ends when it is drained, or at once when its manager is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._carrier = Carrier(self)
        self._connected = False
        self._over = False
        self._unsaid = 0
        self._asked: deque[Callable[[], None]] = deque()  # what is to be done when the manager answers
        self._wire = Wire(sock, self._told, self._orphaned, takes_files=True)

    async def run(self) -> None:
        """Work until drained.  Raises what went wrong inside."""
        logging.getLogger().addHandler(ToManager(self._wire))
        await self._carrier.run()
        self._over = True
        self._wire.send(Kind.DRAINED)
        self._wire.flush(FLUSH_WITHIN)

    def _orphaned(self, reason: str) -> None:
        if not self._over:
            os._exit(1)

    def _told(self, kind: Kind, meta: Any, payload: bytes) -> None:
        match kind:
            case Kind.CONFIG:
                self._configure(meta)
            case Kind.PROCESS:
                pairs = {name: tuple((str(n), str(v)) for n, v in meta["group"][name]) for name in PAIRS}
                group = Group(**{**meta["group"], **pairs})
                self._carrier.add(meta["pid"], group, socket.socket(fileno=self._wire.take_file()))
            case Kind.DIED:
                self._carrier.died(meta["pid"], meta["how"])
            case Kind.RETIRE:
                self._carrier.retire_process(meta["pid"])
            case Kind.DRAIN:
                self._carrier.drain(hard=meta["hard"], patient=meta["patient"])
            case Kind.STATE:
                self._carrier.log_state()
            case Kind.PING:
                self._wire.send(Kind.PONG)
            case Kind.PONG:
                self._asked.popleft()()
            case _:
                raise ValueError(f"the manager does not say {kind.name}")

    def _configure(self, meta: dict[str, Any]) -> None:
        """The first time it names the broker as well; later only what worker processes are told, and what is kept."""
        self._carrier.configure({name: meta[name] for name in HELLO if name in meta}, _keeping(meta["keeping"]))
        if not self._connected:
            self._connected = True
            logging.getLogger().setLevel(meta.get("own_log_level", meta["log_level"]))
            self._carrier.open(connect(Options(**meta["broker"])), alone=meta.get("alone", False))

    # What the carrier says.

    def up(self, pid: int) -> None:
        self._wire.send(Kind.UP, {"pid": pid})

    def down(self, group: str, error: str, traceback: str) -> None:
        self._wire.send(Kind.DOWN, {"group": group, "error": error, "traceback": traceback})

    def worked(self, pid: int, group: str) -> None:
        self._wire.send(Kind.WORKED, {"pid": pid, "group": group})

    def recycle(self, pid: int) -> None:
        self._wire.send(Kind.RECYCLE, {"pid": pid})

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        self._wire.send(Kind.KILL, {"pid": pid, "signal": number})

    def when_seen(self, then: Callable[[], None]) -> None:
        self._asked.append(then)
        self._wire.send(Kind.PING)

    def said(self, name: str, level: int, text: str) -> None:
        if self._wire.backlog > LOG_BACKLOG:
            self._unsaid += 1
            return
        if self._unsaid:
            log.warning("%d log records of worker processes were dropped: there were too many", self._unsaid)
            self._unsaid = 0
        self._wire.send(Kind.LOG, [name, level, text])

    def troubled(self, trouble: str) -> None:
        self._wire.send(Kind.BROKER, {"trouble": trouble})

    def shown(self, doing: str) -> None:
        set_title(f"carrier, {doing}")


def _keeping(meta: dict[str, Any]) -> Keeping:
    types = {type: Keep(*keep) for type, keep in meta["types"].items()}
    return Keeping(default=Keep(*meta["default"]), types=types, statistics=meta["statistics"])
