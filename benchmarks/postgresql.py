"""PostgreSQL: ours beside PgQueuer, Procrastinate, and bare pgbench scripts, in alternation: this file with --help.

One private server with fsync on; real daemons with two worker processes each, a handler that does nothing, what ended
kept as each of them keeps it.  Ours has its defaults, the others several settings each.  Rates of a drain are those
between a tenth and all of it, by the database's own times of end; then as many as half of that are sent every second.
The peers live in environments of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import psycopg

TOP = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests"), str(TOP / "benchmarks" / "peers")]

from databases import PostgreSQL, binaries, with_schema  # noqa: E402
from installations import Installation, plugin_projects  # noqa: E402
from pacing import SECONDS, paced  # noqa: E402

from taskqueue.broker import Producer, connect  # noqa: E402
from taskqueue.workitem import Workitem  # noqa: E402

BODY = json.dumps({"number": 0, "padding": "x" * 190})
BULK = 1000
PATIENCE = 60.0  # seconds to wait for what comes late
PAUSE = 0.05  # seconds between two workitems whose latency is measured
SETTINGS = ("shared_buffers = '256MB'", "max_wal_size = '4GB'", "checkpoint_timeout = '30min'")
PACKAGES = {"pgqueuer": ["pgqueuer", "asyncpg"], "procrastinate": ["procrastinate", "psycopg[binary]"]}
CLAIM = """\
UPDATE bench SET state = 1, worker = :client_id WHERE id = ANY (ARRAY(
    SELECT id FROM bench WHERE state = 0 ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED));
DELETE FROM bench WHERE worker = :client_id AND state = 1;
"""
INSERT = f"INSERT INTO bench (state, body) VALUES (0, '{BODY}');\n"
TABLE = """\
CREATE TABLE bench (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, state smallint NOT NULL, worker int, body text);
CREATE INDEX ON bench (id) WHERE state = 0; CREATE INDEX ON bench (worker) WHERE state = 1;
"""


def plugins() -> list[Path]:
    """What has to be installed for it."""
    return [*plugin_projects(), TOP / "benchmarks" / "stamp"]


class Side(Protocol):
    """One of those that are compared, in a database of its own."""

    def send(self, how: str, count: int) -> float:
        """Send `count` workitems, `single` or `bulk`; the rate.  `latency`: one now and then.

        `paced`: `count` a second for some seconds; how many that were.
        """

    def ended(self) -> str:
        """A query for the times at which workitems ended."""

    def working(self, stamps: Path) -> contextlib.AbstractContextManager[None]:
        """Its daemons; latencies go to the file `stamps`."""


class Ours:
    """taskqueue: a worker manager, a carrier, two worker processes."""

    def __init__(self, server: PostgreSQL, installation: Installation) -> None:
        self.database = server.database(with_schema)
        self._installation = installation
        self.url = server.url(self.database)

    def send(self, how: str, count: int) -> float:
        producer = connect(self.url).producer()
        workitem = Workitem(body=BODY.encode(), content_type="application/json", type="nothing")
        begun = time.perf_counter()
        if how == "bulk":
            for _ in range(count // BULK):
                producer.send([workitem] * BULK)
        elif how == "single":
            for _ in range(count):
                producer.send([workitem])
        elif how == "paced":
            return pace(producer, count)
        else:
            for _ in range(count):
                producer.send([stamp()])
                time.sleep(PAUSE)
        rate = count / (time.perf_counter() - begun)
        producer.close()
        return rate

    def ended(self) -> str:
        return "SELECT ended FROM taskqueue.history"

    @contextlib.contextmanager
    def working(self, stamps: Path) -> Iterator[None]:
        config = stamps.with_suffix(".ini")
        config.write_text(
            f"[taskqueue]\nurl = {self.url}\nuser = root\nworker_user = nobody\n[DEFAULT]\nworkers = 0\n"
            f"[nothing]\nworkers = 2\n[stamp]\nworkers = 2\nfile = {stamps}\n"
        )
        with running([[self._installation.bin("taskqueue"), "workerpool", "-f", "-c", config]], {}):
            yield


def stamp() -> Workitem:
    """One whose handler writes down how long ago this was."""
    return Workitem(body=str(time.monotonic()).encode(), content_type="application/json", type="stamp")


def pace(producer: Producer, rate: float, seconds: float = SECONDS) -> int:
    """Send `rate` of them a second; how many that were."""
    sent = 0
    for several in paced(rate, seconds):
        producer.send([stamp()] * several)
        sent += several
    producer.close()
    return sent


class Peer:
    """A script of benchmarks/peers: two processes, each with one setting."""

    def __init__(self, server: PostgreSQL, name: str, environment: Path, setting: int, install: Sequence[str]) -> None:
        self.database = server.database()
        server.role(server.user)
        self._setting = setting
        self._python = environment / "bin" / "python"
        self._script = TOP / "benchmarks" / "peers" / f"{name}_peer.py"
        self._name = name
        self._environment = {"BENCH_DSN": server.url(self.database), "PYTHONPATH": str(self._script.parent)}
        with contextlib.closing(server.admin()) as connection:
            connection.execute(f"ALTER DATABASE {self.database} OWNER TO {server.user}".encode())
        variables = {
            **os.environ, **self._environment, "PGHOST": "127.0.0.1", "PGPORT": str(server.port),
            "PGUSER": server.user, "PGPASSWORD": server.password, "PGDATABASE": self.database,
        }  # fmt: skip
        command = [environment / "bin" / install[0], *install[1:]]
        subprocess.run(command, env=variables, check=True, capture_output=True)

    def send(self, how: str, count: int) -> float:
        command = [self._python, self._script, how, str(count), BODY]
        environment = {**os.environ, **self._environment}
        return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    def ended(self) -> str:
        if self._name == "pgqueuer":
            return "SELECT created FROM pgqueuer_log WHERE status = 'successful'"
        return "SELECT at FROM procrastinate_events WHERE type = 'succeeded'"

    def working(self, stamps: Path) -> contextlib.AbstractContextManager[None]:
        command = [self._python, self._script, "work", self._setting, BODY]
        return running([command] * 2, {**self._environment, "BENCH_STAMPS": str(stamps)})


@contextlib.contextmanager
def running(commands: Sequence[Sequence[object]], environment: dict[str, str]) -> Iterator[None]:
    processes = [
        subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def drain(server: PostgreSQL, side: Ours | Peer, count: int, directory: Path) -> float:
    """The rate between a tenth and all of `count`."""
    side.send("bulk", count)
    with contextlib.closing(server.admin(side.database)) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
        with side.working(directory / "drain"):
            query = f"SELECT count(*) FROM ({side.ended()}) ended".encode()
            while (connection.execute(query).fetchone() or (0,))[0] < count:
                time.sleep(0.25)
        ends = sorted(at for (at,) in connection.execute(side.ended().encode()).fetchall())
    return (count - count // 10) / (ends[-1] - ends[count // 10]).total_seconds()


def latencies(side: Ours | Peer, how: str, amount: int, directory: Path) -> list[float]:
    """From sending to the start of the handler, seconds."""
    stamps = directory / how
    stamps.touch()
    stamps.chmod(0o666)
    with side.working(stamps):
        time.sleep(3.0)  # they are up, and idle
        sent = side.send(how, amount)
        count = amount if how == "latency" else int(sent)
        deadline = time.monotonic() + PATIENCE
        while stamps.read_bytes().count(b"\n") < count and time.monotonic() < deadline:
            time.sleep(0.25)
    found = sorted(map(float, stamps.read_text().split()))
    return found + [PATIENCE] * (count - len(found))


def at(quantile: float, found: Sequence[float]) -> float:
    return found[min(int(len(found) * quantile), len(found) - 1)] * 1000


def pgbench(server: PostgreSQL, script: str, *options: str, rows: int = 0) -> float:
    """Transactions a second."""
    database = server.database()
    with contextlib.closing(server.admin(database)) as connection:
        connection.execute(TABLE.encode())
        connection.execute("INSERT INTO bench (state, body) SELECT 0, %s FROM generate_series(1, %s)", (BODY, rows))
        connection.execute("VACUUM ANALYZE bench")
        connection.execute("CHECKPOINT")
    file = server.directory / "script.sql"
    file.write_text(script)
    command = [binaries() / "pgbench", "-n", "-f", file, "-M", "prepared", *options, server.admin_url(database)]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    assert found is not None
    return float(found[1])


def insert(server: PostgreSQL, count: int) -> float:
    """Rows a second that a program in Python inserts one by one, over the same kind of connection as a producer's."""
    database = server.database()
    server.role(server.user)
    with (
        contextlib.closing(server.admin(database)) as owner,
        contextlib.closing(psycopg.connect(server.url(database), autocommit=True)) as connection,
    ):
        owner.execute(f"{TABLE} GRANT ALL ON bench TO {server.user}".encode())
        cursor = connection.cursor()
        begun = time.perf_counter()
        for _ in range(count):
            cursor.execute("INSERT INTO bench (state, body) VALUES (0, %s)", (BODY,), prepare=True)
        return count / (time.perf_counter() - begun)


def one_round(server: PostgreSQL, make: Callable[[], Ours | Peer], count: int, trips: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="taskqueue-bench-", dir="/tmp") as place:
        directory = Path(place)
        directory.chmod(0o777)
        values = {}
        side = make()
        side.send("single", 100)
        values["single send, /s"] = side.send("single", 2000)
        values["bulk send, /s"] = make().send("bulk", 20_000)
        values["drain, /s"] = drain(server, make(), count, directory)
        if trips:
            found = latencies(make(), "paced", int(values["drain, /s"] / 2), directory)
            values["half load: latency, p50, ms"] = at(0.5, found)
            values["half load: latency, p99, ms"] = at(0.99, found)
            found = latencies(make(), "latency", trips, directory)
            values["idle latency, p50, ms"] = at(0.5, found)
            values["idle latency, p99, ms"] = at(0.99, found)
        return values


def bare_round(server: PostgreSQL, count: int) -> dict[str, float]:
    clients = 4
    turns = count // 100 // clients
    claims = pgbench(server, CLAIM, "-c", str(clients), "-j", "2", "-t", str(turns), rows=count)
    return {
        "drain, /s": claims * 100,
        "single send, /s": pgbench(server, INSERT, "-c", "1", "-T", "3"),
        "single send, psycopg, /s": insert(server, 2000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="workitems that are drained")
    parser.add_argument("--slow-count", type=int, default=2_000, help="the same, of Procrastinate")
    parser.add_argument("--latencies", type=int, default=100, help="workitems whose latency is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="10,100,250", help="PgQueuer's batch_size")
    parser.add_argument("--concurrencies", default="1,10,30", help="Procrastinate's concurrency")
    parser.add_argument("--only", default="", help="only those whose names begin so, separated by commas")
    args = parser.parse_args()
    only = tuple(args.only.split(","))
    top = Path(tempfile.mkdtemp(prefix="taskqueue-bench-", dir="/tmp"))
    top.chmod(0o755)
    server = PostgreSQL(fsync=True, settings=SETTINGS)
    try:
        server.start()
        (top / "ours").mkdir()
        sides: dict[str, Callable[[], dict[str, float]]] = {"pgbench": lambda: bare_round(server, args.count)}
        installation = Installation(top / "ours", plugins=plugins())
        sides["taskqueue"] = lambda: one_round(server, lambda: Ours(server, installation), args.count, args.latencies)
        for name, option, install in (
            ("pgqueuer", args.batches, ["pgq", "install"]),
            (
                "procrastinate",
                args.concurrencies,
                ["procrastinate", "-a", "procrastinate_peer.app", "schema", "--apply"],
            ),
        ):
            if not name.startswith(only):
                continue
            environment = top / name
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            subprocess.run([environment / "bin" / "pip", "install", "--quiet", *PACKAGES[name]], check=True)
            count = args.count if name == "pgqueuer" else args.slow_count
            for setting in map(int, option.split(",")):

                def peer(
                    name: str = name, where: Path = environment, n: int = setting, how: Sequence[str] = install
                ) -> Peer:
                    return Peer(server, name, where, n, how)

                sides[f"{name} {setting}"] = lambda make=peer, n=count: one_round(server, make, n, args.latencies)
        sides = {name: side for name, side in sides.items() if name.startswith(only)}
        print(
            f"{os.cpu_count()} CPUs, {platform.platform()}, Python {platform.python_version()}; {args.count} workitems "
            f"a drain; median (lowest-highest) of {args.rounds} rounds in alternation; load {os.getloadavg()[0]:.1f}"
        )
        found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for turn in range(args.rounds):
            for name, side in sides.items():
                found[name].append(side())
                shown = ", ".join(f"{what} {value:,.2f}" for what, value in found[name][-1].items())
                print(f"  {turn + 1} {name}: {shown} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
        for name, rounds in found.items():
            for what in rounds[0]:
                values = sorted(each[what] for each in rounds)
                form = ",.0f" if values[0] > 100 else ".2f"
                cell = f"{statistics.median(values):{form}} ({values[0]:{form}}-{values[-1]:{form}})"
                print(f"{name:20}{what:26}{cell}")
    finally:
        server.close()
        shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    main()
