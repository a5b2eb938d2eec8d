"""PostgreSQL: whether the cost grows with the past, with the queue, with time, or beside an old transaction.

One private server with fsync on; real daemons with two worker processes.  Drains are compared in alternation, each in
a database of its own: an empty one, one with many ended workitems, one with many that wait in another queue and in the
same one.  The two long runs watch one database for some minutes: at the full rate (rows that are dead, sizes of tables
and indexes), and at a steady rate beside an open transaction (the latency).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests"), str(TOP / "benchmarks")]

from databases import PostgreSQL  # noqa: E402
from installations import Installation  # noqa: E402
from postgresql import BODY, SETTINGS, Ours, drain, pace, plugins  # noqa: E402

from taskqueue.broker import connect  # noqa: E402
from taskqueue.workitem import Workitem  # noqa: E402

PAST = """
INSERT INTO taskqueue.history (
    seq, sent, ended, attempt, crashes, priority, state, id, type, queue, reference, sender, worker, error, result_type,
    story, running, result
)
SELECT
    -n, now() - interval '1 day' * (1 + n %% 29), now() - interval '1 day' * (1 + n %% 29), 1, 0, 0, 'succeeded',
    replace(gen_random_uuid()::text, '-', ''), 'nothing', 'worker_nothing', 'order:' || n, 'shop@host:1', 'host:1', '',
    'application/json', '[[1,"succeeded",["host","nobody",1,1e9,1e9,1e-5,20000000],"","",null,[]]]', '', 'null'
FROM generate_series(1, %s) n
"""
WAITING = """
INSERT INTO taskqueue.workitems (queue, id, type, content_type, body)
SELECT %s, replace(gen_random_uuid()::text, '-', ''), 'nothing', 'application/json', %s FROM generate_series(1, %s)
"""
NOW = "ended > now() - interval '12 hours'"  # so that the server looks at no other day
DAYS = "SELECT taskqueue.make_partitions((now() AT TIME ZONE 'UTC')::date - 30, 30)"
SIZES = """
SELECT
    (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'workitems'),
    (SELECT autovacuum_count FROM pg_stat_user_tables WHERE relname = 'workitems'),
    pg_relation_size('taskqueue.workitems'), pg_indexes_size('taskqueue.workitems'),
    (SELECT count(*) FROM taskqueue.history)
"""


def filled(server: PostgreSQL, installation: Installation, fill: str, *arguments: object) -> Ours:
    """A database that has something in it before anything is done."""
    side = Ours(server, installation)
    with contextlib.closing(server.admin(side.database)) as connection:
        connection.execute(DAYS)
        if fill:
            connection.execute(fill.encode(), arguments)
        connection.execute("VACUUM ANALYZE")
    return side


def drains(server: PostgreSQL, installation: Installation, args: argparse.Namespace) -> None:
    sides: dict[str, Ours] = {
        "nothing before": filled(server, installation, ""),
        f"{args.ended:,} ended": filled(server, installation, PAST, args.ended),
        f"{args.waiting:,} wait in another queue": filled(
            server, installation, WAITING, "worker_other", BODY.encode(), args.waiting
        ),
    }
    deep = filled(server, installation, WAITING, "worker_nothing", BODY.encode(), args.waiting)
    found: dict[str, list[float]] = {name: [] for name in (*sides, f"{args.waiting:,} wait in the same queue")}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="taskqueue-bench-", dir="/tmp") as place:
            Path(place).chmod(0o777)
            for name, side in sides.items():
                found[name].append(after(side, server, args.count, Path(place)))
            found[f"{args.waiting:,} wait in the same queue"].append(part(deep, server, args.count, Path(place)))
        print({name: round(rates[-1]) for name, rates in found.items()}, file=sys.stderr, flush=True)
    for name, rates in found.items():
        print(f"drain, {name:40}{statistics.median(rates):9,.0f}/s ({min(rates):,.0f}-{max(rates):,.0f})")


def after(side: Ours, server: PostgreSQL, count: int, directory: Path) -> float:
    """The rate of a drain, in which only what ends now counts."""
    with contextlib.closing(server.admin(side.database)) as connection:
        connection.execute(f"DELETE FROM taskqueue.history WHERE {NOW}".encode())
        connection.execute("VACUUM taskqueue.history")
    return drain(server, Recent(side), count, directory)


class Recent:
    """What has ended since it was made."""

    def __init__(self, side: Ours) -> None:
        self.database = side.database
        self._side = side
        self.send, self.working = side.send, side.working

    def ended(self) -> str:
        return f"SELECT ended FROM taskqueue.history WHERE {NOW}"


def part(side: Ours, server: PostgreSQL, count: int, directory: Path) -> float:
    """The rate at which the first `count` of many are done."""
    with contextlib.closing(server.admin(side.database)) as connection, side.working(directory / "part"):
        begun = ended = (connection.execute("SELECT count(*) FROM taskqueue.history").fetchone() or (0,))[0]
        times = {}
        while ended < begun + count:
            ended = (connection.execute("SELECT count(*) FROM taskqueue.history").fetchone() or (0,))[0]
            times[ended] = time.perf_counter()
            time.sleep(0.05)
    counts = [done for done in times if done >= begun + count // 10]
    return (counts[-1] - counts[0]) / (times[counts[-1]] - times[counts[0]])


def full_rate(server: PostgreSQL, installation: Installation, minutes: float) -> None:
    side = filled(server, installation, "")
    stop = threading.Event()

    def feed() -> None:
        producer = connect(side.url).producer()
        workitem = Workitem(body=BODY.encode(), content_type="application/json", type="nothing")
        with contextlib.closing(server.admin(side.database)) as connection:
            while not stop.is_set():
                there = connection.execute(
                    "SELECT count(*) FROM taskqueue.workitems WHERE state = 0 AND carrier IS NULL"
                ).fetchone()
                if (there or (0,))[0] < 20_000:
                    producer.send([workitem] * 5_000)
                else:
                    time.sleep(0.02)
        producer.close()

    with tempfile.TemporaryDirectory(prefix="taskqueue-bench-", dir="/tmp") as place:
        Path(place).chmod(0o777)
        thread = threading.Thread(target=feed)
        thread.start()
        try:
            with side.working(Path(place) / "full"), contextlib.closing(server.admin(side.database)) as connection:
                end, before = time.monotonic() + minutes * 60, 0
                while time.monotonic() < end:
                    time.sleep(minutes * 6)
                    dead, vacuums, heap, indexes, ended = connection.execute(SIZES.encode()).fetchone() or (0,) * 5
                    rate = (ended - before) / (minutes * 6)
                    before = ended
                    print(
                        f"full rate: {rate:,.0f}/s, dead rows {dead:,}, vacuumed {vacuums} times, "
                        f"table {heap / 1e6:.1f} MB, its indexes {indexes / 1e6:.1f} MB",
                        flush=True,
                    )
        finally:
            stop.set()
            thread.join()


def beside_a_transaction(server: PostgreSQL, installation: Installation, minutes: float, rate: float) -> None:
    side = filled(server, installation, "")
    with tempfile.TemporaryDirectory(prefix="taskqueue-bench-", dir="/tmp") as place:
        Path(place).chmod(0o777)
        stamps = Path(place) / "stamps"
        stamps.touch()
        stamps.chmod(0o666)
        with contextlib.closing(server.admin(side.database)) as old, side.working(stamps):
            old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            old.execute("SELECT count(*) FROM taskqueue.workitems")
            time.sleep(2.0)
            sent = pace(connect(side.url).producer(), rate, minutes * 60)
            time.sleep(3.0)
            old.execute("ROLLBACK")
        found = [float(line) for line in stamps.read_text().split()]  # in the order in which they were started
    each = round(rate * min(minutes, 1.0) * 60)
    for minute, first in enumerate(range(0, len(found), each)):
        part = sorted(found[first : first + each])
        print(
            f"beside an open transaction, minute {minute + 1}: "
            f"p50 {statistics.median(part) * 1e3:.1f} ms, p99 {part[int(len(part) * 0.99)] * 1e3:.1f} ms, "
            f"longest {part[-1] * 1e3:.0f} ms"
        )
    print(f"beside an open transaction: {len(found):,} of {sent:,} started, {rate:,.0f} a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="workitems that are drained")
    parser.add_argument("--ended", type=int, default=5_000_000)
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each long run; 0: none")
    parser.add_argument("--rate", type=float, default=1000.0, help="workitems a second beside the open transaction")
    args = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="taskqueue-bench-", dir="/tmp"))
    top.chmod(0o755)
    server = PostgreSQL(fsync=True, settings=SETTINGS)
    try:
        server.start()
        installation = Installation(top, plugins=plugins())
        print(f"{os.cpu_count()} CPUs, {platform.platform()}; load {os.getloadavg()[0]:.1f}")
        runs: list[Callable[[], None]] = []
        if args.rounds:
            runs.append(lambda: drains(server, installation, args))
        if args.minutes:
            runs.append(lambda: full_rate(server, installation, args.minutes))
            runs.append(lambda: beside_a_transaction(server, installation, args.minutes, args.rate))
        for run in runs:
            run()
    finally:
        server.close()
        shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    main()
