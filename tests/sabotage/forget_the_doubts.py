"""Dependencies broken: on PostgreSQL, who could not be told of an end at once is never told of it."""

from __future__ import annotations

from taskqueue.brokers.postgresql import setup

FAILS = (
    "test_postgresql_depending.py::test_an_end_does_not_wait_for_who_holds_what_depends_on_it",
    "test_postgresql_depending.py::test_a_handlers_transaction_that_sees_the_past_counts_for_what_was_sent_since",
)

migrations = setup.migrations
LOOK = "IF NOT EXISTS (SELECT FROM endings) THEN"


def forgetful():
    found = migrations()
    assert any(LOOK in text for _, _, text in found)
    return [(number, name, text.replace(LOOK, "IF true THEN")) for number, name, text in found]


setup.migrations = forgetful
