"""`taskqueue dead`, as its users run it; over SQLite, where nothing need be started."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskqueue.broker import connect
from taskqueue.cli import main
from taskqueue.outcome import Crashed, Dead, Failed, Outcome, Rules, effects
from taskqueue.workitem import DEAD_LETTERS, INCOMING, Workitem

Run = Callable[..., tuple[int, list[str], str]]
RULES = Rules(max_crashes=1)


def letter(id: str, outcome: Outcome, type: str = "echo", ago: float = 0.0, queue: str = "") -> Workitem:
    work = Workitem(id=id, type=type, body=f"body of {id}".encode(), content_type="text/plain", attempt=4)
    queue = queue or f"worker_{type}"
    return effects(work, outcome, RULES, queue=queue, now=time.time() - ago).sends[-1].workitem


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/queue.db"
    letters = [
        letter("a", Failed("ValueError: \x1b[31mno", "Traceback ..."), ago=7200),
        letter("b", Crashed("SIGSEGV"), ago=60),
        letter("c", Failed("KeyError"), type="other"),
        letter("d", Dead("malformed", "no JSON"), type="", queue=INCOMING)._replace(body=b"\xff\x00"),
    ]
    producer = connect(url).producer()
    producer.send(letters, queue=DEAD_LETTERS)
    producer.close()
    return url


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TASKQUEUE_URL", url)
    monkeypatch.setenv("TASKQUEUE_CONFIG", "")

    def run(*arguments: str) -> tuple[int, list[str], str]:
        status = main(["dead", *arguments])
        output = capsys.readouterr()
        return status, output.out.splitlines(), output.err

    return run


def listed(run: Run, *arguments: str) -> list[str]:
    """The ids that `dead list` shows."""
    status, lines, error = run("list", "--json", *arguments)
    assert (status, error) == (0, "")
    return [json.loads(line)["id"] for line in lines]


def test_list_shows_a_table_and_json_lines(run: Run) -> None:
    status, lines, error = run("list")

    assert (status, error) == (0, "")
    assert lines[0].split() == ["ID", "TYPE", "REASON", "AGE", "ATTEMPTS", "DETAIL"]
    assert lines[1].split()[:5] == ["a", "echo", "failed", "2h", "4"]
    assert lines[1].endswith("ValueError: \\x1b[31mno")
    _, lines, _ = run("list", "--json")
    first = json.loads(lines[0])
    assert (first["id"], first["type"], first["reason"], first["attempts"], first["from"]) == (
        "a", "echo", "failed", 4, "worker_echo"
    )  # fmt: skip
    assert 7200 <= first["age"] < 7300 and first["size"] == 9


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("", "abcd"),
        ("--type echo", "ab"),
        ("--type echo --type other", "abc"),
        ("--reason failed", "ac"),
        ("--reason failed --type other", "c"),
        ("--reason crashed --reason malformed", "bd"),
        ("--older 30m", "a"),
        ("--newer 30m", "bcd"),
        ("--older 30s --newer 30m", "b"),
        ("--limit 2", "ab"),
        ("--reason failed --limit 1", "a"),
        ("--type nobody", ""),
    ],
)
def test_filters_choose(run: Run, filters: str, expected: str) -> None:
    assert listed(run, *filters.split()) == list(expected)


def test_show_shows_all_of_some(run: Run) -> None:
    status, lines, error = run("show", "a", "d")

    assert (status, error) == (0, "")
    shown = "\n".join(lines)
    for part in ("Traceback ...", "body of a", "ValueError: \\x1b[31mno", "  00000000  ff 00 "):
        assert part in shown
    _, (line,), _ = run("show", "d", "--json")
    assert json.loads(line)["body_base64"] == "/wA="


def test_what_is_not_there_is_said_and_is_exit_status_1(run: Run) -> None:
    for command, id in (("show", "c"), ("requeue", "c"), ("discard", "b")):
        status, lines, error = run(command, id, "gone\x1b")
        assert (status, error) == (1, "taskqueue: no such dead letter: gone\\x1b\n")
        assert lines
    assert listed(run) == ["a", "d"]


@pytest.mark.parametrize("command", ["requeue", "discard"])
def test_nothing_is_done_without_a_selection(run: Run, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--limit", "1"], ["--dry-run"], ["--all", "a"], ["--all", "--type", "echo"]):
        with pytest.raises(SystemExit) as ended:
            run(command, *arguments)
        assert ended.value.code == 2
    assert "--all" in capsys.readouterr().err
    assert listed(run) == list("abcd")


@pytest.mark.parametrize(
    "arguments",
    [
        "list --older soon",
        "list --limit 0",
        "list --reason bad",
        "requeue a --rate 0",
        "requeue a --rate x",
        "show",
        "",
    ],
)
def test_wrong_usage_is_exit_status_2(run: Run, arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments.split())

    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("command", "said"), [("requeue", "would be requeued to worker_echo"), ("discard", "would be")]
)
def test_a_dry_run_says_what_would_be_done_and_does_nothing(run: Run, command: str, said: str) -> None:
    status, lines, error = run(command, "--dry-run", "--type", "echo")

    assert (status, error, len(lines)) == (0, "", 2)
    assert lines[0].startswith("a ") and said in lines[0]
    _, lines, _ = run(command, "--dry-run", "--all", "--limit", "3", "--json")
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "c"]
    assert not any(json.loads(line)["done"] for line in lines)
    assert listed(run) == list("abcd")


def test_requeue_sends_them_to_their_workers_and_discard_removes_them(run: Run, url: str) -> None:
    status, lines, _ = run("requeue", "a", "d", "--json")
    assert status == 0
    assert [json.loads(line) for line in lines] == [
        {"id": "a", "queue": "worker_echo", "done": True, "dry_run": False},
        {"id": "d", "queue": "taskqueue", "done": True, "dry_run": False},
    ]
    assert listed(run) == ["b", "c"]
    status, lines, _ = run("discard", "--all")
    assert (status, lines) == (0, ["b  discarded", "c  discarded"])
    assert listed(run) == []
    assert run("requeue", "--all") == (0, [], "")


def test_a_rate_limits_replays(run: Run) -> None:
    begun = time.monotonic()

    status, lines, _ = run("requeue", "--all", "--rate", "10")

    assert (status, len(lines)) == (0, 4)
    assert time.monotonic() - begun >= 0.3


def test_people_at_a_terminal_see_how_far_it_is(url: str) -> None:
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        command = [Path(sys.executable).with_name("taskqueue"), "dead", "discard", "--all", "--url", url]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, text=True, check=False)
        seen = os.read(screen, 1 << 16).decode()
    finally:
        os.close(screen)
        os.close(terminal)

    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "a  discarded")
    assert "4/4" in seen
