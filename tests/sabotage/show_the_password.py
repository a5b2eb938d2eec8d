"""Promise 10: errors name the whole URL."""

TEST = "tests/test_cli.py -k wrong_password_is_one_line_without_it"


def apply() -> None:
    from taskqueue.brokers.amqp import connection, link

    def careless(to: object) -> str:
        return f"{to.credentials.username}:{to.credentials.password}@{to.host}:{to.port}"

    connection.describe = link.describe = careless
