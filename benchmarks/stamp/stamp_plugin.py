"""Writes down how late a workitem is started."""

from __future__ import annotations

import os
import time

from taskqueue.worker import BaseWorker


class Stamp(BaseWorker):
    """The body is when it was sent, monotonic seconds; the latency goes to the file of the setting `file`."""

    def setup(self) -> None:
        self.file = os.open(self.settings["file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def handle_task(self, body: float) -> None:
        os.write(self.file, f"{time.monotonic() - body}\n".encode())
