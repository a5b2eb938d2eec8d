"""Functions that are called when tasks have ended, one after the other, in a thread of their own."""

from __future__ import annotations

import queue as queues
import threading
from collections.abc import Callable

__all__ = ["Callbacks"]

LINGER = 5.0  # seconds that the thread stays when there is nothing to call


class Callbacks:
    """In a thread that hears of nothing itself: one that waits for other tasks keeps only other callbacks waiting."""

    def __init__(self) -> None:
        self._todo: queues.SimpleQueue[Callable[[], object]] = queues.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], object]) -> None:
        """Have `function`, which raises nothing, called soon."""
        self._todo.put(function)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="taskqueue-callbacks", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._todo.get(timeout=LINGER)()
            except queues.Empty:
                with self._lock:
                    if self._todo.empty():
                        self._thread = None
                        return
