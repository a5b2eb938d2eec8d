"""Dependencies broken: results and records are dropped when their time is over, whatever depends on them."""

from __future__ import annotations

from taskqueue.brokers.sqlite.keeper import Keeper

FAILS = (
    "test_broker_sqlite.py::TestSQLiteStore::test_a_result_stays_for_those_that_were_sent_before_it_ended",
    "test_broker_sqlite.py::TestSQLiteStore::test_a_dead_letter_that_is_requeued_has_the_inputs",
    "test_sqlite_depending.py::test_a_record_is_kept_as_long_as_something_depends_on_it_that_has_not_ended",
)


def heedless(self, database, work):
    with database.writing(durable=False) as connection:
        kept = connection.execute("SELECT * FROM dependencies").fetchall()
        connection.execute("DELETE FROM dependencies")
        result = work(connection)
        connection.executemany("INSERT INTO dependencies VALUES (?, ?, ?, ?)", kept)
    return result


Keeper._write = heedless
