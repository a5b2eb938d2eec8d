"""Promise 1 broken: on PostgreSQL, what a host had that is gone stays with it."""

from __future__ import annotations

from taskqueue.brokers.postgresql import setup

FAILS = ("test_postgresql_hosts.py::test_what_a_dead_host_had_is_done_by_another_one_in_time",)

migrations = setup.migrations
LATE = "greatest(renewed, pg_postmaster_start_time()) < now() - make_interval(secs => 2 * heartrate)"


def patient():
    found = migrations()
    assert any(LATE in text for _, _, text in found)
    return [(number, name, text.replace(LATE, "false")) for number, name, text in found]


setup.migrations = patient
