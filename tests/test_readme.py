"""The README's commands, as they stand: in a fresh copy of the checkout, against a private RabbitMQ."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent


def commands(text: str, heading: str) -> list[str]:
    """The indented lines below `heading`, without those that show an output."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    return [line for line in lines if not line.startswith("{")]


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can enter, as /tmp/try of the README is; daemons that a failed run left are ended."""
    directory = Path(tempfile.mkdtemp(prefix="taskqueue-readme-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        for file in directory.glob("try/*.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.timeout(300)
def test_the_quick_start_works_as_it_stands(open_directory: Path, amqp_url: str) -> None:
    copy, target = open_directory / "checkout", open_directory / "try"
    shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__"))
    script = "\n".join(commands((TOP / "README.md").read_text(), "Quick start")).replace("/tmp/try", str(target))
    assert "send --wait filestat" in script

    run = subprocess.run(
        ["sh", "-eu", "-c", script],
        cwd=copy,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(open_directory), "TASKQUEUE_URL": amqp_url, **pip()},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))
    assert result["path"] == "/etc/hostname"
    assert result["size"] == Path("/etc/hostname").stat().st_size


def pip() -> dict[str, str]:
    """How this machine's pip reaches its package index."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
