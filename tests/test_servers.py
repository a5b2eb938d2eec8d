"""The tests' own servers and installations do what tests rely on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pika
import psycopg
import pytest
from databases import PgBouncer, PostgreSQL
from installations import Installation, plugin_projects
from servers import RabbitMQ

LIST = """
import json
from importlib.metadata import entry_points
found = [*entry_points(group="worker.plugins"), *entry_points(group="workitems")]
print(json.dumps({each.name: each.dist.name for each in found}))
"""


def test_two_tests_get_virtual_hosts_of_their_own(rabbitmq: RabbitMQ) -> None:
    first, second = (pika.BlockingConnection(pika.URLParameters(rabbitmq.url(rabbitmq.vhost()))) for _ in range(2))

    first.channel().queue_declare("only-here")

    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="no queue 'only-here'"):
        second.channel().queue_declare("only-here", passive=True)
    first.close()
    second.close()


def test_a_killed_rabbitmq_comes_back_with_its_data(start_rabbitmq: Callable[..., RabbitMQ]) -> None:
    server = start_rabbitmq(configuration=["consumer_timeout = 60000"])
    url = server.url(server.vhost())
    publish_confirmed(url, b"kept")
    killed = server.pid

    server.kill()
    server.start()

    assert server.pid != killed
    assert "60000" in server.eval("application:get_env(rabbit, consumer_timeout)")
    assert get(url) == b"kept"


def test_an_installation_has_every_plugin_as_a_distribution_of_its_own(installation: Installation) -> None:
    found = json.loads(subprocess.check_output([installation.python, "-c", LIST], cwd="/"))

    assert {"echo", "record", "worker1", "worker2", "broken"} <= set(found)
    assert found["echo"] == found["record"] == "taskqueue-test-plain"
    assert len(set(found.values())) == len(plugin_projects())


def test_an_installation_is_not_the_source_tree(installation: Installation) -> None:
    where = subprocess.check_output(
        [installation.python, "-c", "import pika, daemon, taskqueue.errors as e; print(e.__file__)"], cwd="/", text=True
    )

    assert where.startswith(str(installation.site_packages))
    assert installation.bin("taskqueue-workerpool").exists()


def test_two_tests_get_databases_of_their_own(postgresql: PostgreSQL) -> None:
    first, second = (postgresql.admin(postgresql.database()) for _ in range(2))

    first.execute("CREATE TABLE only_here ()")

    with pytest.raises(psycopg.errors.UndefinedTable):
        second.execute("SELECT FROM only_here")
    first.close()
    second.close()


def test_a_killed_postgresql_comes_back_with_its_data(start_postgresql: Callable[..., PostgreSQL]) -> None:
    server = start_postgresql(fsync=True, settings=["work_mem = '5MB'"])
    server.role(server.user)
    with server.admin() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'kept' AS word")
    killed = server.pid

    server.kill()
    server.start()

    assert server.pid != killed
    with server.admin() as connection:
        assert connection.execute("SELECT word, current_setting('work_mem') FROM kept").fetchone() == ("kept", "5MB")
    psycopg.connect(server.url("postgres")).close()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.url("postgres", password="wrong"))


def test_pgbouncer_gives_a_server_connection_for_a_transaction_only(
    postgresql: PostgreSQL, pgbouncer: PgBouncer
) -> None:
    postgresql.role(postgresql.user)
    with psycopg.connect(pgbouncer.url(postgresql.database()), autocommit=True) as connection:
        connection.execute("LISTEN gone")
        connection.execute("NOTIFY gone")
    # Three clients, each in no transaction, share two connections of the server.
    clients = [psycopg.connect(pgbouncer.url("postgres"), autocommit=True, prepare_threshold=None) for _ in range(3)]
    pids = {client.execute("SELECT pg_backend_pid()").fetchone() for client in clients}
    for client in clients:
        client.close()
    assert len(pids) < 3


def publish_confirmed(url: str, body: bytes) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("queue", durable=True)
    channel.basic_publish("", "queue", body, pika.BasicProperties(delivery_mode=2))
    connection.close()


def get(url: str) -> bytes:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    _, _, body = connection.channel().basic_get("queue", auto_ack=True)
    connection.close()
    return body
