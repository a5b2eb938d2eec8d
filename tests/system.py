"""A whole system for tests: real daemons over a real broker, watched and fed from outside.

with System(installation, amqp_url) as system:
    config = system.config("[DEFAULT]\nworkers = 0\n[echo]\nworkers = 2\n")
    dispatcher, pool = system.dispatcher(config), system.workerpool(config, ready=2)
    system.publish("taskqueue", "echo hello")
    (result,) = system.collect("results", 1)
    pool.stop()
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pika
from installations import Installation

T = TypeVar("T")

PATIENCE = float(os.environ.get("TASKQUEUE_TEST_PATIENCE", "60"))
"""Seconds after which something that must happen did not happen: much more than it takes on a busy machine."""
POLL = 0.02  # seconds
CARRIERS = 6  # that a test kills at random, at most
TITLES = {"taskqueue.carrier": "taskqueue: carrier", "taskqueue.process": "taskqueue: worker "}


def until(condition: Callable[[], T], what: str = "", *, timeout: float = PATIENCE) -> T:
    """The first value of `condition` that is true; fails with `what` where none is in time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {timeout:g} s: {what or condition}")
        time.sleep(POLL)
    return value


def alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor waiting to be reaped."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def title(pid: int) -> str:
    """What `ps` shows of a process; empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
    return ""


def children(parent: int, module: str) -> list[int]:
    """The running children of `parent` that run the Python module `module`, oldest first."""
    own_title = TITLES[module]
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
            shown = title(int(stat.parent.name))
            ours = module in shown.split() or shown.startswith(own_title)
            if int(ppid) == parent and state not in "ZX" and ours:
                found.append(int(stat.parent.name))
    return sorted(found)


@contextlib.contextmanager
def users(*names: str) -> Iterator[None]:
    """Make Unix users that don't exist yet, and remove those again.  Needs root."""
    made = []
    try:
        for name in names:
            try:
                pwd.getpwnam(name)
            except KeyError:
                command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/sh", name]
                subprocess.run(command, check=True, capture_output=True)
                made.append(name)
        yield
    finally:
        for name in made:
            # By force: the daemons of a test that fails are still there.
            subprocess.run(["userdel", "--force", name], check=False, capture_output=True)


@dataclass(frozen=True)
class Message:
    """A message as it lay in a queue."""

    body: bytes
    properties: Any

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers, empty where it has none."""
        return self.properties.headers or {}

    @property
    def value(self) -> Any:
        """Its body as JSON."""
        return json.loads(self.body)


class Running:
    """A daemon that runs, as anybody on its host sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def carriers(self) -> list[int]:
        """The pids of its carriers."""
        return children(self.pid, "taskqueue.carrier")

    @property
    def workers(self) -> list[int]:
        """The pids of its worker processes, ready or not."""
        return children(self.pid, "taskqueue.process")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end, and that of everything that it had started."""
        everything = [self.pid, *self.carriers, *self.workers]
        self.signal(signal.SIGKILL)
        until(lambda: not any(map(alive, everything)), f"the end of {everything}")


class Daemon(Running):
    """One daemon in the foreground, its log in a file."""

    def __init__(self, command: Sequence[object], log: Path, environment: Mapping[str, str]) -> None:
        self.command = [str(word) for word in command]
        self.log_file = log
        self.carriers_killed = 0
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/"
            )
        super().__init__(self.process.pid)

    @property
    def log(self) -> str:
        """Everything that it has logged."""
        return self.log_file.read_text(errors="replace")

    def logged(self, pattern: str, *, count: int = 1, timeout: float = PATIENCE) -> list[str]:
        """Wait until `pattern` occurs `count` times in the log; what its group, or all of it, matched."""

        def found() -> list[str]:
            matches = re.findall(pattern, self.log)
            if len(matches) < count and self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}, and did not log {pattern!r}:\n{self.log}")
            return matches if len(matches) >= count else []

        return until(found, f"{pattern!r} in the log of {self.command}", timeout=timeout)

    def ready(self, group: str = r"[\w.-]+") -> list[int]:
        """The pids of its worker processes that are ready, of all groups or of one."""
        said = {int(pid) for pid in re.findall(rf"worker process (\d+) of {group} is ready", self.log)}
        return [pid for pid in self.workers if pid in said]

    def wait_ready(self, count: int, group: str = r"[\w.-]+", *, timeout: float = PATIENCE) -> list[int]:
        """Wait until exactly `count` worker processes are ready, of all groups or of one; their pids."""

        def enough() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.log}")
            return len(self.ready(group)) == count

        until(enough, f"{count} worker processes ready", timeout=timeout)
        return self.ready(group)

    def kill_one(self, chance: random.Random) -> bool:
        """SIGKILL to a worker process, or seldom to a carrier; whether there was one.

        To a few carriers only: with each in a row the wait for the next one doubles, up to a minute.
        """
        carriers = self.carriers if chance.random() < 0.15 and self.carriers_killed < CARRIERS else []
        victims = carriers or self.ready()
        with contextlib.suppress(ProcessLookupError):
            if victims:
                os.kill(chance.choice(victims), signal.SIGKILL)
                self.carriers_killed += victims is carriers
                return True
        return False

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; the exit status, or minus the signal's number."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout:g} s:\n{self.log[-8000:]}") from None

    def stop(self, timeout: float = PATIENCE) -> None:
        """SIGTERM; it must end with status 0."""
        self.signal(signal.SIGTERM)
        status = self.wait(timeout)
        assert status == 0, f"exit status {status}:\n{self.log[-8000:]}"

    def kill(self) -> None:
        super().kill()
        self.process.wait()


class System:
    """A broker's virtual host, a directory that everybody can read, and the daemons of one test."""

    def __init__(self, installation: Installation, url: str) -> None:
        self.installation = installation
        self.url = url
        self.daemons: list[Daemon] = []
        self._connection: pika.BlockingConnection | None = None
        self.directory = Path(tempfile.mkdtemp(prefix="taskqueue-system-", dir="/tmp"))  # not TMPDIR: may be private
        self.directory.chmod(0o755)
        self.open_directory = self.directory / "open"
        self.open_directory.mkdir()
        self.open_directory.chmod(0o777)  # worker processes of any user may write here

    def __enter__(self) -> System:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.kill()
        self.disconnect()
        for daemon in self.daemons:  # shown by pytest for a test that fails
            print(f"=== {' '.join(daemon.command)}: {daemon.process.returncode}\n{daemon.log[-20000:]}")
        shutil.rmtree(self.directory, ignore_errors=True)

    # Daemons.

    def config(self, text: str = "", *, name: str = "config.ini", mode: int = 0o644, **options: object) -> Path:
        """Write a configuration: `text`, and a section [taskqueue] with the url and `options`."""
        lines = "".join(f"{option} = {value}\n" for option, value in {"url": self.url, **options}.items())
        return self.write(f"[taskqueue]\n{lines}\n{text}", name=name, mode=mode)

    def write(self, text: str, *, name: str = "config.ini", mode: int = 0o644) -> Path:
        """Write a file; one that is there is replaced at once, as an editor does."""
        path, new = self.directory / name, self.directory / f"{name}.new"
        new.write_text(text)
        new.chmod(mode)
        new.replace(path)
        return path

    def dispatcher(self, config: Path, *arguments: object, prefix: Sequence[object] = (), **more: str) -> Daemon:
        """Start a dispatcher; `prefix` goes before the command, `more` is added to the environment."""
        return self._start("taskqueue-dispatcher", config, arguments, prefix, more)

    def workerpool(
        self, config: Path, *arguments: object, ready: int = 0, prefix: Sequence[object] = (), **more: str
    ) -> Daemon:
        """Start a worker manager, and wait until it has `ready` worker processes that are ready."""
        daemon = self._start("taskqueue-workerpool", config, arguments, prefix, more)
        if ready:
            daemon.wait_ready(ready)
        return daemon

    def _start(
        self, name: str, config: Path, arguments: Sequence[object], prefix: Sequence[object], more: Mapping[str, str]
    ) -> Daemon:
        command = [*prefix, *self.command(name, config, "-f", *arguments)]
        log = self.directory / f"{len(self.daemons)}-{name}.log"
        self.daemons.append(Daemon(command, log, self.environment(**more)))
        return self.daemons[-1]

    def command(self, name: str, config: Path | str, *arguments: object) -> list[str]:
        """What starts a daemon."""
        return [str(word) for word in (self.installation.bin(name), "-c", config, *arguments)]

    def environment(self, **more: str) -> dict[str, str]:
        """What daemons and commands are started with."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKQUEUE", "PYTHON"))}
        return kept | more

    def run(self, *arguments: object, input: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
        """Run the command `taskqueue`."""
        command = [str(word) for word in (self.installation.bin("taskqueue"), *arguments)]
        environment = self.environment(**more)
        return subprocess.run(command, input=input, env=environment, capture_output=True, timeout=PATIENCE, check=False)

    # The broker, by plain pika.

    @property
    def connection(self) -> Any:
        """One connection for all that the test does itself."""
        if self._connection is None or not self._connection.is_open:
            parameters = pika.URLParameters(self.url)
            parameters.heartbeat = 0  # nobody serves it while the test waits for something else
            self._connection = pika.BlockingConnection(parameters)
        return self._connection

    def disconnect(self) -> None:
        """Let go of the broker.  May be called at any time."""
        with contextlib.suppress(Exception):
            if self._connection is not None:
                self._connection.close()
        self._connection = None

    def depth(self, queue: str) -> int | None:
        """How many messages wait in `queue`, those not counted that somebody holds; None: no such queue."""
        channel = self.connection.channel()
        try:
            return int(channel.queue_declare(queue, passive=True).method.message_count)
        except pika.exceptions.ChannelClosedByBroker:
            return None
        finally:
            if channel.is_open:
                channel.close()

    def wait_queue(self, queue: str, depth: int | None = None) -> None:
        """Wait until `queue` exists, and has `depth` messages."""
        until(lambda: self.depth(queue) is not None and depth in (None, self.depth(queue)), f"{depth} in {queue}")

    def publish(self, queue: str, *bodies: str | bytes, **properties: Any) -> None:
        """Publish to `queue`, which must exist; `properties` are those of AMQP, content type text by default."""
        self.publish_all(queue, [(body, properties) for body in bodies])

    def publish_all(self, queue: str, messages: Sequence[tuple[str | bytes, Mapping[str, Any]]]) -> None:
        """Publish bodies with their properties.  All are in the queue when this returns.

        With confirms: a quorum queue that has just been made may refuse what is published to it; without, it is lost.
        """
        self.wait_queue(queue)
        channel = self.connection.channel()
        channel.confirm_delivery()
        for body, properties in messages:
            raw = body.encode() if isinstance(body, str) else body
            own = pika.BasicProperties(**{"content_type": "text/plain", "delivery_mode": 2, **properties})
            until(lambda raw=raw, own=own: _taken(channel, queue, raw, own), f"{queue} takes a message")  # type: ignore[misc]
        channel.close()

    def collect(self, queue: str, count: int, *, timeout: float = PATIENCE) -> list[Message]:
        """Take `count` messages from `queue`; fails with what came where they are fewer in time."""
        deadline = time.monotonic() + timeout
        until(lambda: self.depth(queue), f"something in queue {queue}", timeout=timeout)
        channel = self.connection.channel()
        channel.basic_qos(prefetch_count=min(count, 500))
        found: list[Message] = []
        for method, properties, body in channel.consume(queue, inactivity_timeout=0.05):
            if method is not None:
                found.append(Message(body, properties))
                channel.basic_ack(method.delivery_tag)
            if len(found) == count:
                break
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(found)} of {count} messages in {queue} within {timeout:g} s: {found[-3:]}")
        channel.close()
        return found

    def dead_letters(self, count: int, *, timeout: float = PATIENCE) -> list[Message]:
        """Take `count` dead letters."""
        return self.collect("taskqueue.dead", count, timeout=timeout)


def _taken(channel: Any, queue: str, body: bytes, properties: pika.BasicProperties) -> bool:
    try:
        channel.basic_publish("", queue, body, properties, mandatory=True)
    except pika.exceptions.NackError:
        return False
    return True
