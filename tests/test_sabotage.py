"""Each promise's own test fails when the promise is broken on purpose (tests/sabotage)."""

from __future__ import annotations

import pytest
import sabotage
from servers import RabbitMQ


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", sabotage.names())
def test_a_broken_promise_fails_its_own_test(name: str, rabbitmq: RabbitMQ) -> None:
    urls = [rabbitmq.url(rabbitmq.vhost()) for _ in range(6)]

    assert set(sabotage.outcomes(name, urls).values()) == {"failed"}
