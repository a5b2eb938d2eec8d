"""What systemd hears: from a daemon's service over a real socket, as systemd's."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskqueue.service import Service


class Moving:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


def heard(systemd: socket.socket) -> list[str]:
    said: list[str] = []
    while True:
        try:
            said += systemd.recv(4096).decode().splitlines()
        except BlockingIOError:
            return said


def test_it_is_ready_when_nothing_is_missing_and_changes_follow(systemd: socket.socket, tmp_path: Path) -> None:
    answers: list[str] = []

    async def test() -> None:
        service = Service(tmp_path / "x.status", started=answers.append)
        service.begin()
        assert heard(systemd) == ["STATUS=starting: starting"]
        service.show("1 of 2", missing=["no broker"], pending=True)  # said a little later, where it stays so
        service.show("2 of 2")
        assert heard(systemd) == ["READY=1", "STATUS=running: 2 of 2"]
        assert answers == [""]
        service.show("2 of 2", missing=["no brökër\nat all"])
        assert heard(systemd) == ["STATUS=degraded: no brökër at all; 2 of 2"]
        assert json.loads((tmp_path / "x.status").read_text())["state"] == "degraded"
        service.reloading()
        reloading, monotonic = heard(systemd)
        assert reloading == "RELOADING=1" and monotonic.partition("=")[0] == "MONOTONIC_USEC"
        service.reloaded(["line 1 is wrong"])
        assert heard(systemd) == ["STATUS=degraded: no brökër at all; 2 of 2", "READY=1"]
        assert json.loads((tmp_path / "x.status").read_text())["problems"] == ["line 1 is wrong"]
        service.close()
        assert not (tmp_path / "x.status").exists()

    asyncio.run(test())


def test_what_is_missing_after_its_time_is_ready_and_degraded(systemd: socket.socket) -> None:
    clock, answers = Moving(), []

    async def test() -> None:
        service = Service(started=answers.append, clock=clock)
        service.begin()
        service.show("", missing=["no broker"])
        clock.now += 5.1
        service.show("", missing=["no broker", "group x is failing"])
        assert heard(systemd)[-2:] == ["READY=1", "STATUS=degraded: no broker; group x is failing;"]
        service.close()

    asyncio.run(test())
    assert answers == ["no broker; group x is failing"]


def test_the_stop_is_said_once_and_prolonged_as_long_as_it_goes_on(systemd: socket.socket) -> None:
    clock = Moving()

    async def test() -> None:
        service = Service(clock=clock)
        service.begin()
        service.show("")
        heard(systemd)
        service.stopping()
        service.stopping()
        first = heard(systemd)
        clock.now += 6
        service.stopping()
        assert first[:2] == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=15000000"]
        assert heard(systemd) == ["EXTEND_TIMEOUT_USEC=15000000"]
        service.close()

    asyncio.run(test())


def test_the_watchdog_is_fed_while_the_work_goes_on_and_only_then(systemd: socket.socket) -> None:
    async def test() -> None:
        loop, going_on = asyncio.get_running_loop(), True
        service = Service(environment={**os.environ, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())})
        service.begin(lambda: going_on)
        fed = 0
        while fed < 3:
            await loop.run_in_executor(None, lambda: None)
            fed += heard(systemd).count("WATCHDOG=1")
        going_on = False
        heard(systemd)
        await asyncio.sleep(0.3)
        assert "WATCHDOG=1" not in heard(systemd)
        service.close()

    asyncio.run(test())


def test_another_process_watchdog_is_not_fed(systemd: socket.socket) -> None:
    async def test() -> None:
        service = Service(environment={**os.environ, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"})
        service.begin()
        assert "WATCHDOG=1" not in heard(systemd)
        service.close()

    asyncio.run(test())
