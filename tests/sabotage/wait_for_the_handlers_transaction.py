"""Promise 4's lease broken: a carrier waits for the transaction of one of its handlers, and so does who buries it."""

from __future__ import annotations

from taskqueue.brokers.postgresql import setup

FAILS = (
    "test_completing.py::test_a_transaction_that_goes_on_keeps_the_carrier_from_nothing",
    "test_completing.py::test_who_takes_over_from_a_dead_carrier_waits_for_no_transaction[True]",
)

migrations = setup.migrations
PASSES_BY = {
    "0003_carriers.sql": "carrier = dead FOR NO KEY UPDATE SKIP LOCKED",
    "0005_records.sql": "OF w SKIP LOCKED",
}


def waiting():
    found = []
    for number, name, text in migrations():
        passes_by = PASSES_BY.get(name, "")
        assert passes_by in text
        found.append((number, name, text.replace(passes_by, passes_by.removesuffix(" SKIP LOCKED"))))
    return found


setup.migrations = waiting
