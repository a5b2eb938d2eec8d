"""Which queues there are.  No transaction begins or ends here."""

from __future__ import annotations

import sqlite3

__all__ = ["REPLIES", "declare", "exists", "there"]

REPLIES = "taskqueue.reply."
"""What the names of reply queues begin with; they exist as long as their client."""


def declare(connection: sqlite3.Connection, queue: str) -> bool:
    """Make `queue`; False where it was there."""
    return connection.execute("INSERT OR IGNORE INTO queues (name) VALUES (?)", (queue,)).rowcount == 1


def exists(connection: sqlite3.Connection, queue: str) -> bool:
    """Whether there is such a queue."""
    return connection.execute("SELECT 1 FROM queues WHERE name = ?", (queue,)).fetchone() is not None


def there(connection: sqlite3.Connection, queue: str) -> bool:
    """Make `queue` where it does not exist; False if it is a client's that has gone."""
    if queue.startswith(REPLIES):
        return exists(connection, queue)
    declare(connection, queue)
    return True
