"""PostgreSQL: many workitems in one call, as producers send them, and by COPY into the view `outgoing`; in alternation.

The latter is what any program can do by SQL.
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
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def copy(connection: psycopg.Connection, workitems: Sequence[Workitem]) -> None:
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
        rates: dict[str, list[float]] = {"producer": [], "COPY": []}
        with contextlib.closing(server.admin(database)) as owner:
            ways = dict(zip(rates, (producer.send, partial(copy, owner)), strict=True))
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
