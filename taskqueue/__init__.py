"""taskqueue hands work to worker processes on one or many hosts.

import taskqueue

with taskqueue.connect("sqlite:////srv/shop.db") as queue:
    id = queue.send("invoice", {"id": 7}, reference="order:4711")
    print(queue.result(id, timeout=60))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskqueue.client import Queue, connect

__all__ = ["Queue", "connect"]


def __getattr__(name: str) -> Any:
    """Import the client when it is used: daemons and worker processes are not to wait for it."""
    if name in __all__:
        from taskqueue import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
