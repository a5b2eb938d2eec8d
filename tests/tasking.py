"""Queues whose tasks (see shop_tasks) are run by threads of the test's own program."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import shop_tasks
from databases import PostgreSQL, with_schema

import taskqueue

PATIENCE = 60.0
STORES = ["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.services)]
ALL = [*STORES, pytest.param("amqp", marks=pytest.mark.services)]


def make_url(request: pytest.FixtureRequest, kind: str) -> str:
    if kind == "memory":
        return f"memory://{uuid.uuid4()}"
    if kind == "sqlite":
        directory: Path = request.getfixturevalue("tmp_path")
        return f"sqlite:///{directory}/queue.db"
    if kind == "amqp":
        found: str = request.getfixturevalue("amqp_url")
        return found
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.url(server.database(with_schema))


@contextlib.contextmanager
def served(url: str) -> Iterator[taskqueue.Queue]:
    shop_tasks.gate.clear()
    shop_tasks.called.clear()
    with taskqueue.connect(url) as queue, taskqueue.running(queue, shop_tasks.space, threads=4, retry_delay="0"):
        yield queue
        shop_tasks.gate.set()


def until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)
