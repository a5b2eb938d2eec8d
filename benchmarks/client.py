"""Functions as tasks: ours beside Celery, Dramatiq and concurrent.futures, in alternation: this file with --help.

Each with two worker processes, and redis for broker and results of the others.  What is measured is the time from the
first submission until the last value is there.  The others live in environments of their own, with several settings.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests"))

from databases import PostgreSQL, with_schema  # noqa: E402
from servers import RabbitMQ, free_ports  # noqa: E402

PEERS = TOP / "benchmarks" / "peers"
PACKAGES = {"celery": ["celery[redis]"], "dramatiq": ["dramatiq[redis]"]}
COUNTS = {"independent": 10_000, "chain": 1_000, "fan": 10_000, "executor": 10_000}
NESTED = 300  # steps: a pipeline of Dramatiq nests its messages, and 1,000 of them do not end
Run = Callable[[str, int], float]


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    if shutil.which("redis-server") is None:
        sys.exit(
            "redis-server is not installed, which Celery and Dramatiq need: install it, or leave them out by "
            "--only sqlite,postgresql,amqp,memory,concurrent.futures"
        )
    (port,) = free_ports(1)
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(directory)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


def environment(top: Path, name: str) -> Path:
    place = top / name
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    subprocess.run([place / "bin" / "pip", "install", "--quiet", *PACKAGES[name]], check=True)
    return place


def script(python: Path | str, name: str, variables: dict[str, str], *arguments: object) -> float:
    command = [str(python), str(PEERS / name), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def peer(name: str, place: Path, url: str, setting: str) -> Run:
    variables = {"BENCH_REDIS": url, "BENCH_SETTING": setting, "PYTHONPATH": str(PEERS)}
    workers = {
        "celery": ["celery", "-A", "celery_peer", "worker", "--concurrency", "2", "-l", "ERROR"],
        "dramatiq": ["dramatiq", "dramatiq_peer", "--processes", "2", "--threads", setting],
    }[name]

    def run(what: str, count: int) -> float:
        process = subprocess.Popen(
            [place / "bin" / workers[0], *workers[1:]],
            env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=PEERS,
            start_new_session=True,
        )  # fmt: skip
        try:
            return script(place / "bin" / "python", f"{name}_peer.py", variables, what, count)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    return run


def ours(make_url: Callable[[], str]) -> Run:
    return lambda what, count: script(sys.executable, "client_ours.py", {"BENCH_URL": make_url()}, what, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of tasks")
    parser.add_argument("--only", default="", help="only those whose names begin so, separated by commas")
    parser.add_argument("--what", default=",".join(COUNTS), help="only these, separated by commas")
    args = parser.parse_args()
    only = tuple(args.only.split(","))
    with ExitStack() as stack:
        top = Path(tempfile.mkdtemp(prefix="taskqueue-bench-", dir="/tmp"))
        stack.callback(shutil.rmtree, top, ignore_errors=True)
        files = iter(range(1_000_000))
        sides: dict[str, tuple[Run, tuple[str, ...]]] = {}
        if "sqlite".startswith(only) or not args.only:
            sides["sqlite"] = ours(lambda: f"sqlite:///{top}/{next(files)}.db"), ("independent", "chain", "fan")
        if "postgresql".startswith(only):
            server = PostgreSQL(fsync=True, settings=("shared_buffers = '256MB'", "max_wal_size = '4GB'"))
            stack.callback(server.close)
            server.start()
            sides["postgresql"] = (
                ours(lambda: server.url(server.database(with_schema))),
                ("independent", "chain", "fan"),
            )

            def unsynced() -> str:
                """As little on the disk as what the others have in redis."""
                name = server.database(with_schema)
                with closing(server.admin(name)) as owner:
                    owner.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
                return server.url(name)

            sides["postgresql unsynced"] = ours(unsynced), ("chain",)
        if "amqp".startswith(only):
            broker = RabbitMQ()
            stack.callback(broker.close)
            broker.start()
            sides["amqp"] = ours(lambda: broker.url(broker.vhost())), ("independent",)
        if "memory".startswith(only):
            sides["memory"] = ours(lambda: "memory://"), ("independent", "chain", "fan", "executor")
        if "concurrent.futures".startswith(only):
            executor = lambda what, count: script(sys.executable, "executor_peer.py", {}, count)  # noqa: E731
            sides["concurrent.futures"] = executor, ("executor",)
        for name, settings, can in (
            ("celery", ("4", "100"), ("independent", "chain", "fan")),
            ("dramatiq", ("1", "8"), ("independent", "chain")),
        ):
            if name.startswith(only):
                url, place = stack.enter_context(redis(top)), environment(top, name)
                for setting in settings:
                    sides[f"{name} {setting}"] = peer(name, place, url, setting), can
        print(
            f"{os.cpu_count()} CPUs, {platform.platform()}, Python {platform.python_version()}; "
            f"tasks a second, median (lowest-highest) of {args.rounds} rounds in alternation"
        )
        found: dict[tuple[str, str], list[float]] = {}
        for turn in range(args.rounds):
            for what in args.what.split(","):
                count = max(10, int(COUNTS[what] * args.scale))
                for name, (run, can) in sides.items():
                    if what in can:
                        if what == "chain" and name.startswith("dramatiq"):
                            count = min(count, NESTED)
                        rate = count / run(what, count)
                        found.setdefault((what, name), []).append(rate)
                        load = os.getloadavg()[0]
                        print(
                            f"  {turn + 1} {what} {name}: {rate:,.0f}/s (load {load:.1f})", file=sys.stderr, flush=True
                        )
        for (what, name), rates in found.items():
            low, high = min(rates), max(rates)
            print(f"{what:14}{name:22}{statistics.median(rates):8,.0f}/s ({low:,.0f}-{high:,.0f})")


if __name__ == "__main__":
    main()
