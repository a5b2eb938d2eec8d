"""What can't be reached is said in one line, without the password, and tried for ever by who receives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from amqp import LIMIT, eventually
from servers import RabbitMQ, free_ports

from taskqueue.broker import Options, connect
from taskqueue.brokers.amqp.link import Link
from taskqueue.errors import BrokerUnavailable
from taskqueue.workitem import Workitem

PASSWORDS = ("sesame/ouvre:toi@", quote("sesame/ouvre:toi@", safe=""), "WRONG-secret")


class SaysHTTP(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(8)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


@contextlib.contextmanager
def http_server() -> Iterator[int]:
    with socketserver.TCPServer(("127.0.0.1", 0), SaysHTTP) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(params=["refused", "password", "vhost", "http", "host"])
def unreachable(request: pytest.FixtureRequest, rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple]:
    """A URL that leads nowhere, and what the error says about it."""
    match request.param:
        case "refused":
            yield f"amqp://guest:WRONG-secret@127.0.0.1:{free_ports(1)[0]}/", "Connection refused (ECONNREFUSED)"
        case "password":
            yield rabbitmq.url(password="WRONG-secret"), "refused user or password"
        case "vhost":
            yield rabbitmq.url("no-such-vhost"), "refused access to the vhost"
        case "http":
            with http_server() as port:
                yield f"amqp://guest:WRONG-secret@127.0.0.1:{port}/", "not AMQP"
        case "host":
            resolve = socket.getaddrinfo

            def fails(host: str, *arguments: object, **keywords: object) -> object:  # no question leaves the machine
                if host == "broker.invalid":
                    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
                return resolve(host, *arguments, **keywords)  # type: ignore[arg-type]

            monkeypatch.setattr(socket, "getaddrinfo", fails)
            yield "amqp://guest:WRONG-secret@broker.invalid/", "can't find that host"


@pytest.fixture
def all_logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_send_says_at_once_and_in_one_line_what_is_wrong(
    unreachable: tuple[str, str], all_logs: pytest.LogCaptureFixture
) -> None:
    url, expected = unreachable
    producer = connect(Options(url=url)).producer()
    begun = time.monotonic()

    with pytest.raises(BrokerUnavailable) as raised:
        producer.send([Workitem(body=b"", type="any")])
    producer.close()

    message = str(raised.value)
    assert expected in message
    assert "\n" not in message
    assert time.monotonic() - begun < 15
    assert not any(secret in message + all_logs.text for secret in PASSWORDS)


def test_a_consumer_says_in_one_line_what_is_wrong_and_tries_on(
    unreachable: tuple[str, str], all_logs: pytest.LogCaptureFixture
) -> None:
    url, expected = unreachable

    def complaints() -> list[str]:
        return [
            record.getMessage()
            for record in all_logs.records
            if record.name.startswith("taskqueue") and record.levelno >= logging.WARNING
        ]

    async def test() -> None:
        broker = connect(Options(url=url))
        receiving = asyncio.create_task(broker.consumer("worker_any", reserve=1).receive(limit=1))
        await asyncio.wait_for(eventually(lambda: len(complaints()) >= 3), LIMIT)
        assert not receiving.done()
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        await broker.close()

    asyncio.run(test())

    assert all(expected in line and "\n" not in line for line in complaints()[:3])
    assert not any(secret in all_logs.text for secret in PASSWORDS)


@pytest.mark.parametrize("url", ["amqp://u:WRONG-secret@host:port/", "amqp://u:WRONG-secret@host/?heartbeat=x"])
def test_a_url_that_is_none_is_said_without_its_password(url: str) -> None:
    with pytest.raises(BrokerUnavailable) as raised:
        producer = connect(Options(url=url)).producer()
        producer.send([Workitem(body=b"", type="any")])

    assert "WRONG-secret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert "WRONG-secret" not in repr(Options(url=url))


def test_a_connection_that_nobody_waits_for_any_more_when_it_opens_is_closed(amqp_url: str) -> None:
    async def test() -> None:
        link = Link(Options(url=amqp_url))
        connecting = asyncio.create_task(link.connect())
        while link._attempt is None or not link._attempt.done():
            await asyncio.sleep(0)
        assert not connecting.done(), "it has heard of it already"
        assert connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        async with asyncio.timeout(LIMIT):
            while not link._attempt.result().is_closed:
                await asyncio.sleep(0.001)
        assert (await link.connect()).is_open
        await link.close()

    asyncio.run(test())
