"""Private PostgreSQL servers for tests, and pgbouncers before them; as tests/servers.py has them for RabbitMQ."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql
from servers import MissingService, free_ports

from taskqueue.brokers.postgresql.place import parse
from taskqueue.brokers.postgresql.setup import set_up

PACKAGED = Path("/usr/lib/postgresql")  # Debian has each version's programs below, and only some of them on the path
OWNER = "postgres"
PRODUCER = "shop"  # the role of docs/postgresql.md that may only send
START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0


def binaries() -> Path:
    """Where the programs of the host's newest PostgreSQL are."""
    found = sorted(PACKAGED.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    path = found[-1] if found else shutil.which("postgres")
    if path is None or shutil.which("setpriv") is None:
        raise MissingService("postgres is not installed (postgresql and util-linux have what is needed)")
    return Path(path).parent


class PostgreSQL:
    """One private server.  The same port and data over `stop`, `kill` and `restart`.

    Tests log in as `user`, which has the rights of a carrier only (`with_schema`); `admin` owns all.
    """

    user = "taskqueue"
    password = "sesame/ouvre:toi@"  # of what must be quoted in a URL

    def __init__(self, *, fsync: bool = False, settings: Sequence[str] = (), namespace: str = "") -> None:
        """Prepare a server; `settings` are further lines of postgresql.conf.

        namespace: the network namespace that it runs in, on all of its addresses; empty: this one, on 127.0.0.1.
        """
        self._binaries = binaries()
        self._namespace = namespace
        (self.port,) = free_ports(1)
        self.directory = Path(tempfile.mkdtemp(prefix="postgresql-", dir="/tmp"))  # not TMPDIR: may be private
        self.log = self.directory / "server.log"
        self.log.touch()
        self._server: subprocess.Popen[bytes] | None = None
        self._databases = 0
        if os.geteuid() == 0:  # it refuses to run as root
            shutil.chown(self.directory, OWNER, OWNER)
        self._run("initdb", "-D", self.directory / "data", "-A", "trust", "-U", OWNER, "--no-sync", "--locale=C.UTF-8")
        lines = [
            f"port = {self.port}",
            f"listen_addresses = '{'*' if namespace else '127.0.0.1'}'",
            f"unix_socket_directories = '{self.directory}'",
            f"fsync = {'on' if fsync else 'off'}",
            *settings,
        ]
        with (self.directory / "data" / "postgresql.conf").open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
        (self.directory / "data" / "pg_hba.conf").write_text(
            "local all all trust\nhost all all samenet scram-sha-256\n"
        )

    def _as_owner(self, *command: object) -> list[str]:
        change = ["--reuid", OWNER, "--regid", OWNER, "--init-groups"] if os.geteuid() == 0 else []
        return ["setpriv", *change, "--pdeathsig", "KILL", *map(str, command)]

    def _run(self, program: str, *arguments: object) -> None:
        command = self._as_owner(self._binaries / program, *arguments)
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    @property
    def pid(self) -> int:
        """The process id of the running postmaster."""
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        """Start the server and wait until it takes connections.  Costs a fifth of a second, or what recovery takes."""
        assert self._server is None
        with self.log.open("ab") as log:
            enter = ["nsenter", f"--net=/run/netns/{self._namespace}"] if self._namespace else []
            self._server = subprocess.Popen(
                [*enter, *self._as_owner(self._binaries / "postgres", "-D", self.directory / "data")],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.admin().close()
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(f"PostgreSQL did not start:\n{self.log.read_text()[-4000:]}") from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Shut the server down, its connections with it."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """End the server by SIGKILL, all of its processes at once: each is the leader of a session of its own."""
        if self._server is None:
            return
        below = self._children()
        for pid in (self._server.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait()
        deadline = time.monotonic() + STOP_TIMEOUT
        while any(_runs(pid) for pid in below) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._server = None

    def _children(self) -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == self.pid:
                    found.append(int(stat.parent.name))
        return found

    def restart(self) -> None:
        """Stop the server, where it runs, and start it with its data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it and remove the directory.  May be called twice."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def admin(self, database: str = "postgres") -> psycopg.Connection:
        """A connection as the superuser, in autocommit."""
        return psycopg.connect(
            host=str(self.directory), port=self.port, user=OWNER, dbname=database, autocommit=True, connect_timeout=10
        )

    def admin_url(self, database: str = "postgres") -> str:
        """The URL of a database for the superuser, over the server's own socket."""
        return f"postgresql://{OWNER}@/{database}?host={quote(str(self.directory), safe='')}&port={self.port}"

    def url(
        self,
        database: str,
        *,
        user: str | None = None,
        password: str | None = None,
        host: str = "127.0.0.1",
        options: str = "",
    ) -> str:
        """The URL of a database, for `user` by default."""
        name = quote(self.user if user is None else user, safe="")
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{name}:{secret}@{host}:{self.port}/{database}{options}"

    def database(self, prepare: Callable[[PostgreSQL, str], object] | None = None) -> str:
        """The name of a new database; `prepare` is done with one of its kind once, and then copied."""
        self._databases += 1
        name = f"test{self._databases}"
        with contextlib.closing(self.admin()) as connection:
            template = "template0"
            if prepare is not None:
                template = f"prepared_by_{prepare.__name__}"
                there = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (template,)).fetchone()
                if there is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(template)))
                    prepare(self, template)
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
        return name

    def back_up(self, database: str) -> Path:
        """A backup of a database, which may be worked with meanwhile."""
        backup = self.directory / f"{database}.dump"
        self._run("pg_dump", *self._here, "--format=custom", "--file", backup, database)
        return backup

    def restore(self, backup: Path) -> str:
        """The name of a new database with what is in a backup."""
        database = self.database()
        self._run("pg_restore", *self._here, "--exit-on-error", "--dbname", database, backup)
        return database

    @property
    def _here(self) -> list[str]:
        return ["--host", str(self.directory), "--port", str(self.port), "--username", OWNER]

    def role(self, name: str) -> None:
        """Make a role that may log in with `password`, where it is not there."""
        with contextlib.closing(self.admin()) as connection, contextlib.suppress(psycopg.errors.DuplicateObject):
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(self.password))
            )


class PgBouncer:
    """A pgbouncer in transaction mode before one server: two server connections for all clients."""

    def __init__(self, server: PostgreSQL) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise MissingService("pgbouncer is not installed")
        (self.port,) = free_ports(1)
        self._server = server
        self.directory = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp"))
        (self.directory / "users").write_text(f'"{server.user}" "{server.password}"\n')
        (self.directory / "pgbouncer.ini").write_text(
            f"""\
[databases]
* = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {self.directory}/users
pool_mode = transaction
default_pool_size = 2
"""
        )
        as_user = []
        if os.geteuid() == 0:  # it refuses to run as root
            shutil.chown(self.directory, OWNER, OWNER)
            as_user = ["--reuid", OWNER, "--regid", OWNER, "--init-groups"]
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", *as_user, "--pdeathsig", "KILL", program, str(self.directory / "pgbouncer.ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise RuntimeError("pgbouncer did not start") from None
            time.sleep(0.02)

    def url(self, database: str, options: str = "") -> str:
        """The URL of a database through it, for the server's `user`."""
        secret = quote(self._server.password, safe="")
        return f"postgresql://{self._server.user}:{secret}@127.0.0.1:{self.port}/{database}{options}"

    def close(self) -> None:
        """End it.  May be called twice."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def with_schema(server: PostgreSQL, database: str) -> None:
    """Set up the schema in a database, and let the two roles of docs/postgresql.md do what that says."""
    place = parse(server.admin_url(database))
    set_up(place, upgrade=False, dry_run=False, say=lambda line: None)
    for role in (server.user, PRODUCER):
        server.role(role)
    text = (Path(__file__).parent.parent / "docs" / "postgresql.md").read_text()
    with contextlib.closing(server.admin(database)) as connection:
        for statement in grants(text):
            connection.execute(statement.encode())


def grants(text: str) -> list[str]:
    """The GRANT statements of the section about roles."""
    section = text.partition("## Roles")[2].partition("\n## ")[0]
    code = "\n".join(line for line in section.splitlines() if line.startswith("    "))
    return [f"{statement};" for statement in code.split(";") if statement.strip() and "SELECT" not in statement]
