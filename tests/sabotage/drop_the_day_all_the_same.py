"""Dependencies broken: on PostgreSQL, results and records go when their time is over, whatever depends on them."""

from __future__ import annotations

from taskqueue.brokers.postgresql import setup

FAILS = (
    "test_postgresql_depending.py::test_a_day_stays_as_long_as_something_depends_on_a_result_of_it",
    "test_broker_postgresql.py::TestPostgreSQLStore::test_a_result_stays_for_those_that_were_sent_before_it_ended",
)

migrations = setup.migrations
HEEDS = ("SELECT FROM dependencies d WHERE d.needed = h.id", "SELECT FROM dependencies d WHERE d.ended >= day")


def heedless():
    found = migrations()
    for heed in HEEDS:
        assert any(heed in text for _, _, text in found)
        found = [
            (number, name, text.replace(heed, heed.replace("WHERE", "WHERE false AND"))) for number, name, text in found
        ]
    return found


setup.migrations = heedless
