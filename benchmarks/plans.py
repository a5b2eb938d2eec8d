"""PostgreSQL: the plans of the hot queries, as the server executed them beside a long past and a long queue.

Fills a private server's database, settles and claims some batches by the project's own broker, and prints each
statement inside of the schema's functions with its plan, as auto_explain wrote it into the server's log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests"), str(TOP / "benchmarks")]

from databases import PostgreSQL, with_schema  # noqa: E402
from growth import DAYS, PAST, WAITING  # noqa: E402
from postgresql import BODY, SETTINGS  # noqa: E402

from taskqueue.broker import Broker, Ended, connect  # noqa: E402
from taskqueue.outcome import Done, Rules  # noqa: E402
from taskqueue.record import Run  # noqa: E402
from taskqueue.workitem import Workitem  # noqa: E402

BATCH, BATCHES = 100, 20
EXPLAIN = (
    "auto_explain.log_min_duration = 0", "auto_explain.log_nested_statements = on", "auto_explain.log_analyze = on",
    "auto_explain.log_timing = off", "auto_explain.log_buffers = off", "auto_explain.log_triggers = off",
)  # fmt: skip
ENTRY = re.compile(r"LOG:  duration: ([\d.]+) ms  plan:\n\tQuery Text: ((?:.*\n)(?:\t.*\n)*)")
TABLES = re.compile(r"\b(workitems|history|history_\w+|dependencies|carriers)\b")


async def work(broker: Broker) -> None:
    """Claim and settle, as a carrier does it."""
    consumer = broker.consumer("worker_nothing", reserve=BATCH)
    run = Run("host", "user", 1, 1.0, 2.0, 0.1, 1 << 20)
    for _ in range(BATCHES):
        lent = await consumer.receive(limit=BATCH)
        await consumer.settle([Ended(each, Done(), Rules(results_routing_key="results"), run) for each in lent])
    await broker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ended", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=1_000_000)
    args = parser.parse_args()
    server = PostgreSQL(fsync=True, settings=SETTINGS)
    try:
        server.start()
        database = server.database(with_schema)
        with contextlib.closing(server.admin(database)) as connection:
            connection.execute(DAYS)
            connection.execute(PAST.encode(), [args.ended])
            connection.execute(WAITING.encode(), ["worker_nothing", BODY.encode(), args.waiting])
            connection.execute("INSERT INTO taskqueue.queues VALUES ('worker_nothing', 0)")
            connection.execute("VACUUM ANALYZE")
            connection.execute(f"ALTER DATABASE {database} SET session_preload_libraries = 'auto_explain'".encode())
            for setting in EXPLAIN:
                connection.execute(f"ALTER DATABASE {database} SET {setting}".encode())
        begin = server.log.stat().st_size
        url = server.url(database)
        producer = connect(url).producer()
        producer.send([Workitem(body=BODY.encode(), type="nothing", reference="order:1")] * BATCH)
        producer.close()
        store = connect(url).store()
        store.history(reference="order:1")
        store.close()
        asyncio.run(work(connect(url)))
        text = server.log.read_bytes()[begin:].decode(errors="replace")
    finally:
        server.close()
    found: dict[str, tuple[float, list[str], list[str]]] = {}
    for milliseconds, entry in ENTRY.findall(text):
        lines = [line.removeprefix("\t") for line in entry.splitlines()]
        at = next(number for number, line in enumerate(lines) if "  (cost=" in line)
        if any(TABLES.search(line) for line in lines[at:]):
            found[" ".join(lines[:at])] = float(milliseconds), lines[:at], lines[at:]
    for duration, query, plan in found.values():
        print(f"=== {duration:.3f} ms", *query, "", *plan, "", sep="\n")


if __name__ == "__main__":
    main()
