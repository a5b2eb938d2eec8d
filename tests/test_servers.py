"""The tests' own servers and installations do what tests rely on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pika
import pytest
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
