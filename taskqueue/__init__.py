"""taskqueue hands work to worker processes on one or many hosts.

import taskqueue

with taskqueue.connect("sqlite:////srv/shop.db") as queue:
    id = queue.send("invoice", {"id": 7}, reference="order:4711")
    print(queue.result(id, timeout=60))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskqueue.client import Queue, connect
    from taskqueue.inside.running import running

__all__ = ["Queue", "connect", "running"]


def __getattr__(name: str) -> Any:
    """Import these when they are used: daemons and worker processes are not to wait for them."""
    if name == "running":
        from taskqueue.inside.running import running

        return running
    if name in __all__:
        from taskqueue import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
