"""A program that runs workers inside, and hears what becomes of what it sends."""

from __future__ import annotations

import json
import time
from typing import Any

import handlers
from system import PATIENCE

import taskqueue
from taskqueue.broker import Producer
from taskqueue.workitem import Workitem

KINDS = ("processes", "threads")


class Asking:
    """A queue, and a producer whose replies say what became of what it sent."""

    def __init__(self, url: str, name: str = "default") -> None:
        self.queue = taskqueue.connect(url, name)
        self.producer: Producer = self.queue.broker.producer()
        self._heard: dict[str, Workitem] = {}

    def send(self, *body: object, id: str = "") -> str:
        workitem = self.queue.workitem(self.queue.name, list(body), id=id or None)
        return self.producer.send([workitem], reply=True)[0]

    def reply(self, id: str, timeout: float = PATIENCE) -> Any:
        """What the handler returned, or the error as text; None where nothing comes within `timeout`."""
        end = time.monotonic() + timeout
        while id not in self._heard:
            reply = self.producer.next_reply(timeout=max(0.0, end - time.monotonic()))
            if reply is None:
                return None
            self._heard[reply.correlation_id] = reply
        reply = self._heard[id]
        return reply.headers["error"] if reply.headers["status"] == "failed" else json.loads(reply.body)

    def ask(self, *body: object) -> Any:
        return self.reply(self.send(*body))

    def close(self) -> None:
        self.producer.close()
        self.queue.close()


def running(asking: Asking, worker: object = handlers.Worker, *, kind: str, count: int = 1, **options: Any) -> Any:
    return taskqueue.running(asking.queue, worker, **{kind: count}, **options)
