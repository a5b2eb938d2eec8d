"""The contract suite: sentences about every broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from taskqueue.broker import Broker
from taskqueue.testing.bench import LIMIT, Bench
from taskqueue.testing.dead import DeadLettersContract
from taskqueue.testing.receiving import ReceivingContract
from taskqueue.testing.results import ResultsContract
from taskqueue.testing.sending import SendingContract
from taskqueue.testing.settling import SettlingContract
from taskqueue.testing.watching import WatchingContract

__all__ = ["BrokerContract"]


@pytest.mark.timeout(4 * LIMIT)
class BrokerContract(
    SendingContract, ReceivingContract, ResultsContract, SettlingContract, DeadLettersContract, WatchingContract
):
    """Subclass it with a fixture `broker_factory`: see `taskqueue.testing`."""

    @pytest.fixture
    def broker_factory(self) -> Callable[[], Broker]:
        """A function that returns one more broker object on the same place, which is empty at first."""
        raise NotImplementedError("the subclass says which broker is tested")

    @pytest.fixture
    def bench(self, broker_factory: Callable[[], Broker]) -> Iterator[Bench]:
        bench = Bench(broker_factory)
        yield bench
        bench.close()
