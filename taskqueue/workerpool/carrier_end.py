"""One carrier as its manager sees it: what is said to it, and whether it answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from taskqueue.config import Config, Group
from taskqueue.process.protocol import Kind
from taskqueue.process.spawn import Offspring
from taskqueue.process.wire import Wire
from taskqueue.upkeep import Keeping

__all__ = ["LATER", "MUTE_FOR", "NO_ANSWER", "CarrierEnd", "kept", "settings"]

PING_EVERY = 3.0  # seconds
MUTE_FOR = 30.0
"""Seconds without an answer after which a carrier is taken for hung, and killed."""
NO_ANSWER = "no answer"
LATER = ("formats", "keeping")
"""Settings that a carrier takes up while it works."""


def settings(config: Config, installed: Mapping[str, str], *, user: str, log_level: int) -> dict[str, Any]:
    """What a carrier is told to work with; `installed` are the formats of third parties."""
    return {
        "broker": {
            "url": config.url,
            "heartbeat": config.heartbeat,
            "queue_type": config.queue_type,
            "results_max_length": config.results_max_length,
            "dead_retention": config.dead_retention,
        },
        "log_level": log_level,
        "max_result": config.max_body,
        "formats": {
            "installed": dict(installed),
            "default": config.default_workitem_type,
            "read_as": dict(config.workitem_type_map),
        },
        "keeping": kept(config.keeping),
        "user": user,
    }


def kept(keeping: Keeping) -> dict[str, Any]:
    """What a carrier is told of what a store is to keep."""
    return {"default": keeping.default, "types": dict(keeping.types), "statistics": keeping.statistics}


class CarrierEnd:
    """A running carrier, and the manager's end of its socket.

    started: monotonic seconds.
    settings: what it was told to work with; another broker or user needs another carrier.
    retiring: it was told to end after what its worker processes run.
    trouble: why it can't reach the broker, in a sentence; empty: it can.
    answered: whether it has answered since this was last set to False.
    """

    def __init__(
        self,
        process: Offspring,
        sock: socket.socket,
        *,
        started: float,
        settings: Mapping[str, Any],
        heard: Callable[[CarrierEnd, Kind, Any], None],
        gone: Callable[[CarrierEnd, str], None],
        mute_for: float,
        rest: bytes = b"",
    ) -> None:
        """heard: called with everything that it says.

        gone: called with the reason when nothing can be said to it any more, or after `mute_for` seconds without an
        answer.
        rest: of a frame, which was read from `sock` before.
        """
        self.process = process
        self.started = started
        self.settings = dict(settings)
        self.retiring = False
        self.trouble = "not connected to the broker yet"
        self.answered = False
        self._heard = heard
        self._gone = gone
        self._mute_for = mute_for
        self._pings = 0  # without an answer
        self._wire = Wire(sock, self._on_frame, lambda reason: gone(self, reason), rest=rest)
        self._timer: asyncio.TimerHandle | None = None
        self._ping()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def _on_frame(self, kind: Kind, meta: Any, payload: bytes) -> None:
        match kind:
            case Kind.PONG:
                self._pings = 0
                self.answered = True
            case Kind.PING:
                self._wire.send(Kind.PONG)
            case Kind.BROKER:
                self.trouble = str(meta["trouble"])
                self._heard(self, kind, meta)
            case _:
                self._heard(self, kind, meta)

    def _ping(self) -> None:
        """Pings are counted, and not seconds: when the whole host was stopped for a while, nobody is to blame."""
        self._wire.read()
        every = min(PING_EVERY, self._mute_for / 3)
        if self._wire.ended:
            return
        if self._pings * every >= self._mute_for:
            self._gone(self, f"{NO_ANSWER} for {self._mute_for:g} s")
            return
        self._pings += 1
        self._wire.send(Kind.PING)
        self._timer = asyncio.get_running_loop().call_later(every, self._ping)

    def read(self) -> None:
        """Take up everything that it has said."""
        self._wire.read()

    def configure(self, settings: Mapping[str, Any]) -> None:
        """What it is to work with from now on: formats, what is kept, and what the first word of all names."""
        self.settings = dict(settings)
        self._wire.send(Kind.CONFIG, self.settings)

    def add(self, pid: int, group: Group, sock: socket.socket) -> None:
        """A worker process was started for it, with the other end of `sock`."""
        self._wire.send(Kind.PROCESS, {"pid": pid, "group": asdict(group)}, files=(sock.detach(),))

    def died(self, pid: int, how: str) -> None:
        """One of its worker processes is dead."""
        self._wire.send(Kind.DIED, {"pid": pid, "how": how})

    def retire_process(self, pid: int) -> None:
        """Let a worker process finish what it runs, and end."""
        self._wire.send(Kind.RETIRE, {"pid": pid})

    def drain(self, *, hard: bool = False, patient: bool = False) -> None:
        """Take nothing new, have everything finished, and end.

        hard: what runs is not waited for.  patient: it is, however long it takes.
        """
        self.retiring = True
        self._wire.send(Kind.DRAIN, {"hard": hard, "patient": patient})

    def flush(self, timeout: float) -> bool:
        """Wait until it has taken all that was said; False where it did not within `timeout` seconds."""
        return self._wire.flush(timeout)

    @property
    def left(self) -> tuple[int, bytes]:
        """The socket's descriptor, and what was read of a frame: for whoever goes on with it."""
        return self._wire.fileno(), self._wire.rest

    def log_state(self) -> None:
        """Have it write its state to the log."""
        self._wire.send(Kind.STATE)

    def close(self) -> None:
        """It is dead: read what it still said, and let go of the socket."""
        self._wire.read()
        if self._timer is not None:
            self._timer.cancel()
        self._wire.close("dead")
