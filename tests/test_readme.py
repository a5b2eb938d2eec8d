"""The README's commands, as they stand: in a fresh copy of the checkout, against a private RabbitMQ."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
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
def test_the_commands_work_as_they_stand(open_directory: Path, amqp_url: str) -> None:
    copy, target = open_directory / "checkout", open_directory / "try"
    shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__"))
    text = (TOP / "README.md").read_text()
    alone, rabbitmq = commands(text, "Quick start"), commands(text, "With RabbitMQ")
    installing, running = alone[:2], alone[2:]
    assert any("send --wait filestat" in command for command in running)
    script = "\n".join(
        [
            *installing,
            f"export TASKQUEUE_URL=sqlite:///{open_directory}/queue.db",  # not the place of this machine's root
            *running,
            f"while [ -e {target}/workerpool.pid ]; do sleep 0.1; done",
            f"export TASKQUEUE_URL='{amqp_url}'",
            *rabbitmq,
            *running,
        ]
    ).replace("/tmp/try", str(target))

    run = subprocess.run(
        ["sh", "-eu", "-c", script],
        cwd=copy,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(open_directory), **pip()},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [result["path"] for result in results] == ["/etc/hostname"] * 2
    assert {result["size"] for result in results} == {Path("/etc/hostname").stat().st_size}


@pytest.mark.timeout(300)
def test_make_demo_is_the_first_command_and_leaves_nothing(open_directory: Path) -> None:
    copy, temporary = open_directory / "checkout", open_directory / "temporary"
    shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__"))
    temporary.mkdir()
    before = sorted(copy.rglob("*"))

    run = subprocess.run(
        ["make", "demo"],
        cwd=copy,
        env={"PATH": os.environ["PATH"], "HOME": str(open_directory), "TMPDIR": str(temporary), **pip()},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert "README.md" not in run.stderr
    files = sum(path.is_file() and not path.is_symlink() for path in before)
    assert f"\n{files:,} files, " in run.stdout
    assert "verified against hashlib: all equal" in run.stdout
    assert sorted(copy.rglob("*")) == before
    assert list(temporary.iterdir()) == []


def pip() -> dict[str, str]:
    """How this machine's pip reaches its package index."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


@pytest.mark.timeout(120)
def test_the_program_prints_what_is_said(tmp_path: Path) -> None:
    section = (TOP / "README.md").read_text().partition("## From Python\n")[2].partition("\nprints 7")[0]
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(section).replace("/tmp/try", str(tmp_path)))

    run = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False, timeout=100)

    assert (run.stdout, run.stderr) == ("7\n", "")
