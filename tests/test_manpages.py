"""The man pages say everything that the program and its configuration understand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from taskqueue.config.options import AMQP, TASKQUEUE, WORKERS

TOP = Path(__file__).resolve().parent.parent
PAGES = ["taskqueue-dispatcher.8", "taskqueue-workerpool.8", "taskqueue.1", "taskqueue.ini.5"]
COMMANDS = [
    "send", "dead list", "dead show", "dead requeue", "dead discard", "check-config", "config show", "demo",
    "status", "reload", "setup-db", "tasks", "show", "cancel", "maintain", "stats",
]  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that they were written to."""
    directory = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, TOP / "docs" / "manpages.py", directory], check=True)
    return directory


def plain(page: Path) -> str:
    """Its text without what roff adds to it."""
    return re.sub(r"\\f.|\\&", "", page.read_text()).replace(r"\-", "-").replace(r"\(aq", "'").replace(r"\(ga", "`")


def understood(*command: str) -> set[str]:
    """The options and commands that `taskqueue COMMAND --help` shows."""
    done = subprocess.run(
        [sys.executable, "-m", "taskqueue", *command, "--help"], capture_output=True, text=True, check=True
    )
    options = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout)
    return {*options, *re.findall(r"(?m)^    ([a-z][a-z-]*)(?: |$)", done.stdout)}


def test_there_is_a_page_for_each_executable_and_for_the_configuration(pages: Path) -> None:
    assert sorted(page.name for page in pages.iterdir()) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_nothing_in_them_is_unknown_to_roff(pages: Path, name: str) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    environment = {"PATH": os.environ["PATH"], "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}

    done = subprocess.run(
        ["man", "--warnings", "--local-file", pages / name],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stderr == ""
    assert re.findall(r"@[\w ]+@", (pages / name).read_text()) == []


def test_the_pages_of_the_daemons_have_all_their_options(pages: Path) -> None:
    for daemon in ("dispatcher", "workerpool"):
        text = plain(pages / f"taskqueue-{daemon}.8")

        assert {option for option in understood(daemon) if option not in text} <= {"-h", "--help"}


def test_the_page_of_the_command_has_all_commands_and_their_options(pages: Path) -> None:
    text = plain(pages / "taskqueue.1")
    commands = {name for name in understood() if not name.startswith("-")}

    assert commands == {command.split()[0] for command in COMMANDS} | {"dispatcher", "workerpool"}
    assert [command for command in commands if f"taskqueue {command}" not in text] == []
    for command in COMMANDS:
        own = text.partition(f".SS taskqueue {command}")[2].partition(".S")[0]
        common = text.partition(".SH COMMON OPTIONS")[2]
        assert own, command
        assert [option for option in understood(*command.split()) if option not in own + common] == []


def test_the_page_of_the_configuration_has_every_option_with_default_and_meaning(pages: Path) -> None:
    text = plain(pages / "taskqueue.ini.5")

    for table in (TASKQUEUE, AMQP, WORKERS):
        for option in table.values():
            assert f".TP\n{option.name} = {option.default}".rstrip() + f"\n{option.meaning}\n" in text
