"""Promise 9 broken: worker processes keep the supplementary groups of the manager."""

from __future__ import annotations

import subprocess

from taskqueue.process import spawn

FAILS = ("test_system_privileges.py::test_a_worker_process_has_the_rights_of_its_user_and_no_others",)


class Careless(subprocess.Popen):
    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__(*arguments, **{**keywords, "extra_groups": None})


spawn.subprocess.Popen = Careless
