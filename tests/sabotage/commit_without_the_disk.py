"""Promise 1 broken: on PostgreSQL, a settlement does not wait until it is on disk."""

from __future__ import annotations

from taskqueue.brokers.postgresql import setup

FAILS = ("test_postgresql_outages.py::test_what_was_settled_or_sent_survives_the_servers_death_at_once",)

migrations = setup.migrations
WHERE = "settled := settle(me, successes,"


def hasty():
    found = migrations()
    assert any(WHERE in text for _, _, text in found)
    hurry = f"PERFORM set_config('synchronous_commit', 'off', true); {WHERE}"
    return [(number, name, text.replace(WHERE, hurry)) for number, name, text in found]


setup.migrations = hasty
