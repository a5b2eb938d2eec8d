"""Workers that end their workitems together with what they write."""

import contextlib
import os
import signal
import sqlite3
from pathlib import Path

from taskqueue.worker import BaseWorker


def connect(database):
    """A connection of the shop's own."""
    if "://" not in database:
        return sqlite3.connect(database, timeout=30)
    import psycopg

    return psycopg.connect(database)


class Worker(BaseWorker):
    """Writes into the table `done`, and completes.

    Body: {"database": where, "notes": a directory, "stop": the point at which to stop once, "how": `kill`, `raise` or
    `wait`, "result": what to complete with}.  Points: connected, written, completed, committed, closed.  With "how":
    `forget` nothing is committed.
    """

    completes = True

    def handle_task(self, body):
        id, notes = self.workitem.id, Path(body["notes"])
        with (notes / f"{id}.runs").open("a") as file:
            file.write("run\n")

        def point(name):
            if name != body["stop"] or (notes / f"{id}.stopped").exists():
                return
            (notes / f"{id}.stopped").write_text(str(os.getpid()))
            if body["how"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif body["how"] == "raise":
                raise ValueError(f"stopped when {name}")
            else:
                signal.pause()

        with contextlib.closing(connect(body["database"])) as connection:
            point("connected")
            connection.execute(f"INSERT INTO done VALUES ('{id}')")
            point("written")
            self.complete(connection, body["result"])
            point("completed")
            if body["how"] == "forget":
                return "nothing was committed"
            connection.commit()
            point("committed")
        point("closed")
        return "nobody hears this"


class Loop(BaseWorker):
    """The same in an event loop, without the stops."""

    completes = True

    async def handle_task(self, body):
        with contextlib.closing(connect(body["database"])) as connection:
            connection.execute(f"INSERT INTO done VALUES ('{self.workitem.id}')")
            self.complete(connection, body["result"])
            connection.commit()
