"""Promise 10 broken: errors name the whole URL."""

from __future__ import annotations

from taskqueue.brokers.amqp import connection, link

FAILS = ("test_cli.py::TestSend::test_a_wrong_password_is_one_line_without_it",)


def careless(to: object) -> str:
    return f"{to.credentials.username}:{to.credentials.password}@{to.host}:{to.port}"


connection.describe = link.describe = careless
