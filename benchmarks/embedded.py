"""The embedded broker beside Huey's SqliteHuey, in alternation: `make bench`, or this file with --help.

Both with their defaults for what they promise (ours syncs what is sent and settled), real daemons, two worker
processes, a handler that returns its body of about 200 bytes, results stored.  Huey lives in an environment of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests"))

from installations import Installation  # noqa: E402

from taskqueue.broker import connect  # noqa: E402
from taskqueue.workitem import Workitem  # noqa: E402

BODY = json.dumps({"number": 0, "padding": "x" * 190})
WARM = 0.1  # of a drain: not measured
SENDERS = 2
LOAD_SECONDS = 3.0
ROUND_TRIPS = 100
PAUSE = 0.02  # seconds between two of them


class Side(Protocol):
    """One of the two that are compared, on a file of its own."""

    def fill(self, count: int) -> float:
        """Send `count` workitems, one by one; the rate."""

    def pending(self) -> int:
        """How many are not handled yet."""

    def busy(self) -> bool:
        """Whether any is; unlike a count, this costs the other processes nothing."""

    def latencies(self, seconds: float) -> list[float]:
        """Send, one by one, for that long; what each took."""

    def round_trips(self, count: int) -> list[float]:
        """Send and wait for the result, one after the other, with a pause between."""

    def consumer(self) -> contextlib.AbstractContextManager[None]:
        """Its daemons."""


class Ours:
    """taskqueue: a worker manager, a carrier, two worker processes."""

    def __init__(self, directory: Path, installation: Installation) -> None:
        self.file = directory / "ours.db"
        self._installation = installation
        self._url = f"sqlite:///{self.file}"
        self._config = directory / "config.ini"
        self._config.write_text(
            f"[taskqueue]\nurl = {self._url}\nuser = root\n[DEFAULT]\nworkers = 0\n[echo]\nworkers = 2\n"
        )

    def fill(self, count: int) -> float:
        producer = connect(self._url).producer()
        workitem = Workitem(body=BODY.encode(), content_type="application/json", type="echo")
        begun = time.perf_counter()
        for _ in range(count):
            producer.send([workitem])
        rate = count / (time.perf_counter() - begun)
        producer.close()
        return rate

    def pending(self) -> int:
        return rows(self.file, "SELECT count(*) FROM workitems WHERE queue = 'worker_echo'")

    def busy(self) -> bool:
        return bool(rows(self.file, "SELECT EXISTS (SELECT 1 FROM workitems WHERE queue = 'worker_echo')"))

    def latencies(self, seconds: float) -> list[float]:
        producer = connect(self._url).producer()
        workitem = Workitem(body=BODY.encode(), content_type="application/json", type="echo")
        found = []
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            producer.send([workitem])
            found.append(time.perf_counter() - begun)
        producer.close()
        return found

    def round_trips(self, count: int) -> list[float]:
        producer = connect(self._url).producer()
        workitem = Workitem(body=BODY.encode(), content_type="application/json", type="echo")
        found = []
        for _ in range(count):
            begun = time.perf_counter()
            producer.send([workitem], reply=True)
            reply = producer.next_reply(timeout=10)
            assert reply is not None and reply.headers["status"] == "succeeded"
            found.append(time.perf_counter() - begun)
            time.sleep(PAUSE)
        producer.close()
        return found

    def consumer(self) -> contextlib.AbstractContextManager[None]:
        return running([self._installation.bin("taskqueue"), "workerpool", "-f", "-c", self._config], {})


class Huey:
    """SqliteHuey: its consumer with two worker processes."""

    def __init__(self, directory: Path, environment: Path) -> None:
        self.file = directory / "huey.db"
        self._bin = environment / "bin"
        self._environment = {"HUEY_FILE": str(self.file), "PYTHONPATH": str(TOP / "benchmarks" / "peers")}

    def _run(self, verb: str, amount: float) -> object:
        command = [self._bin / "python", TOP / "benchmarks" / "peers" / "huey_peer.py", verb, str(amount), BODY]
        environment = {**os.environ, **self._environment}
        return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    def fill(self, count: int) -> float:
        return self._run("fill", count)  # type: ignore[return-value]

    def pending(self) -> int:
        return rows(self.file, "SELECT count(*) FROM task")

    def busy(self) -> bool:
        return bool(rows(self.file, "SELECT EXISTS (SELECT 1 FROM task)"))

    def latencies(self, seconds: float) -> list[float]:
        return self._run("latencies", seconds)  # type: ignore[return-value]

    def round_trips(self, count: int) -> list[float]:
        return self._run("round_trips", count)  # type: ignore[return-value]

    def consumer(self) -> contextlib.AbstractContextManager[None]:
        command = [self._bin / "huey_consumer", "huey_peer.huey", "-k", "process", "-w", "2"]
        return running(command, self._environment)


def rows(file: Path, query: str) -> int:
    """A count; the file is only read."""
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as connection:
        return int(connection.execute(query).fetchone()[0])


@contextlib.contextmanager
def running(command: list[object], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM if "taskqueue" in str(command[0]) else signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def drain(side: Side, count: int) -> float:
    """The rate between a tenth and all of `count`."""
    side.fill(count)
    with side.consumer():
        while True:
            begun, left = time.perf_counter(), side.pending()
            if left <= count * (1 - WARM):
                break
            time.sleep(0.02)
        while side.busy():
            time.sleep(0.02)
        return left / (time.perf_counter() - begun)


def _latencies(side: Side, seconds: float, found: object) -> None:
    found.put(side.latencies(seconds))  # type: ignore[attr-defined]


def under_load(side: Side, backlog: int) -> list[list[float]]:
    """What each of some senders measured while the daemons had more to do than they could."""
    side.fill(backlog)
    context = get_context("fork")
    with side.consumer():
        start = side.pending()
        while side.pending() > start - 100:
            time.sleep(0.005)
        found = context.SimpleQueue()
        senders = [context.Process(target=_latencies, args=(side, LOAD_SECONDS, found)) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        measured = [found.get() for _ in senders]
        for sender in senders:
            sender.join()
        if not side.pending():
            raise RuntimeError("the backlog was too small: the load ended before the measurement")
    return measured


class Progress(dict[str, float]):
    """Values, shown as they come: a round takes a minute."""

    def __setitem__(self, name: str, value: float) -> None:
        super().__setitem__(name, value)
        print(f"  {name}: {value:,.2f}", file=sys.stderr, flush=True)


def one_round(make: Callable[[Path], Side], args: argparse.Namespace) -> dict[str, float]:
    values = Progress()

    def fresh() -> contextlib.AbstractContextManager[str]:
        return tempfile.TemporaryDirectory(prefix="taskqueue-bench-", dir=args.place)

    os.sync()  # what the one before has left to be written
    with fresh() as place:
        side = make(Path(place))
        side.fill(1)  # makes the file
        values["single send, idle file, /s"] = side.fill(4000)
    with fresh() as place:
        values["drain, /s"] = drain(make(Path(place)), args.count)
    with fresh() as place:
        side = make(Path(place))
        side.fill(1)
        with side.consumer():
            while side.pending():
                time.sleep(0.01)
            trips = sorted(side.round_trips(ROUND_TRIPS))
        values["round trip, idle, p50, ms"] = statistics.median(trips) * 1000
        values["round trip, idle, p99, ms"] = trips[int(len(trips) * 0.99)] * 1000
    with fresh() as place:
        measured = under_load(make(Path(place)), args.backlog)
        everything = sorted(latency for one in measured for latency in one)
        values["send under load, p50, ms"] = statistics.median(everything) * 1000
        values["send under load, p99, ms"] = everything[int(len(everything) * 0.99)] * 1000
        values["send under load, longest, ms"] = everything[-1] * 1000
        values["sends under load, of the slower of two senders, /s"] = min(map(len, measured)) / LOAD_SECONDS
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="workitems that are drained")
    parser.add_argument("--backlog", type=int, default=100_000, help="workitems that make the load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--place", default="/var/tmp", help="where the files lie; on a disk")
    args = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="taskqueue-bench-", dir="/tmp"))
    top.chmod(0o755)
    try:
        installation = Installation(top)
        environment = top / "huey"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", "huey"], check=True)
        version = subprocess.run(
            [environment / "bin" / "python", "-c", "import huey; print(huey.__version__)"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        print(
            f"{os.cpu_count()} CPUs, {platform.platform()}, Python {platform.python_version()}, SQLite "
            f"{sqlite3.sqlite_version}, huey {version}; {args.count} workitems a drain; median (lowest-highest) of "
            f"{args.rounds} rounds in alternation"
        )
        sides: dict[str, Callable[[Path], Side]] = {
            "taskqueue": lambda place: Ours(place, installation),
            "huey": lambda place: Huey(place, environment),
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, make in sides.items():
                found[name].append(one_round(make, args))
        for what in found["taskqueue"][0]:
            cells = []
            for rounds in found.values():
                values = sorted(each[what] for each in rounds)
                form = ",.0f" if values[0] > 100 else ".2f"
                cells.append(f"{statistics.median(values):{form}} ({values[0]:{form}}-{values[-1]:{form}})")
            print(f"{what:54}" + "".join(f"{cell:>32}" for cell in cells))
    finally:
        shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    main()
