"""Each promise's own test fails when the promise is broken on purpose (tests/sabotage)."""

from __future__ import annotations

import os

import pytest
import sabotage
from servers import RabbitMQ


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", sabotage.names())
def test_a_broken_promise_fails_its_own_test(name: str, rabbitmq: RabbitMQ) -> None:
    urls = [rabbitmq.url(rabbitmq.vhost()) for _ in range(6)]

    found = set(sabotage.outcomes(name, urls).values())
    if found == {"skipped"} and os.geteuid() != 0:
        pytest.skip("its test needs root")
    assert found == {"failed"}
