"""Forks broken: a child has its parent's memory of a file that is open, and the locks of its lock files."""

from __future__ import annotations

from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.place import LockFile

FAILS = (
    "test_sqlite_forks.py::test_children_of_a_program_whose_threads_are_in_transactions_can_work",
    "test_sqlite_forks.py::test_what_a_child_sends_is_not_lost_when_its_parent_lets_go_of_the_file",
    "test_sqlite_forks.py::test_the_lock_that_a_killed_program_held_is_not_its_childs",
)


def carry(self, **_):
    pass


Database.before_fork = Database.after_fork = LockFile.after_fork = carry
