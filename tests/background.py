"""Daemons in the background, as init scripts start them."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from system import PATIENCE, Running, System, alive, until

LOGGING = """
[loggers]
keys = root
[handlers]
keys = file
[formatters]
keys =
[logger_root]
level = DEBUG
handlers = file
[handler_file]
class = FileHandler
args = ({path!r},)
"""


class Background(Running):
    """A daemon that was started in the background; `done` is what starting it came to."""

    def __init__(
        self, system: System, program: str, config: Path | str, *arguments: object, cwd: Path | None = None
    ) -> None:
        self.pid_file = system.directory / program / f"{program}.pid"
        self.status_file = self.pid_file.with_suffix(".status")
        self.pid_file.parent.mkdir(exist_ok=True)
        self.done = subprocess.run(
            system.command(f"taskqueue-{program}", config, "-p", self.pid_file, *arguments),
            env=system.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=cwd or system.directory,
        )
        super().__init__(int(self.pid_file.read_text()) if self.pid_file.exists() else 0)

    @property
    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        found: dict[str, Any] = json.loads(self.status_file.read_text())
        return found

    def wait_status(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until what it says fulfils `condition`."""
        until(lambda: condition(self.status), f"another status than {self.status}")
        return self.status

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self.signal(signal.SIGTERM)
        until(lambda: not alive(self.pid), "its end")


@contextmanager
def background(
    system: System, program: str, config: Path | str, *arguments: object, **more: Any
) -> Iterator[Background]:
    """Start a daemon in the background; it is gone afterwards."""
    daemon = Background(system, program, config, *arguments, **more)
    try:
        yield daemon
    finally:
        if daemon.pid and alive(daemon.pid):
            daemon.kill()
