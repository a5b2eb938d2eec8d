"""How processes end, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from taskqueue.process.spawn import ended, everything_of, how_it_ended


class TestEnds:
    def test_how_it_ended(self) -> None:
        assert how_it_ended(0) == "exit status 0"
        assert how_it_ended(-signal.SIGSEGV) == "SIGSEGV"
        assert how_it_ended(-63) == "signal 63"

    @pytest.mark.parametrize(("end", "stays"), [("0", True), ("1", False), ("kill", False)])
    def test_what_a_process_leaves_behind_is_killed_but_for_a_good_end(self, end: str, stays: bool) -> None:
        code = (
            "import os, subprocess, sys\n"
            "child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL)\n"
            "print(child.pid, flush=True)\n"
            f"os.kill(os.getpid(), 9) if {end!r} == 'kill' else os._exit({end if end != 'kill' else 0})\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.stdout.close()
        deadline = time.monotonic() + 20
        while ended(process) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        try:
            for _ in range(1000):
                with open(f"/proc/{child}/stat") as stat:
                    alive = stat.read().rpartition(")")[2].split()[0] not in "ZX"
                if alive == stays:
                    break
                time.sleep(0.005)
            assert alive == stays
        except FileNotFoundError:
            assert not stays
        finally:
            if stays:
                os.kill(child, signal.SIGKILL)

    def test_a_process_that_was_waited_for_is_never_signalled(self) -> None:
        process = subprocess.Popen(["true"], process_group=0)
        process.wait()
        everything_of(process, signal.SIGKILL)
        assert ended(process) == 0
