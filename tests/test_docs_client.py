"""docs/client.md: every block is run, in order, over every broker."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from databases import PostgreSQL, with_schema
from tasking import until

import taskqueue
from taskqueue.errors import Unsupported

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "client.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
OPEN, RUN = 'connect("memory://")', "with taskqueue.running("
NEEDS_STORE = "# needs a store\n"


@pytest.mark.parametrize(
    "kind",
    ["memory", "sqlite", *(pytest.param(name, marks=pytest.mark.services) for name in ("postgresql", "amqp"))],
)
def test_every_block_does_what_it_says(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = "memory://"
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/shop.db"
    elif kind == "amqp":
        url = request.getfixturevalue("amqp_url")
    elif kind == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        url = server.url(server.database(with_schema))
    names: dict[str, object] = {"__name__": "__main__"}
    (start,) = [number for number, block in enumerate(BLOCKS) if RUN in block]
    for block in BLOCKS[: start + 1]:
        run(block.replace(OPEN, f"connect({url!r})"), names)
    queue, space = names["queue"], names["space"]
    assert isinstance(queue, taskqueue.Queue)
    with queue, taskqueue.running(queue, space, threads=4):
        for block in BLOCKS[start + 1 :]:
            if NEEDS_STORE in block and not queue.broker.capabilities.store:
                with pytest.raises(Unsupported):
                    run(block, names)
            else:
                run(block, names)
    # Nothing goes on behind the back of the other tests.
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("handler-")])


def run(block: str, names: dict[str, object]) -> None:
    # With its place in the document, for tracebacks.
    before = DOCUMENT.read_text().partition(block)[0].count("\n")
    exec(compile("\n" * before + block, DOCUMENT, "exec"), names)


def test_there_is_something_to_run() -> None:
    assert len(BLOCKS) >= 15 and sum(OPEN in block for block in BLOCKS) == 1
