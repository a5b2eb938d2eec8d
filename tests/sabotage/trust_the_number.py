"""Promises 1 and 4 broken: after an outage of PostgreSQL, whatever has the old number is taken for the old thing."""

from __future__ import annotations

from taskqueue.brokers.postgresql import setup

FAILS = (
    "test_postgresql_leases.py::test_a_number_that_the_server_gives_again_is_not_taken_for_what_had_it_before",
    "test_postgresql_leases.py::test_a_lease_of_the_same_number_is_not_taken_for_ones_own",
)

migrations = setup.migrations
CHECKS = (" AND h.id = w.id", " AND w.id = h.id", " AND term < my_term AND term >> 32 = my_term >> 32")


def trusting():
    found = migrations()
    for check in CHECKS:
        assert any(check in text for _, _, text in found)
        found = [(number, name, text.replace(check, "")) for number, name, text in found]
    return found


setup.migrations = trusting
