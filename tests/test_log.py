"""What the daemons' log looks like where systemd reads it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from taskqueue.log import JournalFormatter, is_journal


def test_the_journal_is_known_by_the_device_and_inode_that_systemd_names(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}

        assert is_journal(environment, stream.fileno())
        assert not is_journal(environment, sys.__stdin__.fileno() if sys.__stdin__ else 0)
        assert not is_journal({}, stream.fileno())


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_each_line_has_the_priority_of_its_message(level: int, priority: int) -> None:
    record = logging.LogRecord("taskqueue", level, __file__, 1, "first\nsecond", None, None)

    assert JournalFormatter("%(message)s").format(record) == f"<{priority}>first\n<{priority}>second"
