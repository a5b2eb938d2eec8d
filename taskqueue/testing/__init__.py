"""The contract of a broker as tests: every backend passes them, yours too::

    from taskqueue.testing import BrokerContract

    class TestMine(BrokerContract):
        @pytest.fixture
        def broker_factory(self):
            return lambda: connect("mine://...")   # each call: another broker object on the same, empty place

A class needs pytest and pytest-timeout.  What a broker declares not to do (`Broker.capabilities`) is left out.
"""

from __future__ import annotations

import pytest

_OF_BROKERS = ("sending", "receiving", "results", "settling", "dead", "watching")
_OF_STORES = (
    *("recorded", "upkeep", "asking", "cancelling", "dependents", "depending", "blocking", "inputs", "promises"),
    *("named", "sizes", "store"),
)
for _name in ("bench", *_OF_BROKERS, *_OF_STORES):
    pytest.register_assert_rewrite(f"taskqueue.testing.{_name}")

# After the lines above, or failures say nothing.
from taskqueue.testing.contract import BrokerContract  # noqa: E402
from taskqueue.testing.store import StoreContract  # noqa: E402

__all__ = ["BrokerContract", "StoreContract"]
