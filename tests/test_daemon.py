"""What makes a daemon of a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskqueue.daemon import PidFileError, pid_file, write_pid


def test_a_pid_file_is_there_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(path) as descriptor:
        write_pid(descriptor)
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_none_is_no_pid_file() -> None:
    with pid_file(None) as descriptor:
        write_pid(descriptor)


def test_it_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(path) as descriptor:
        write_pid(descriptor)
        with pytest.raises(PidFileError, match=f"held by process {os.getpid()}: it runs already"), pid_file(path):
            pass
        assert path.exists()
    with pid_file(path):
        pass


def test_a_stale_one_stops_nobody_and_nothing_of_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("12345678901\n")
    with pid_file(path) as descriptor:
        write_pid(descriptor)
        assert path.read_text() == f"{os.getpid()}\n"


def test_one_that_can_not_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "pid"
    with pytest.raises(PidFileError, match=f"pid file {path}: No such file or directory"), pid_file(path):
        pass


def test_one_that_is_removed_between_opening_and_locking_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two daemons would run: one holds a file that is gone, the other a new one."""
    path = tmp_path / "pid"
    real, calls = os.open, []

    def open_and_lose(*arguments: object, **keywords: object) -> int:
        descriptor: int = real(*arguments, **keywords)  # type: ignore[arg-type]
        calls.append(arguments)
        if len(calls) == 1:
            path.unlink()
        return descriptor

    monkeypatch.setattr("taskqueue.daemon.os.open", open_and_lose)
    with pid_file(path) as descriptor:
        assert descriptor is not None
        assert os.path.samestat(os.fstat(descriptor), path.stat())
    assert len(calls) == 2


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = f"import os, pathlib\nfrom taskqueue.daemon import *\nwith pid_file(pathlib.Path({str(path)!r})) as d:\n"
    code += "    write_pid(d)\n    os.kill(os.getpid(), 9)\n"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9 and path.exists()
    with pid_file(path):
        pass
