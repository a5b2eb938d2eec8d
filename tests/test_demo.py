"""`taskqueue demo`: it shows the truth, and leaves nothing running and nothing behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installations import Installation
from system import alive, until

BODIES = {
    "a": b"one line\n",
    "empty": b"",
    "grüße ☃": b"two\nlines\n",
    os.fsdecode(b"not \xff utf-8"): b"\xff" * 1000,
    "esc\x1b[2J": b"a name that clears the screen",
}


@pytest.fixture
def tree() -> Iterator[Path]:
    """A directory with files that everybody can read, and an empty one for temporary files."""
    with tempfile.TemporaryDirectory(prefix="taskqueue-tree-", dir="/tmp") as directory:
        top = Path(directory)
        top.chmod(0o755)
        (top / "temporary").mkdir(mode=0o777)
        (top / "temporary").chmod(0o777)
        below = top / "files" / "below"
        below.mkdir(parents=True)
        for name, body in BODIES.items():
            (below / name).write_bytes(body)
        (below / "link").symlink_to("a")
        os.mkfifo(below / "pipe")
        yield top


def start(installation: Installation, tree: Path, *arguments: object, user: str = "") -> subprocess.Popen[bytes]:
    account = pwd.getpwnam(user) if user else None
    return subprocess.Popen(
        [str(word) for word in (installation.bin("taskqueue"), "demo", *arguments)],
        env={
            "PATH": os.defpath,
            "TMPDIR": str(tree / "temporary"),
            "HOME": str(tree / "temporary"),
            "TASKQUEUE_URL": "amqp://somewhere.else",  # must not be used
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=() if account else None,
    )


def finish(process: subprocess.Popen[bytes], status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, out + err
    return out.decode(), err.decode()


def descendants(pid: int) -> list[int]:
    """Processes below `pid` (proc(5), /proc/pid/task/tid/children)."""
    found: list[int] = []
    for file in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *descendants(child)]
    return found


def many(tree: Path) -> Path:
    for name in range(5000):
        (tree / "files" / str(name)).write_bytes(bytes(10_000))
    return tree / "files"


def left(tree: Path) -> list[Path]:
    return list((tree / "temporary").iterdir())


@pytest.mark.skipif(Path("/etc/taskqueue/config.ini").exists(), reason="this host has a configuration")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become an ordinary user")
def test_two_terminals_are_enough(installation: Installation, tree: Path) -> None:
    """No server, no configuration, no dispatcher."""
    command, file = installation.bin("taskqueue"), tree / "files" / "below" / "a"
    user: dict[str, Any] = {"user": pwd.getpwnam("nobody").pw_uid, "extra_groups": (), "cwd": "/"}
    environment = {"PATH": os.defpath, "HOME": str(tree / "temporary")}
    pool = subprocess.Popen([command, "workerpool", "-f"], env=environment, stderr=subprocess.PIPE, **user)
    try:
        sent = subprocess.run(
            [command, "send", "--wait", "filestat", file], env=environment, capture_output=True, timeout=60, **user
        )
    finally:
        pool.terminate()
        _, log = pool.communicate(timeout=60)

    assert sent.returncode == 0, sent.stderr + log
    assert json.loads(sent.stdout)["sha256"] == hashlib.sha256(BODIES["a"]).hexdigest()
    assert pool.returncode == 0, log
    assert (tree / "temporary" / ".local" / "state" / "taskqueue" / "queue.db").exists()


class TestTheDemo:
    def test_it_describes_every_file_and_leaves_nothing(self, installation: Installation, tree: Path) -> None:
        out, _ = finish(start(installation, tree, tree / "files"))

        assert f"{len(BODIES)} files below" in out
        for body in BODIES.values():
            assert hashlib.sha256(body).hexdigest()[:16] in out
        assert f"{len(BODIES)} digests, picked at random, verified against hashlib: all equal" in out
        assert "\x1b" not in out
        assert ("run as root" in out) == (os.geteuid() == 0)
        assert left(tree) == []

    def test_its_figures_are_there_for_scripts(self, installation: Installation, tree: Path) -> None:
        out, err = finish(start(installation, tree, tree / "files", "--json"))

        summary = json.loads(out)
        assert (summary["files"], summary["failed"], summary["verified"]) == (len(BODIES), 0, len(BODIES))
        assert summary["bytes"] == sum(map(len, BODIES.values()))
        assert sum(summary["workers"].values()) == len(BODIES)
        assert err == ""

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_others_may_run_it_too(self, installation: Installation, tree: Path) -> None:
        (tree / "files" / "below" / "a").chmod(0o600)

        out, _ = finish(start(installation, tree, tree / "files", user="nobody"))

        assert f"failed: {tree}/files/below/a: PermissionError" in out
        assert f"{len(BODIES) - 1} files, " in out
        assert "root" not in out
        assert left(tree) == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_an_interruption_leaves_nothing(
        self, installation: Installation, tree: Path, number: signal.Signals
    ) -> None:
        process = start(installation, tree, many(tree))
        until(lambda: len(descendants(process.pid)) >= 4)  # both daemons, the carrier, a worker process
        started = descendants(process.pid)

        process.send_signal(number)
        _, err = finish(process, 1)

        assert err == ""
        assert not any(map(alive, started))
        assert left(tree) == []

    def test_a_kill_leaves_nothing_running(self, installation: Installation, tree: Path) -> None:
        process = start(installation, tree, many(tree))
        until(lambda: len(descendants(process.pid)) >= 4)
        started = descendants(process.pid)

        process.kill()
        finish(process, -signal.SIGKILL)

        until(lambda: not any(map(alive, started)))

    def test_what_is_missing_is_named(self, installation: Installation, tree: Path) -> None:
        _, err = finish(start(installation, tree, tree / "nowhere"), 1)

        assert err == f"taskqueue: {tree}/nowhere: no such directory\n"
