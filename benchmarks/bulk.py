"""PostgreSQL: many workitems in one call, by the function `put` as producers do, and by COPY; in alternation.

COPY into the table needs a right on it, which no role of docs/postgresql.md has: it is here to see what that would be
worth.  COPY into the view `outgoing` is what anybody can do by SQL.
One private server with fsync on.  With --help: what can be chosen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psycopg

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests"))

from databases import PostgreSQL, with_schema  # noqa: E402

from taskqueue.broker import connect  # noqa: E402
from taskqueue.workitem import Workitem  # noqa: E402

BODY = json.dumps({"number": 0, "padding": "x" * 190}).encode()
ITEM = Workitem(body=BODY, content_type="application/json", type="nothing", reference="order:4711")
COLUMNS = "queue, id, type, reference, sender, content_type, body"
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def copy(connection: psycopg.Connection, workitems: Sequence[Workitem]) -> None:
    """All of them in one transaction, in COPY's text format, which is quicker to make here than the binary one."""
    lines = []
    for workitem in workitems:
        item = workitem.named()
        texts = (f"worker_{item.type}", item.id, item.type, item.reference, "bench", item.content_type)
        lines.append("\t".join(text.translate(ESCAPES) for text in texts) + f"\t\\\\x{item.body.hex()}\n")
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO taskqueue.queues SELECT 'worker_nothing', 0 WHERE NOT EXISTS (SELECT FROM taskqueue.queues)"
        )
        with cursor.copy(f"COPY taskqueue.workitems ({COLUMNS}) FROM STDIN".encode()) as into:
            into.write("".join(lines))
        cursor.execute("SELECT pg_notify('taskqueue', 'worker_nothing')")


def copy_by_view(connection: psycopg.Connection, workitems: Sequence[Workitem]) -> None:
    """The same as any program without this project does it."""
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY taskqueue.outgoing (type, body, reference) FROM STDIN") as into,
    ):
        lines = (f"{w.type}\t{w.body.decode().translate(ESCAPES)}\t{w.reference}\n" for w in workitems)
        into.write("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20_000, help="workitems in each round")
    parser.add_argument("--at-once", type=int, default=1000, help="workitems in each call")
    args = parser.parse_args()
    server = PostgreSQL(fsync=True, settings=("shared_buffers = '256MB'", "max_wal_size = '4GB'"))
    server.start()
    try:
        database = server.database(with_schema)
        producer = connect(server.url(database)).producer()
        batch = [ITEM] * args.at_once
        rates: dict[str, list[float]] = {"put": [], "copy into the table": [], "copy into the view": []}
        with contextlib.closing(server.admin(database)) as owner:
            ways = dict(zip(rates, (producer.send, partial(copy, owner), partial(copy_by_view, owner)), strict=True))
            for _ in range(args.rounds):
                for name in rates:
                    begun = time.perf_counter()
                    for _ in range(args.count // args.at_once):
                        ways[name](batch)
                    rates[name].append(args.count / (time.perf_counter() - begun))
                    owner.execute("TRUNCATE taskqueue.workitems")
                    owner.execute("CHECKPOINT")
        producer.close()
        for name, found in rates.items():
            print(f"{name:20} {statistics.median(found):8,.0f}/s ({min(found):,.0f} to {max(found):,.0f})")
    finally:
        server.close()


if __name__ == "__main__":
    main()
