"""Private servers for tests: on free ports, in directories of their own, gone with the test run at the latest.

Each is a child that the kernel kills when this process dies (PR_SET_PDEATHSIG), so nothing is left behind even
by SIGKILL.  That signal is sent when the *thread* that started the child ends: start servers in the main thread.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import pika
import pytest

BINARIES = Path(
    "/usr/lib/rabbitmq/bin"
)  # the commands below /usr/sbin insist on the user and directories of the package
FILES = 65_536  # open files that a broker may have, where the host allows it
START_TIMEOUT = 90.0
STOP_TIMEOUT = 20.0
STARTED = b"Server startup complete"
VHOSTS_AT_ONCE = 20  # the runtime of `rabbitmqctl` costs most of a second, however little it does

CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users = none
disk_free_limit.absolute = 50MB
default_user = {user}
default_pass = {password}
"""


class MissingService(Exception):
    """A server that tests need is not installed."""


def free_ports(count: int) -> list[int]:
    """Find different TCP ports of the loopback that nobody uses right now.

    Below those that connections get from the kernel: a server that is started again finds its own free.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    some = random.SystemRandom()  # tests seed the usual one
    sockets: list[socket.socket] = []
    while len(sockets) < count:
        with contextlib.suppress(OSError):
            sockets.append(socket.create_server(("127.0.0.1", some.randrange(10_000, max(lowest, 20_000)))))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class RabbitMQ:
    """One private RabbitMQ node.  The same ports and data over `stop`, `kill` and `restart`."""

    user = "taskqueue"
    password = "sesame/ouvre:toi@"  # of what must be quoted in a URL

    def __init__(self, *, configuration: Sequence[str] = (), plugins: Sequence[str] = ()) -> None:
        """Prepare a node; `configuration` are further lines of rabbitmq.conf, `plugins` are enabled."""
        for program in (BINARIES / "rabbitmq-server", "epmd", "setpriv"):
            if shutil.which(program) is None:
                raise MissingService(f"{program} is not installed (rabbitmq-server and util-linux have it)")
        self.port, self._epmd_port, dist_port = free_ports(3)
        self.directory = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
        self.log = self.directory / "server.log"
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._vhosts: list[str] = []
        self._vhosts_made = 0
        self._configure(configuration, plugins)
        self._environment = self._describe(dist_port)

    @property
    def pid(self) -> int:
        """The process id of the running broker."""
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        """Start the broker and wait until it takes connections.  Costs 6 to 15 seconds."""
        assert self._server is None
        if self._epmd is None:
            self._epmd = self._spawn(["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"])
            self._wait_for_epmd()
        log_before = self.log.stat().st_size
        self._server = self._spawn([str(BINARIES / "rabbitmq-server")])
        self._wait_until_ready(log_before)

    def stop(self) -> None:
        """Shut the broker down as SIGTERM does."""
        if self._server is None:
            return
        self._server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """End the broker by SIGKILL.

        RabbitMQ 3.10 writes the names of new quorum queues to disk half a second late: a queue that was declared
        less than that before is unusable afterwards, whatever it had confirmed.
        """
        if self._server is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)  # the whole session: Erlang has helper processes
        self._server.wait()
        self._server = None

    def restart(self) -> None:
        """Stop the broker, where it runs, and start it with its data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop everything and remove the directory.  May be called twice."""
        self.stop()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def vhost(self) -> str:
        """The name of a virtual host that nobody has used yet, in which `user` may do everything."""
        if not self._vhosts:
            self._make_vhosts(VHOSTS_AT_ONCE)
        return self._vhosts.pop(0)

    def url(self, vhost: str = "/", *, user: str | None = None, password: str | None = None) -> str:
        """The `amqp:` URL of a virtual host."""
        name = quote(self.user if user is None else user, safe="")
        secret = quote(self.password if password is None else password, safe="")
        return f"amqp://{name}:{secret}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl ARGUMENTS` prints.  Costs a second."""
        command = [str(BINARIES / "rabbitmqctl"), "--quiet", "--node", self._environment["RABBITMQ_NODENAME"]]
        done = subprocess.run(
            [*command, *arguments], env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def eval(self, expression: str) -> str:
        """Have the broker evaluate an Erlang expression, without its full stop."""
        return self.ctl("eval", f"{expression}.")

    def _make_vhosts(self, count: int) -> None:
        names = [f"test{self._vhosts_made + n}" for n in range(count)]
        binaries = ",".join(f'<<"{name}">>' for name in names)
        user = f'<<"{self.user}">>'
        self.eval(
            f"[begin rabbit_vhost:add(V, {user}), "
            f'rabbit_auth_backend_internal:set_permissions({user}, V, <<".*">>, <<".*">>, <<".*">>, {user}) end '
            f"|| V <- [{binaries}]]"
        )
        self._vhosts_made += count
        self._vhosts += names

    def _configure(self, configuration: Sequence[str], plugins: Sequence[str]) -> None:
        lines = CONFIGURATION.format(port=self.port, user=self.user, password=self.password)
        (self.directory / "rabbitmq.conf").write_text(lines + "".join(f"{line}\n" for line in configuration))
        (self.directory / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        home = self.directory / "home"
        home.mkdir()
        cookie = home / ".erlang.cookie"
        cookie.write_text(os.urandom(10).hex())
        cookie.chmod(0o400)

    def _describe(self, dist_port: int) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        directory = self.directory
        return inherited | {
            "HOME": str(directory / "home"),
            "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the broker instead of its parent
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": "taskqueue@localhost",
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "generated"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # One scheduler that does not spin: tests measure us, not how many processors the broker can take.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none"
            ),
        }

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        # RabbitMQ sets files aside for each of the many virtual hosts, and hangs once none is left.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = f"--nofile={FILES if most == resource.RLIM_INFINITY else min(FILES, most)}:"
        with self.log.open("ab") as log:
            return subprocess.Popen(
                ["prlimit", files, "setpriv", "--pdeathsig", "KILL", *command],
                env=self._environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_for_epmd(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._epmd_port)).close()
                return
            except OSError:
                assert self._epmd is not None
                if self._epmd.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"epmd did not start:\n{self._end_of_log()}") from None
            time.sleep(0.02)

    def _wait_until_ready(self, log_before: int) -> None:
        assert self._server is not None
        deadline = time.monotonic() + START_TIMEOUT
        # It takes connections some seconds before it is ready for everything, `rabbitmqctl` for one.
        while STARTED not in self.log.read_bytes()[log_before:]:
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"RabbitMQ did not start:\n{self._end_of_log()}")
            time.sleep(0.05)
        pika.BlockingConnection(pika.URLParameters(self.url())).close()

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


def missing(reason: MissingService) -> NoReturn:
    """Skip a test for want of a service; fail it where all services are required."""
    if os.environ.get("TASKQUEUE_REQUIRE_SERVICES") == "1":
        pytest.fail(str(reason), pytrace=False)
    pytest.skip(str(reason))
