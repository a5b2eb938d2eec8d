"""Dependencies broken: on PostgreSQL, who sends what depends on something does not lock that, and misses its end."""

from __future__ import annotations

from taskqueue.brokers.postgresql import setup

FAILS = (
    "test_postgresql_depending.py::test_an_end_waits_for_who_is_sending_what_depends_on_it_and_counts_for_that",
    "test_postgresql_depending.py::test_a_sender_does_not_wait_for_who_holds_what_it_depends_on",
)

migrations = setup.migrations
LOCK = "        FOR KEY SHARE SKIP LOCKED\n"


def unlocked():
    found = migrations()
    assert any(LOCK in text for _, _, text in found)
    return [(number, name, text.replace(LOCK, "")) for number, name, text in found]


setup.migrations = unlocked
