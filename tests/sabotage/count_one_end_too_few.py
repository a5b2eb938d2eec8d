"""Dependencies broken: of what ends in one transaction, the last does not count."""

from __future__ import annotations

from taskqueue.brokers.sqlite import dependencies

FAILS = (
    "test_broker_sqlite.py::TestSQLiteStore::test_it_is_blocked_until_all_have_ended_and_gets_their_results_in_order",
    "test_broker_sqlite.py::TestSQLiteStore::test_one_may_depend_on_many",
    "test_broker_sqlite.py::TestSQLiteStore::test_a_chain_of_a_thousand_fails_with_its_root",
)

count = dependencies.count


def forgetful(connection, causes):
    return count(connection, dict(list(causes.items())[:-1]))


dependencies.count = forgetful
