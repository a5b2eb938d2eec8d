"""Each promise's own test fails when the promise is broken on purpose (tests/sabotage)."""

from __future__ import annotations

import pytest
import sabotage
from hosts import lacking
from installations import Installation
from servers import RabbitMQ


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", sabotage.names())
def test_a_broken_promise_fails_its_own_test(name: str, rabbitmq: RabbitMQ, installation: Installation) -> None:
    urls = [rabbitmq.url(rabbitmq.vhost()) for _ in range(6)]

    found = set(sabotage.outcomes(name, urls, installation.wheels).values())
    if found == {"skipped"} and lacking():
        pytest.skip(lacking())
    assert found == {"failed"}
