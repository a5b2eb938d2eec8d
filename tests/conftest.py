"""Fixtures for tests against real servers and real installations."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from databases import PgBouncer, PostgreSQL
from installations import TOP, Installation
from lending import Database
from packages import build
from servers import MissingService, RabbitMQ, missing
from system import System

SERVICES = {
    "amqp_url",
    "example_package",
    "packages",
    "pgbouncer",
    "postgresql",
    "rabbitmq",
    "spare",
    "start_postgresql",
    "start_rabbitmq",
}
URLS = os.environ.get("TASKQUEUE_TEST_URLS", "").split()
SABOTAGE = os.environ.get("TASKQUEUE_SABOTAGE", "")


def pytest_configure() -> None:
    """Apply the sabotage that a run is for (tests/sabotage)."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell has it for what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # else what tests start would ignore it, too
    if SABOTAGE:
        importlib.import_module(f"sabotage.{SABOTAGE}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, or Debian's tools, so that `make check` can leave them out."""
    for item in items:
        if SERVICES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.services)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """The RabbitMQ that all tests share, each in a virtual host of its own.  Leave it running."""
    try:
        server = RabbitMQ()
    except MissingService as reason:
        missing(reason)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def start_rabbitmq() -> Iterator[Callable[..., RabbitMQ]]:
    """Start one more RabbitMQ, which may be stopped, killed and configured: arguments as of RabbitMQ."""
    servers: list[RabbitMQ] = []

    def start(**settings: Sequence[str]) -> RabbitMQ:
        try:
            servers.append(RabbitMQ(**settings))
        except MissingService as reason:
            missing(reason)
        servers[-1].start()
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.close()


@pytest.fixture
def amqp_url(request: pytest.FixtureRequest) -> str:
    """The URL of a virtual host that no other test uses."""
    if URLS:  # of a run inside a test: its broker is used, too
        return URLS.pop()
    rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
    return rabbitmq.url(rabbitmq.vhost())


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """The PostgreSQL that all tests share, each in a database of its own.  Leave it running."""
    try:
        server = PostgreSQL()
    except MissingService as reason:
        missing(reason)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def start_postgresql() -> Iterator[Callable[..., PostgreSQL]]:
    """Start one more PostgreSQL, which may be stopped, killed and configured: arguments as of PostgreSQL."""
    servers: list[PostgreSQL] = []

    def start(*, fsync: bool = False, settings: Sequence[str] = (), namespace: str = "") -> PostgreSQL:
        try:
            servers.append(PostgreSQL(fsync=fsync, settings=settings, namespace=namespace))
        except MissingService as reason:
            missing(reason)
        servers[-1].start()
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.close()


@pytest.fixture
def database(postgresql: PostgreSQL) -> Database:
    """A database of one's own, with the schema."""
    return Database(postgresql)


@pytest.fixture
def spare_database(start_postgresql: Callable[..., PostgreSQL]) -> Database:
    """One of a server that may be killed."""
    return Database(start_postgresql(fsync=True))


@pytest.fixture
def pgbouncer(postgresql: PostgreSQL) -> Iterator[PgBouncer]:
    """A pgbouncer in transaction mode before the PostgreSQL that all tests share."""
    try:
        bouncer = PgBouncer(postgresql)
    except MissingService as reason:
        missing(reason)
    try:
        yield bouncer
    finally:
        bouncer.close()


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """This project and the tests' plugins, installed for every user of the machine."""
    directory = Path(tempfile.mkdtemp(prefix="taskqueue-", dir="/tmp"))  # not TMPDIR, which may be private
    try:
        directory.chmod(0o755)
        yield Installation(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def system(installation: Installation, amqp_url: str) -> Iterator[System]:
    """Real daemons, in a virtual host and a directory of their own."""
    with System(installation, amqp_url) as system:
        yield system


@pytest.fixture(scope="module")
def spare() -> Iterator[RabbitMQ]:
    """A broker to be killed, stopped and hung: running when a test begins, and when it ends."""
    try:
        server = RabbitMQ(configuration=["consumer_timeout = 3000", "frame_max = 8192"])
    except MissingService as reason:
        missing(reason)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with this project's Debian packages."""
    try:
        return build(TOP, tmp_path_factory.mktemp("packages"))
    except MissingService as reason:
        missing(reason)


@pytest.fixture(scope="session")
def example_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the Debian package of the example plugin."""
    try:
        return build(TOP / "examples" / "plugin-deb", tmp_path_factory.mktemp("example"))
    except MissingService as reason:
        missing(reason)
