"""Processes that a program has started for a block of `running` are not told whom they end with."""

from __future__ import annotations

import subprocess
from typing import Any

from taskqueue.process import spawn

FAILS = (
    "test_running_programs.py::TestHowAProgramEnds::test_sigkill_of_the_program_leaves_no_process_and_loses_nothing",
)


class Untied(subprocess.Popen):
    def __init__(self, command: list[str], **keywords: Any) -> None:
        super().__init__(command[:-1], **keywords)


spawn.subprocess.Popen = Untied
