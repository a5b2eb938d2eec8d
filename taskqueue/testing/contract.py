"""The contract suite: sentences about every broker."""

from __future__ import annotations

import pytest

from taskqueue.testing.bench import LIMIT, Contract
from taskqueue.testing.dead import DeadLettersContract
from taskqueue.testing.receiving import ReceivingContract
from taskqueue.testing.results import ResultsContract
from taskqueue.testing.sending import SendingContract
from taskqueue.testing.settling import SettlingContract
from taskqueue.testing.watching import WatchingContract

__all__ = ["BrokerContract"]


@pytest.mark.timeout(4 * LIMIT)
class BrokerContract(
    SendingContract,
    ReceivingContract,
    ResultsContract,
    SettlingContract,
    DeadLettersContract,
    WatchingContract,
    Contract,
):
    """Subclass it with a fixture `broker_factory`: see `taskqueue.testing`."""
