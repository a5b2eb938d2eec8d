"""`taskqueue demo [DIR]`: a dispatcher, a worker manager and their workers at work, on the files below a directory."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taskqueue import plugins
from taskqueue.broker import Options, Producer, connect
from taskqueue.errors import TaskQueueError
from taskqueue.process.spawn import tie_to
from taskqueue.workitem import INCOMING, Workitem

__all__ = ["add_parser"]

TYPE = "filestat"
CHUNK = 500  # workitems that are sent at a time
PROCESSES = max(2, os.cpu_count() or 1)
SAMPLE, SAMPLE_BYTES = 200, 1 << 28
"""How many digests are verified at most, and of how many bytes together."""
STOP_TIMEOUT = 10.0  # seconds
SHOWN = 10


class DemoError(TaskQueueError):
    """The demo can't be given, or found something wrong."""


@dataclass(slots=True)
class _Seen:
    """What came back: `files` by path, `failed` as path and error."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    workers: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command to a program's commands."""
    parser = subparsers.add_parser(
        "demo",
        help="show a dispatcher, a worker manager and their workers at work",
        description="Starts a dispatcher and a worker manager over a broker in a temporary directory, has every file "
        "below DIR described by the worker filestat, and shows what came out.  Nothing stays behind.",
    )
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", type=Path, default=_own_tree(), help="default: that of taskqueue itself"
    )
    parser.set_defaults(run=_run)
    return parser


def _own_tree() -> Path:
    package = Path(__file__).resolve().parent.parent
    return package.parent if (package.parent / "pyproject.toml").exists() else package


def _run(args: argparse.Namespace) -> int:
    if TYPE not in plugins.discover()[0]:
        raise DemoError(f"the worker {TYPE} is not installed: pip install examples/{TYPE}, or run `make demo`")
    if not args.directory.is_dir():
        raise DemoError(f"{args.directory}: no such directory")
    quiet = args.quiet or args.json
    begun = time.time()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    files = list(_files(args.directory.absolute()))
    with _place() as place:
        config = place / "config.ini"
        config.write_text(_configuration(place, root=os.geteuid() == 0))
        if os.geteuid() == 0:
            quiet or print("worker processes run as root, because you are: the files may be readable to nobody else")
        quiet or print(f"{len(files):,} files below {args.directory}, {PROCESSES} worker processes")
        with _daemons(config, place) as daemons:
            seen = _described(files, place, daemons, bar=not quiet)
    verified = _verify(seen.files, begun)
    if args.json:
        print(json.dumps(_summary(seen, verified)))
    else:
        _show(seen, verified)
    return 0


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt


def _files(directory: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="taskqueue-demo-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _configuration(place: Path, *, root: bool) -> str:
    user = "user = root\n" if root else ""
    return (
        f"[taskqueue]\nurl = {_url(place)}\n{user}\n[DEFAULT]\nworkers = 0\n\n"
        f"[{TYPE}]\nworkers = {PROCESSES}\nresults_routing_key =\n{user}"
    )


def _url(place: Path) -> str:
    return f"sqlite:///{place}/queue.db"


@contextlib.contextmanager
def _daemons(config: Path, place: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Both daemons, until the end of the block.  In a session of their own: Ctrl-C is the demo's to handle."""
    daemons: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in ("dispatcher", "workerpool"):
            with (place / f"{name}.log").open("wb") as log:
                daemons[name] = subprocess.Popen(
                    [sys.executable, "-P", "-m", "taskqueue", name, "-f", "-c", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={key: value for key, value in os.environ.items() if not key.startswith("TASKQUEUE_")},
                    start_new_session=True,
                    preexec_fn=partial(tie_to, os.getpid()),
                )
        yield daemons
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for process in daemons.values():
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in daemons.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # its carrier and worker processes go with it
                process.wait()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _interrupt)


def _described(files: Sequence[Path], place: Path, daemons: dict[str, subprocess.Popen[bytes]], *, bar: bool) -> _Seen:
    seen = _Seen()
    producer = connect(Options(url=_url(place))).producer()
    progress = tqdm(total=len(files), unit=" files", disable=None if bar else True, leave=False)
    with contextlib.closing(producer), contextlib.closing(progress):
        numbered = iter(enumerate(map(str, files)))
        for number, path in islice(numbered, 1):  # the first one waits until everything is up
            producer.send([_workitem(number, path)], queue=INCOMING, reply=True)
            while not _take(producer, files, seen, progress, 1.0):
                _check(daemons, place)
        begun = time.monotonic()
        while batch := list(islice(numbered, CHUNK)):
            producer.send([_workitem(number, path) for number, path in batch], queue=INCOMING, reply=True)
            _take(producer, files, seen, progress, 0)
        while len(seen.files) + len(seen.failed) < len(files):
            if not _take(producer, files, seen, progress, 1.0):
                _check(daemons, place)
        seen.seconds = time.monotonic() - begun
    return seen


def _workitem(number: int, path: str) -> Workitem:
    """As any program in any language would send it."""
    body = json.dumps({"worker_type": TYPE, "workitem": {"path": path}})
    return Workitem(body=body.encode(), content_type="application/json", id=str(number))


def _take(producer: Producer, files: Sequence[Path], seen: _Seen, progress: tqdm[Any], timeout: float) -> bool:
    """Take the results that are there, waiting for the first one; False where there is none."""
    reply = producer.next_reply(timeout=timeout)
    found = reply is not None
    while reply is not None:
        path = str(files[int(reply.correlation_id)])
        if reply.headers["status"] == "succeeded":
            seen.files[path] = json.loads(reply.body)
            seen.workers[str(reply.headers["worker"])] += 1
        else:
            seen.failed.append((path, str(reply.headers["error"])))
        progress.update()
        reply = producer.next_reply(timeout=0)
    return found


def _check(daemons: dict[str, subprocess.Popen[bytes]], place: Path) -> None:
    for name, process in daemons.items():
        if process.poll() is not None:
            log = (place / f"{name}.log").read_text(errors="replace")
            raise DemoError(f"the {name} ended with status {process.returncode}:\n{log[-2000:]}")


def _verify(files: dict[str, dict[str, Any]], begun: float) -> int:
    """Digest a sample again, by hashlib; returns how many.  Raises DemoError where one differs.

    Files that have changed since `begun` (POSIX seconds), or are gone, say nothing.
    """
    verified, left = 0, SAMPLE_BYTES
    for path in random.sample(sorted(files), min(SAMPLE, len(files))):
        size = int(files[path]["size"])
        if size > left:
            continue
        left -= size
        with contextlib.suppress(OSError), open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest == files[path]["sha256"]:
                verified += 1
            elif os.fstat(file.fileno()).st_mtime < begun:
                raise DemoError(f"{path}: the worker's digest {files[path]['sha256']} is not hashlib's {digest}")
    return verified


def _summary(seen: _Seen, verified: int) -> dict[str, Any]:
    return {
        "files": len(seen.files),
        "bytes": sum(result["size"] for result in seen.files.values()),
        "failed": len(seen.failed),
        "seconds": round(seen.seconds, 3),
        "rate": round(max(0, len(seen.files) + len(seen.failed) - 1) / max(seen.seconds, 1e-9), 1),
        "workers": dict(seen.workers),
        "verified": verified,
    }


def _show(seen: _Seen, verified: int) -> None:
    summary = _summary(seen, verified)
    print(f"\n{'worker process':<40}{'files':>12}")
    for worker, count in sorted(seen.workers.items()):
        print(f"{worker:<40}{count:>12,}")
    print(f"\n{'largest files':<40}{'bytes':>12}  {'lines':>9}  SHA-256")
    largest = sorted(seen.files.items(), key=lambda item: -int(item[1]["size"]))[:SHOWN]
    for path, result in largest:
        name = ascii(path)[1:-1]
        shown = name if len(name) < 40 else f"...{name[-36:]}"
        print(f"{shown:<40}{result['size']:>12,}  {result['lines']:>9,}  {result['sha256'][:16]}...")
    for path, error in seen.failed[:SHOWN]:
        print(f"failed: {ascii(path)[1:-1]}: {error}")
    if len(seen.failed) > SHOWN:
        print(f"failed: {len(seen.failed) - SHOWN:,} more")
    print(
        f"\n{summary['files']:,} files, {summary['bytes']:,} bytes in {summary['seconds']:.1f} s:"
        f" {summary['rate']:,.0f} workitems/s"
        f"\n{verified:,} digests, picked at random, verified against hashlib: all equal"
    )
